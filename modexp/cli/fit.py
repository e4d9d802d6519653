"""modexp fit: optima, exponents and intervals of a study, or of a table of other people's runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from modexp.cli.common import (
    Parser,
    add_convention,
    add_exclusions,
    add_json,
    add_study,
    convention_fits,
    note,
    one_name,
    parser,
    print_json,
    print_table,
    read_csv,
    split_words,
    study_path,
    study_records,
    table_path,
)
from modexp.errors import UserError

if TYPE_CHECKING:
    from modexp.config.root import Config


def flags() -> Parser:
    p = parser(
        "fit",
        "Fit a study, or a CSV of runs: a parabola for every isoFLOP curve, a loss surface for every arm by two"
        " methods, exponents and intervals side by side. Writes fit.json and methods.md beside a study's runs.",
    )
    add_study(p)
    add_convention(p, " | all")
    add_json(p)
    p.add_argument(
        "--axis",
        default="params",
        metavar="AXIS",
        help="params | non_embedding | active | flops_per_token | tokens | seconds",
    )
    p.add_argument(
        "--columns", metavar="NAME=COLUMN,...", help="of a CSV: flops=C,params=N,loss=val_loss,arm=model ..."
    )
    p.add_argument(
        "--baseline", metavar="ARM", help="compare with this arm (default: baseline, or the first dense one)"
    )
    p.add_argument("--resamples", type=int, default=1000, help="of each surface's bootstrap; 0: none (default: 1000)")
    add_exclusions(p)
    p.add_argument("--out", metavar="DIR", help="where fit.json and methods.md go (default: the study)")
    p.add_argument("words", nargs="*", metavar="STUDY | FILE.csv")
    return p


def main(words: list[str]) -> int:
    args = flags().parse_intermixed_args(words)
    names, overrides = split_words(args.words)
    if overrides:
        raise UserError(f"{overrides[0]} is a setting, and a fit has none", "choose the axis with --axis NAME")
    if args.resamples < 0:
        raise UserError(f"--resamples {args.resamples} is negative", "0 leaves the bootstrap out")
    if args.drop_highest < 0:
        raise UserError(f"--drop-highest {args.drop_highest} is negative", "0 leaves no run out")
    name = args.study or one_name(names, "") or None
    table = table_path(name)
    if args.columns and not table:
        raise UserError(
            "--columns names the columns of a CSV, and none is given", "modexp fit points.csv --columns ..."
        )
    if table and args.convention:
        raise UserError(f"--convention {args.convention} needs ledgers, and {table} has none", "leave it out")

    from modexp.analysis.methods import methods_sheet
    from modexp.analysis.report import report
    from modexp.cli.fit_tables import print_guards, print_report
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
        print_guards(rows, args.axis)
    if out:
        stem = "fit" if not args.convention else f"fit-{args.convention}"
        sheet = "methods" if not args.convention else f"methods-{args.convention}"
        write_json(out / f"{stem}.json", found.to_json())
        write_text(out / f"{sheet}.md", methods_sheet(found, rows, about, args.level))
        note(f"wrote {out / stem}.json and {out / sheet}.md")
    return 0


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
        "schedule": schedule_words(config),
        "optimizer": f"{config.optim.kind}, rate by {config.optim.lr}, batch by {config.optim.batch_size}",
        "precision": str(result.get("precision", "not trained yet")),
        "modexp": ", ".join(f"{key} {origin.get(key) or 'unknown'}" for key in ("modexp", "commit", "torch")),
    }


def schedule_words(config: Config) -> str:
    from modexp.config.train import WsdConfig
    from modexp.wording import budget_text

    schedule, rules_at = config.schedule, config.budget.rules_at
    words = f"{schedule.kind} over each run's own steps, warm-up {schedule.warmup:.0%}"
    if isinstance(schedule, WsdConfig):
        words += f", the rate constant until the decay over the last {schedule.decay:.0%}"
    if rules_at:
        words += f"; batch, rate and warm-up of every budget are the rules' at {budget_text(rules_at)} FLOPs"
    return words


def print_conventions(study: Path, args: Any) -> int:
    """The parabola's exponents and the last budget's optimum of every arm, read under every convention."""
    from dataclasses import asdict

    from modexp.wording import size_text

    fits, refusals = convention_fits(study, args.axis, args.level, args.baseline)
    for name, refusal in refusals.items():
        note(f"{name}: {refusal}")
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
