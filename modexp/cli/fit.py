"""modexp fit: optima, exponents and intervals of a study, or of a table of other people's runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modexp.cli.common import (
    add_convention,
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
from modexp.errors import UserError

if TYPE_CHECKING:
    from modexp.analysis.isoflop import StudyFit
    from modexp.analysis.report import Report

SHOWN_DROPS = 10  # left-out runs that are told one by one


def main(words: list[str]) -> int:
    p = parser(
        "fit",
        "Fit a study, or a CSV of runs: a parabola for every isoFLOP curve, a loss surface for every arm by two"
        " methods, exponents and intervals side by side. Writes fit.json and methods.md beside a study's runs.",
    )
    add_study(p)
    add_convention(p, " | all")
    add_json(p)
    p.add_argument(
        "--axis", default="params", help="params | non_embedding | active | flops_per_token | tokens | seconds"
    )
    p.add_argument(
        "--columns", metavar="NAME=COLUMN,...", help="of a CSV: flops=C,params=N,loss=val_loss,arm=model ..."
    )
    p.add_argument(
        "--baseline", metavar="ARM", help="compare with this arm (default: baseline, or the first dense one)"
    )
    p.add_argument("--resamples", type=int, default=1000, help="of each surface's bootstrap; 0: none (default: 1000)")
    p.add_argument("--nearest", type=int, metavar="K", help="fit parabolas to the K sizes nearest each lowest loss")
    p.add_argument(
        "--drop-highest", type=int, default=0, metavar="K", help="leave out the K highest losses of each arm"
    )
    p.add_argument("--drop-outliers", action="store_true", help="leave out runs far off their arm's loss surface")
    p.add_argument("--out", metavar="DIR", help="where fit.json and methods.md go (default: the study)")
    p.add_argument("words", nargs="*", metavar="STUDY | FILE.csv")
    args = p.parse_intermixed_args(words)
    names, overrides = split_words(args.words)
    if overrides:
        raise UserError(f"{overrides[0]} is a setting, and a fit has none", "choose the axis with --axis NAME")
    if args.resamples < 0:
        raise UserError(f"--resamples {args.resamples} is negative", "0 leaves the bootstrap out")
    if args.drop_highest < 0:
        raise UserError(f"--drop-highest {args.drop_highest} is negative", "0 leaves no run out")
    name = args.study or one_name(names, "") or None
    table = Path(name) if name and name.endswith((".csv", ".tsv")) else None
    if args.columns and not table:
        raise UserError(
            "--columns names the columns of a CSV, and none is given", "modexp fit points.csv --columns ..."
        )
    if table and args.convention:
        raise UserError(f"--convention {args.convention} needs ledgers, and {table} has none", "leave it out")

    from modexp.analysis.methods import methods_sheet
    from modexp.analysis.report import report
    from modexp.files import write_json, write_text

    if args.convention == "all":
        return print_conventions(study_path(name, args.runs_dir), args)
    if table:
        rows, about = read_csv(table, args.columns)
        out = Path(args.out) if args.out else None
    else:
        study = study_path(name, args.runs_dir)
        rows, about = study_records(study, args.convention), study_facts(study)
        out = Path(args.out) if args.out else study
    found = report(
        rows,
        args.axis,
        args.level,
        args.baseline,
        args.resamples,
        args.nearest,
        args.drop_highest,
        args.drop_outliers,
    )
    if args.json:
        print_json(found.to_json())
    else:
        print_report(found)
    if out:
        stem = "fit" if not args.convention else f"fit-{args.convention}"
        sheet = "methods" if not args.convention else f"methods-{args.convention}"
        write_json(out / f"{stem}.json", found.to_json())
        write_text(out / f"{sheet}.md", methods_sheet(found, rows, about, args.level))
        note(f"wrote {out / stem}.json and {out / sheet}.md")
    return 0


def read_csv(path: Path, columns: str | None) -> tuple[list[dict[str, Any]], dict[str, str]]:
    from modexp.analysis.table import parse_columns, read_table

    rows, assumed = read_table(path, parse_columns(columns) if columns else None)
    for sentence in assumed:
        note(f"assumed: {sentence}")
    return rows, {
        "table": str(path),
        "trained": "elsewhere; nothing is known but the table",
        "assumed": "; ".join(assumed),
    }


def study_facts(study: Path) -> dict[str, str]:
    """What the methods sheet says of how the runs were trained."""
    from modexp.runs import run_dirs

    runs = run_dirs(study)
    config, result = runs[0].config(), next((r for run in runs if (r := run.result())), {})
    origin = result.get("provenance", {})
    return {
        "study": study.name,
        "data": f"{config.data.kind}, tokenizer {config.data.tokenizer}, sequences of {config.data.sequence_length}",
        "content hash of the text": str(runs[0].plan()["data"].get("content_hash", "unknown")),
        "schedule": f"{config.schedule.kind} over each run's own steps, warm-up {config.schedule.warmup:.0%}",
        "optimizer": f"{config.optim.kind}, rate by {config.optim.lr}, batch by {config.optim.batch_size}",
        "precision": str(result.get("precision", "not trained yet")),
        "modexp": ", ".join(f"{key} {origin.get(key) or 'unknown'}" for key in ("modexp", "commit", "torch")),
    }


def print_fit(rows: Sequence[dict[str, Any]]) -> None:
    """The parabolas alone: what a sweep ends with."""
    from modexp.analysis.isoflop import fit_study

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
    print_rest(fit)


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
    for dropped in fit.dropped[:SHOWN_DROPS]:
        note(f"left out: {dropped.run}: {dropped.reason}")
    if len(fit.dropped) > SHOWN_DROPS:
        note(f"left out: {len(fit.dropped) - SHOWN_DROPS} more; --json lists them")
    if fit.noise_sd is not None:
        note(f"noise {fit.noise_sd:.4f} nats a run, pooled over all curves ({fit.dof} degrees of freedom). {fit.rule}")


def print_conventions(study: Path, args: Any) -> int:
    """The parabola's exponents and the last budget's optimum of every arm, read under every convention."""
    from dataclasses import asdict

    from modexp.analysis.isoflop import fit_study
    from modexp.flops.ledger import CONVENTIONS
    from modexp.wording import size_text

    fits: dict[str, StudyFit] = {}
    for name in CONVENTIONS:
        try:
            fits[name] = fit_study(study_records(study, name), args.axis, args.level, args.baseline)
        except UserError as error:
            note(f"{name}: {error.sentence}")
    if args.json:
        print_json({name: fit.to_json() for name, fit in fits.items()})
        return 0
    lines = []
    for name, fit in fits.items():
        for e in fit.exponents:
            last = [c for c in fit.curves if c.arm == e.arm and c.optimum][-1:]
            best = asdict(last[0].optimum)["x"] if last and last[0].optimum else None
            said = ("-", "-") if e.exponent is None else (f"{e.exponent:.4f}", f"{e.low:.4f} .. {e.high:.4f}")
            lines.append([e.arm, name, *said, "-" if best is None else size_text(best), e.refusal])
    level = f"{args.level:.0%} interval"
    columns = ("arm", "convention", "exponent", level, "optimum at the largest budget", "note")
    print_table(
        columns, sorted(lines, key=lambda line: line[0]), f"the same runs by {args.axis} under every convention"
    )
    return 0
