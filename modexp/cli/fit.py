"""modexp fit: optima of a study with intervals, refusals and reasons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modexp.cli.common import (
    add_json,
    add_study,
    note,
    one_name,
    parser,
    print_json,
    print_table,
    split_words,
    study_path,
    study_records,
)


def main(words: list[str]) -> int:
    p = parser("fit", "Fit a parabola to every isoFLOP curve of a study: optima, intervals, exponents, comparisons.")
    add_study(p)
    add_json(p)
    p.add_argument("--axis", default="params_total", help="params_total | params_active | flops_per_token | tokens ...")
    p.add_argument("words", nargs="*", metavar="STUDY")
    args = p.parse_intermixed_args(words)

    from modexp.analysis.isoflop import fit_study
    from modexp.errors import UserError

    names, overrides = split_words(args.words)
    if overrides:
        raise UserError(f"{overrides[0]} is a setting, and a fit has none", "choose the axis with --axis NAME")
    rows = study_records(study_path(args.study or one_name(names, "") or None, args.runs_dir))
    if args.json:
        print_json(fit_study(rows, args.axis).to_json())
    else:
        print_fit(rows, args.axis)
    return 0


def print_fit(rows: Sequence[dict[str, Any]], axis: str = "params_total") -> None:
    from modexp.analysis.isoflop import fit_study
    from modexp.wording import budget_text, size_text

    fit = fit_study(rows, axis)
    level = f"{fit.level:.0%}"
    columns = (
        "arm",
        "budget",
        "runs",
        "optimum",
        f"{level} interval",
        "loss there",
        f"{level} interval ",
    )
    lines = []
    for row in fit.rows():
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
            ]
        )
    print_table(
        columns,
        lines,
        f"optima by {axis}; held-out loss in nats a token, conditional arms with causal routing",
    )
    for row in fit.rows():
        if row["note"]:
            print(f"{row['arm']} at {budget_text(row['budget'])}: {row['note']}")
    for exponent in fit.exponents:
        if exponent.exponent is not None:
            print(
                f"{exponent.arm}: optimum = {exponent.coefficient:.4g} x C^{exponent.exponent:.3f}"
                f" ({level}: {exponent.low:.3f} .. {exponent.high:.3f})"
                + "".join(f"; {warning}" for warning in exponent.warnings)
            )
        else:
            print(f"{exponent.arm}: no exponent: {exponent.refusal}")
    for comparison in fit.comparisons:
        print(comparison.sentence)
    for dropped in fit.dropped:
        note(f"left out: {dropped.run}: {dropped.reason}")
    print_guards(rows, axis)
    if fit.noise_sd is not None:
        note(f"noise {fit.noise_sd:.4f} nats a run, pooled over all curves ({fit.dof} degrees of freedom). {fit.rule}")


def print_guards(rows: Sequence[dict[str, Any]], axis: str) -> None:
    """What the guard runs of a study say, curve by curve."""
    from modexp.analysis.guard import guard_study
    from modexp.analysis.points import is_guard

    guards = sum(is_guard(row) for row in rows)
    if guards:
        for verdict in guard_study(rows, axis):
            print(f"guard: {verdict.sentence}")
        note(f"{guards} guard runs at half and twice the learning rate are no points of the fit")
