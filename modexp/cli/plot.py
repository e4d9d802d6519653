"""modexp plot: figures of a study, finished or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modexp.cli.common import add_study, note, parser, study_path, study_records
from modexp.errors import UserError

FIGURES = ("isoflop", "curves")


def main(words: list[str]) -> int:
    p = parser("plot", "Draw a study: PNG, SVG, and every number drawn as CSV.")
    add_study(p)
    p.add_argument(
        "figure",
        choices=FIGURES,
        help="isoflop: loss against size and relative FLOPs; curves: learning curves",
    )
    p.add_argument("--x", default="flops", choices=("flops", "tokens", "steps"), help="axis of the learning curves")
    p.add_argument("--axis", default="params_total", help="size axis of isoflop: params_total, params_active, ...")
    p.add_argument("--out", metavar="DIR", help="where to write (default: the study's directory)")
    args = p.parse_args(words)

    study = study_path(args.study, args.runs_dir)
    out = Path(args.out) if args.out else study
    if args.figure == "isoflop":
        draw_isoflop(study, study_records(study), out, args.axis)
    else:
        draw_curves(study, out, args.x)
    return 0


def unit_of(study: Path) -> str:
    """What the loss is nats of: a byte tokenizer's tokens are bytes."""
    from modexp.runs import run_dirs

    return "byte" if run_dirs(study)[0].config().data.tokenizer == "bytes" else "token"


def draw_isoflop(
    study: Path, rows: Sequence[dict[str, Any]], out: Path | None = None, axis: str = "params_total"
) -> None:
    from modexp.plots import isoflop

    figure = isoflop.draw(rows, out or study, title=study.name, unit=unit_of(study), axis=axis)
    tell(figure.paths)
    if figure.note:
        note(figure.note)


def draw_curves(study: Path, out: Path, x: str) -> None:
    from modexp.plots import curves
    from modexp.runs import run_dirs

    runs = []
    for run in run_dirs(study):
        plan = run.plan()["plan"]
        runs.append({"run": run.name, "arm": plan["arm"], "budget": plan["budget"], "metrics": run.metrics()})
    if not runs:
        raise UserError(f"{study} holds no run", "modexp sweep plans and runs a study")
    tell(curves.draw(runs, out, x, title=study.name, unit=unit_of(study)))


def tell(paths: Sequence[Path]) -> None:
    for path in paths:
        print(path)
