"""What modexp fit prints: optima, exponents by every method, comparisons, and what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modexp.cli.common import note, print_table

if TYPE_CHECKING:
    from modexp.analysis.guard import Verdict
    from modexp.analysis.isoflop import StudyFit
    from modexp.analysis.report import Report

SHOWN_DROPS = 10  # left-out runs that are told one by one


def print_fit(rows: Sequence[dict[str, Any]]) -> None:
    """The parabolas alone: what a sweep ends with."""
    from modexp.analysis.guard import guard_study
    from modexp.analysis.isoflop import fit_study
    from modexp.analysis.points import shared_trunks

    fit = fit_study(rows)
    print_optima(fit)
    for e in fit.exponents:
        if e.exponent is None:
            print(f"{e.arm}: no exponent: {e.refusal}")
        else:
            print(
                f"{e.arm}: optimum = {e.coefficient:.4g} x C^{e.exponent:.3f}"
                f" ({fit.level:.0%}: {e.low:.3f} .. {e.high:.3f})" + "".join(f"; {warning}" for warning in e.warnings)
            )
    if sentence := shared_trunks(rows):
        print(sentence)
    print_rest(fit)
    print_guards(guard_study(rows, fit.axis, fit.level))


def print_report(found: Report) -> None:
    from modexp.analysis.methods import exponent_rows

    fit = found.fit
    print_optima(fit)
    level = f"{fit.level:.0%} interval"
    lines = [
        [
            row["arm"],
            row["method"],
            "-" if row["exponent"] is None else f"{row['exponent']:.4f}",
            "-" if row["low"] is None else f"{row['low']:.4f} .. {row['high']:.4f}",
            row["refusal"],
        ]
        for row in exponent_rows(found)
    ]
    print_table(("arm", "method", "exponent", level, "note"), lines, f"optimum by {fit.axis} ~ C^exponent")
    for s in found.surfaces:
        if s.surface:
            f = s.surface
            print(
                f"{s.arm}, {s.method}: L = {f.E:.4f} + {f.A:.5g} / N^{f.alpha:.4f} + {f.B:.5g} / D^{f.beta:.4f},"
                f" objective {f.objective:.6e} over {f.num_points} runs"
            )
        for warning in s.warnings:
            print(f"{s.arm}, {s.method}: {warning}")
    for exponent in fit.exponents:
        for warning in exponent.warnings:
            print(f"{exponent.arm}: {warning}")
    for sentence in found.warnings:
        print(sentence)
    for out in fit.left_out:
        print_left_out(out)
    print_rest(fit)
    print_guards(found.guards)


def print_left_out(out: Any) -> None:
    from modexp.wording import budget_text, size_text

    said = (
        "no exponent"
        if out.predicted is None
        else f"{size_text(out.predicted)} predicted, {size_text(out.found)} found"
    )
    verdict = "" if out.within is None else ", within the interval" if out.within else ", OUTSIDE the interval"
    print(f"{out.arm} without {budget_text(out.budget)}: {said}{verdict}")


def print_optima(fit: StudyFit) -> None:
    from modexp.analysis.curve import MIN_SIZES
    from modexp.wording import budget_text, size_text

    level = f"{fit.level:.0%}"
    hopeless = [curve for curve in fit.curves if curve.num_sizes < MIN_SIZES]
    hidden = hopeless if len(hopeless) > SHOWN_DROPS else []
    columns = (
        "arm",
        "budget",
        "runs",
        "optimum",
        f"{level} interval",
        "loss there",
        f"{level} interval ",
        "raw minimum",
    )
    lines = []
    rows = [(row, curve) for row, curve in zip(fit.rows(), fit.curves, strict=True) if curve not in hidden]
    for row, curve in rows:
        found = row["x"] is not None
        lines.append(
            [
                row["arm"],
                budget_text(row["budget"]),
                str(row["runs"]),
                size_text(row["x"]) if found else "-",
                f"{size_text(row['x_low'])} .. {size_text(row['x_high'])}" if found else "-",
                f"{row['loss']:.4f}" if found else "-",
                f"{row['loss_low']:.4f} .. {row['loss_high']:.4f}" if found else "-",
                size_text(curve.raw_minimum) if curve.points else "-",
            ]
        )
    print_table(
        columns,
        lines,
        f"optima by {fit.axis}; held-out loss in nats a token, conditional arms with causal routing",
    )
    if hidden:
        print(f"{len(hidden)} more budgets have fewer than {MIN_SIZES} sizes, and no parabola")
    for row, _ in rows:
        if row["note"]:
            print(f"{row['arm']} at {budget_text(row['budget'])}: {row['note']}")


def print_rest(fit: StudyFit) -> None:
    """Comparisons to stdout; what was left out, and the rule, to stderr."""
    for comparison in fit.comparisons:
        print(comparison.sentence)
    note_dropped(fit)
    if fit.noise_sd is not None:
        note(f"noise {fit.noise_sd:.4f} nats a run, pooled over all curves ({fit.dof} degrees of freedom). {fit.rule}")


def note_dropped(fit: StudyFit) -> None:
    for dropped in fit.dropped[:SHOWN_DROPS]:
        note(f"left out: {dropped.run}: {dropped.reason}")
    if len(fit.dropped) > SHOWN_DROPS:
        note(f"left out: {len(fit.dropped) - SHOWN_DROPS} more; modexp fit --json lists them")


def print_guards(verdicts: Sequence[Verdict]) -> None:
    """What the guard runs of a study say, curve by curve."""
    for verdict in verdicts:
        print(f"guard: {verdict.sentence}")
    if verdicts:
        note("guard runs, at half and twice the learning rate, are no points of the fit")
