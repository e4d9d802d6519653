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
    from modexp.config.study import SweepConfig


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
    p.add_argument("--resamples", type=int, help="of each surface's bootstrap; 0: none (default: 1000)")
    add_exclusions(p)
    p.add_argument("--out", metavar="DIR", help="where fit.json and methods.md go (default: the study)")
    p.add_argument("words", nargs="*", metavar="STUDY | FILE.csv")
    return p


def main(words: list[str]) -> int:
    args = flags().parse_intermixed_args(words)
    names, overrides = split_words(args.words)
    if overrides:
        raise UserError(f"{overrides[0]} is a setting, and a fit has none", "choose the axis with --axis NAME")
    if (args.resamples or 0) < 0:
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
    from modexp.cli.fit_tables import print_report
    from modexp.files import write_json, write_text

    if args.convention == "all":
        for flag, value, why in (("--resamples", args.resamples, "draws none"), ("--out", args.out, "writes no files")):
            if value is not None:
                raise UserError(f"{flag} {value} has no effect: --convention all {why}", f"leave {flag} out")
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
        1000 if args.resamples is None else args.resamples,
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


def study_facts(study: Path) -> dict[str, str]:
    """What the methods sheet says of how the runs were trained."""
    from modexp.plan.hyperparameters import BATCH_SOURCES, LR_SOURCES
    from modexp.runs import run_dirs
    from modexp.sweep.study import load_study

    runs = run_dirs(study)
    config, plan = runs[0].config(), runs[0].plan()
    result: dict[str, Any] = next((r for run in runs if (r := run.result())), {})
    origin = result.get("provenance", {})
    lr, batch = plan["plan"]["lr_rule"], plan["plan"]["batch_rule"]
    o = config.optim
    facts = {
        "study": study.name,
        "data": f"{config.data.kind}, tokenizer {config.data.tokenizer}, sequences of {config.data.sequence_length}",
        "content hash of the text": str(plan["data"].get("content_hash", "unknown")),
        "schedule": schedule_words(config),
        "optimizer": f"{o.kind}, betas {o.beta1:g} and {o.beta2:g}, weight decay {o.weight_decay:g},"
        f" gradients clipped at {o.grad_clip:g}",
        "learning rate": f"by the rule {o.lr} ({LR_SOURCES[lr]})",
        "batch": f"by the rule {o.batch_size} ({BATCH_SOURCES[batch]})",
        "evaluation": f"each run once, at its end, on the same held-out sequences, {config.trainer.eval_sequences} at"
        " most; no intermediate checkpoint and no smoothing enters",
        "precision": str(result.get("precision", "not trained yet")),
        "modexp": ", ".join(f"{key} {origin.get(key) or 'unknown'}" for key in ("modexp", "commit", "torch")),
    }
    try:
        sweep = load_study(study).sweep
    except UserError as error:  # runs can be fitted without it
        return facts | {"sizes": f"unknown, for {error.sentence}"}
    facts |= {f"arm {arm}": " ".join(words) or "as the defaults" for arm, words in sweep.arms.items()}
    return facts | {"sizes": size_words(sweep)}


def size_words(sweep: SweepConfig) -> str:
    deeper = "; routed arms deeper by what routing saves" if sweep.grid.growth == "depth" else ""
    centre = f"{sweep.grid.tokens_per_param:g} tokens a parameter"
    adaptive = sweep.adapt.enabled
    adapted = "the smallest budget's (the others by the fits of the smaller ones)" if adaptive else "each budget's"
    return (
        f"width and depth grow together, L near sqrt(d) / 2{deeper}; {sweep.grid.points} sizes a curve over"
        f" +-{sweep.grid.span:g}x in FLOPs per token, {adapted} centred on {centre}, where no arm sets its own;"
        f" seeds {', '.join(map(str, sweep.seeds))}"
    )


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
    """The parabola's exponents and the largest budget's optimum of every arm, read under every convention."""
    from modexp.cli.fit_tables import note_dropped
    from modexp.wording import budget_text, size_text

    chosen = args.nearest, args.drop_highest, args.drop_outliers
    fits, refusals = convention_fits(study, args.axis, args.level, args.baseline, *chosen)
    for name, refusal in refusals.items():
        note(f"{name}: {refusal}")
    if args.json:
        print_json({name: fit.to_json() for name, fit in fits.items()})
        return 0
    for fit in list(fits.values())[:1]:  # the same runs are left out of all
        note_dropped(fit)
    largest = max((c.budget for fit in fits.values() for c in fit.curves), default=0.0)
    lines = []
    for name, fit in fits.items():
        for e in fit.exponents:
            last = fit.curve(e.arm, largest)
            best = last.optimum if last else None
            said = ("-", "-") if e.exponent is None else (f"{e.exponent:.4f}", f"{e.low:.4f} .. {e.high:.4f}")
            lines.append(
                [e.arm, name, *said, size_text(best.x) if best else "-", e.refusal or (last.refusal if last else "")]
            )
    level = f"{args.level:.0%} interval"
    columns = ("arm", "convention", "exponent", level, f"optimum at {budget_text(largest)}", "note")
    print_table(
        columns, sorted(lines, key=lambda line: line[0]), f"the same runs by {args.axis} under every convention"
    )
    return 0
