"""modexp plot: figures of a study, finished or not."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modexp.cli.common import (
    Parser,
    add_convention,
    add_exclusions,
    add_study,
    note,
    parser,
    study_path,
    study_records,
    table_path,
)
from modexp.errors import UserError

if TYPE_CHECKING:
    from modexp.runs import RunDir

FIGURES = {
    "isoflop": "loss against parameters and against relative FLOPs, with optima (Fig. 3 left, Fig. 4)",
    "frontier": "loss against relative FLOPs per forward pass, marker area by parameters (Fig. 4 right)",
    "curves": "learning curves; with --run, FLOPs a step and steps per second beside them (Fig. 3 right)",
    "capacity": "loss against capacity, a line for each routing frequency (tuning of Fig. 3)",
    "routing": "block or bypass by token and layer of a --text, router weights, entropy (Fig. 5)",
    "sampling": "causal beside top-k loss, run by run (Fig. 6 left)",
    "predictor": "the predictor's accuracy, precision and recall against the step (Fig. 6 right)",
    "mode": "loss against relative FLOPs per forward pass, all arms (Fig. 7)",
    "fit": "optimum and optimal loss against training FLOPs, exponents, the loss surface; also of a CSV",
    "residuals": "what parabolas and loss surface leave over, outliers by name; also of a CSV",
    "exponents": "exponents by every method and with a budget left out, with intervals; also of a CSV",
    "conventions": "exponents and arms compared under every FLOP convention",
}
FITS = ("fit", "residuals", "exponents")  # those of a whole report, which a table has too
# which figures a flag speaks to; given to another one it is refused
FLAGS = {
    "x": ("curves",),
    "axis": ("isoflop", *FITS, "conventions"),
    "level": ("isoflop", "frontier", "mode", *FITS, "conventions"),
    "convention": FITS,
    "columns": FITS,
    "nearest": FITS,
    "drop_highest": FITS,
    "drop_outliers": FITS,
    "run": ("curves", "predictor", "routing"),
    "text": ("routing",),
}


def flags() -> Parser:
    p = parser("plot", "Draw a study: PNG, SVG, and every number drawn as CSV.")
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.epilog = "figures\n" + "\n".join(f"  {name:<10} {text}" for name, text in FIGURES.items())
    add_study(p)
    p.add_argument("figure", choices=FIGURES, metavar="FIGURE", help="one of those below")
    p.add_argument("name", nargs="?", metavar="STUDY | FILE.csv", help="as --study; fit, residuals, exponents: a CSV")
    p.add_argument("--x", choices=("flops", "tokens", "steps"), help="axis of the learning curves (default: flops)")
    p.add_argument("--axis", metavar="AXIS", help="size axis of isoflop and fits: params (default), active, ...")
    add_convention(p)
    p.add_argument("--columns", metavar="NAME=COLUMN,...", help="of a CSV, as of modexp fit")
    add_exclusions(p)
    p.add_argument(
        "--run", action="append", metavar="NAME", help="name or path, of curves, predictor, routing; repeatable"
    )
    p.add_argument("--text", help="what routing routes")
    p.add_argument("--out", metavar="DIR", help="where to write (default: the study; of a CSV: here)")
    return p


def main(words: list[str]) -> int:
    p = flags()
    args = p.parse_args(words)
    for flag, figures in FLAGS.items():
        if getattr(args, flag) != p.get_default(flag) and args.figure not in figures:
            name = flag.replace("_", "-")
            raise UserError(f"--{name} says nothing to the figure {args.figure}", f"it is for {', '.join(figures)}")

    axis = args.axis or "params"
    if args.figure in FITS:
        from modexp.cli.plot_fits import draw_fit

        tell_drawn(draw_fit(args, axis))
        return 0
    if table := table_path(args.study or args.name):
        raise UserError(f"{table} is a table, and {args.figure} draws a study", f"of a table: {', '.join(FITS)}")
    study = study_path(args.study or args.name or study_of(args.run), args.runs_dir)
    out = Path(args.out) if args.out else study
    if args.figure == "curves":
        draw_curves(study, out, args.x or "flops", args.run)
    elif args.figure == "predictor":
        draw_predictor(study, out, args.run)
    elif args.figure == "routing":
        draw_routing(study, out, args.run, args.text)
    elif args.figure == "conventions":
        from modexp.cli.plot_fits import draw_conventions

        tell_drawn(draw_conventions(study, out, axis, args.level))
    else:
        draw_records(study, out, args.figure, axis, args.level)
    return 0


def study_of(names: Sequence[str] | None) -> str | None:
    """The study of --run runs/STUDY/RUN, as eval and generate take it."""
    folders = {str(Path(name).parent) for name in names or () if len(Path(name).parts) > 1}
    return folders.pop() if len(folders) == 1 else None


def unit_of(study: Path) -> str:
    """What the loss is nats of: a byte tokenizer's tokens are bytes."""
    from modexp.runs import run_dirs

    return "byte" if run_dirs(study)[0].config().data.tokenizer == "bytes" else "token"


def draw_records(study: Path, out: Path, name: str, axis: str, level: float) -> None:
    from modexp.analysis.points import is_guard
    from modexp.plots import capacity, frontier, sampling
    from modexp.runs import RunDir

    rows = [row for row in study_records(study) if not is_guard(row)]
    look: dict[str, Any] = {"title": study.name, "unit": unit_of(study)}
    if name == "isoflop":
        draw_isoflop(study, rows, out, axis, level)
    elif name == "capacity":
        for row in rows:  # arms may differ in any of them, and one line is of arms that differ in capacity alone
            row["settings"] = RunDir(study / row["run"]).plan().get("settings")
        tell_drawn(capacity.draw(rows, out, **look))
    elif name == "sampling":
        tell_drawn(sampling.draw(rows, out, **look))
    else:
        tell_drawn(frontier.draw(rows, out, name, **look, sized=name == "frontier", level=level))


def draw_isoflop(
    study: Path, rows: Sequence[dict[str, Any]], out: Path | None = None, axis: str = "params", level: float = 0.90
) -> None:
    from modexp.analysis.points import is_guard
    from modexp.plots import isoflop

    rows = [row for row in rows if not is_guard(row)]
    tell_drawn(isoflop.draw(rows, out or study, title=study.name, unit=unit_of(study), axis=axis, level=level))


MOST_CURVES = 200  # each has a line of the legend


def draw_curves(study: Path, out: Path, x: str, names: Sequence[str] | None) -> None:
    from modexp.analysis.points import baseline_of
    from modexp.plots import curves

    runs = []
    drawn = chosen(study, names)
    if len(drawn) > MOST_CURVES:
        raise UserError(
            f"the learning curves of {len(drawn):,} runs are more than one figure can tell apart, {MOST_CURVES}",
            "choose some of them: --run RUN --run RUN",
        )
    for run in drawn:
        plan, metrics = run.plan()["plan"], run.metrics()
        row = {"run": run.name, "arm": plan["arm"], "budget": plan["budget"], "metrics": metrics}
        if names:
            row["flops_per_step"] = plan["training_flops_per_sequence"] * plan["batch_size"]
            row["steps_per_second"] = curves.steps_per_second(metrics, plan["sequence_length"] * plan["batch_size"])
        runs.append(row)
    baseline = baseline_of([run.plan()["plan"] for run in chosen(study, None)])  # whichever runs are drawn
    tell_drawn(curves.draw(runs, out, x, title=study.name, unit=unit_of(study), baseline=baseline))


def draw_predictor(study: Path, out: Path, names: Sequence[str] | None) -> None:
    from modexp.plots import predictor

    runs = []
    for run in chosen(study, names):
        plan, model = run.plan()["plan"], run.config().model
        if model.predicts:
            # what is logged of a staged model is of both its choices, of tokens and of experts
            is_depth = not hasattr(model, "experts")
            share = predictor.share_of(getattr(model, "capacity", None), plan["sequence_length"]) if is_depth else None
            row = {"run": run.name, "arm": plan["arm"], "budget": plan["budget"], "share": share}
            runs.append({**row, "metrics": run.metrics()})
    if not runs:
        raise UserError(f"no run of {study.name} has a predictor", "arms with model.causal=predictor have")
    tell_drawn(predictor.draw(runs, out, title=study.name))


def draw_routing(study: Path, out: Path, names: Sequence[str] | None, text: str | None) -> None:
    if not text:
        raise UserError("routing is drawn of a text, and none is given", "try --text 'The quick brown fox'")
    if names and len(names) > 1:
        raise UserError("routing is drawn of one run", "give --run once")
    run = chosen(study, names)[0] if names else best_routed(study)
    tell_drawn(routing_of(run, text, out, study.name))


def routing_of(run: RunDir, text: str, out: Path, title: str) -> Any:
    """Run the text through the model of ``run`` and draw what its routers did."""
    from modexp.loading import load
    from modexp.models.inspect import inspect
    from modexp.plots import routing

    loaded = load(run.path)
    data, model = loaded.config.data, loaded.config.model
    if not model.has_routing:
        raise UserError(f"{run.name} is dense: no block routes", "name a run of a routed arm")
    tokenizer = loaded.tokenizer
    tokens = tokenizer.encode([text.encode()])[0][:-1]  # without the separator
    if len(tokens) > data.sequence_length:
        raise UserError(
            f"the text has {len(tokens)} tokens, and {run.name} reads {data.sequence_length} at a time", "shorten it"
        )
    seen = inspect(loaded.model, model, tokens)
    causal = getattr(model, "causal", None)
    rules = {"predictor": "the predictors", "auxiliary": "the routers' sign (auxiliary loss)"}
    rule = rules.get(str(causal), "each token's own weight") if seen.is_causal else "top-k, which sees the future"
    drawn = routing.Text(
        tokenizer.pieces(tokens.tolist()),
        seen.layers,
        seen.taken,
        seen.weights,
        seen.entropy,
        rule,
        is_logit=causal == "auxiliary",
    )
    unit = "byte" if data.tokenizer == "bytes" else "token"
    return routing.draw(drawn, out, title=f"{title}: {run.name}", unit=unit)


def best_routed(study: Path) -> RunDir:
    """The finished routed run of the lowest loss, whose name is told."""
    from modexp.analysis.records import records
    from modexp.runs import RunDir

    rows = [r for r in records(study) if r["status"] == "done" and r["routed"]]
    if not rows:
        raise UserError(f"no routed run of {study.name} is finished", "name one that has a checkpoint with --run RUN")
    best = min(rows, key=lambda r: r["loss_topk"] if r["loss"] is None else r["loss"])
    note(f"run {best['run']} (the lowest loss of the routed ones)")
    return RunDir(study / best["run"])


def chosen(study: Path, names: Sequence[str] | None) -> list[RunDir]:
    """The runs of these names, in their order; where none is given all of the study but its guard runs, each arm's by
    budget and size."""
    from modexp.runs import run_dirs

    runs = {run.name: run for run in run_dirs(study)}
    if not runs:
        raise UserError(f"{study} holds no run", "modexp sweep plans and runs a study")
    names = [Path(name).name for name in names or ()]
    for name in names:
        if name not in runs:
            import difflib

            near = difflib.get_close_matches(name, runs, n=3, cutoff=0.3)
            raise UserError(
                f"--run {name} is no run of {study.name}", f"did you mean {' or '.join(near)}?" if near else ""
            )
    if names:
        return [runs[name] for name in dict.fromkeys(names)]
    plans = {name: run.plan()["plan"] for name, run in runs.items()}
    order = sorted(plans, key=lambda name: [plans[name][key] for key in ("arm", "budget", "flops_per_token", "seed")])
    return [runs[name] for name in order if plans[name].get("lr_scale", 1.0) == 1]


def tell_drawn(drawn: Any) -> None:
    """The files on stdout; on stderr what is missing."""
    for path in drawn.paths:
        print(path)
    if drawn.note:
        note(drawn.note)
