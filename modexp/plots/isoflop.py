"""The frontier figure (MoD paper, Fig. 4): held-out loss against parameters and against forward FLOPs.

Left: one curve an arm and budget over parameters. Right: the same runs over forward FLOPs per token, relative
to the isoFLOP optimum of the baseline at the same budget, so that 1 is "as cheap a step as the best dense
model".
The headline of a conditional arm is its causal loss; its top-k loss, which sees the future, is drawn faintly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modexp.analysis.isoflop import StudyFit, fit_study
from modexp.analysis.points import AXES, Point, Record, baseline_first, baseline_of, select
from modexp.plots import style
from modexp.plots.panel import (
    COST,
    Panel,
    key_of,
    missing,
    note_of,
    references_of,
    require_points,
    scale_of,
    top_k_points,
)
from modexp.wording import budget_text


@dataclass(frozen=True)
class IsoflopFigure:
    """What was written, what the note on the figure says, and both fits."""

    paths: list[Path]
    note: str
    size_fit: StudyFit
    cost_fit: StudyFit


def draw(
    records: Sequence[Record],
    out_dir: Path,
    stem: str = "isoflop",
    *,
    title: str = "",
    unit: str = "token",
    axis: str = "params",
    level: float = 0.90,
) -> IsoflopFigure:
    """Write stem.png, stem.svg, stem.csv (points) and stem_fit.csv (fits) of a study, finished or not.

    ``unit``: of which loss is nats; ``axis``: size on the left panel. UserError while no run is finished.
    """
    points, costs = select(records, axis)[0], select(records, COST)[0]
    require_points(points, records)
    size_fit, cost_fit = (fit_study(records, a, level) for a in (axis, COST))
    baseline = baseline_of(records)
    arms = baseline_first(records)
    budgets = sorted({p.budget for p in points})
    references, borrowed = references_of(cost_fit, costs, baseline)
    scale, label_right = scale_of(references, budgets, baseline)
    lines = [*missing(records, len(points)), *note_of(size_fit, baseline, budgets, references, borrowed, "right: ")]
    note = style.wrapped(lines, 7.2)

    with style.context():
        from matplotlib.lines import Line2D

        shades = dict(zip(budgets, style.shades(len(budgets)), strict=True))
        strokes = {
            (arm, budget): style.stroke(arms, baseline, arm, shades[budget])
            for arm in arms
            for budget in budgets
            if any((p.arm, p.budget) == (arm, budget) for p in points)
        }
        columns = [
            [
                Line2D([], [], **{**stroke.marks(), **stroke.line()}, label=f"{budget_text(budget)}  {arm}")
                for (arm, budget), stroke in strokes.items()
                if arm == column
            ]
            for column in arms
        ]
        top_k = top_k_points(records, axis)
        key = key_of(size_fit, any(p.run in top_k for p in points))
        columns = [c for c in [*style.folded(columns, len(key)), key] if c]
        foot = style.footer_height(max(map(len, columns)), len(note.splitlines()))
        figure = style.new_figure(max(7.2, style.legend_width(columns)), 3.1 + foot)
        grid = figure.add_gridspec(2, 2, height_ratios=[3.1, foot])
        left = figure.add_subplot(grid[0, 0])
        right = figure.add_subplot(grid[0, 1], sharey=left)
        panels = (
            Panel(left, size_fit, points, dict.fromkeys(budgets, 1.0), top_k),
            Panel(right, cost_fit, costs, scale, top_k_points(records, COST)),
        )
        for panel in panels:
            for (arm, budget), stroke in strokes.items():
                panel.curve(arm, budget, stroke)
            panel.finish()
        left.set_xlabel(AXES[axis].label)
        right.set_xlabel(label_right)
        right.tick_params(labelleft=False)
        left.set_ylabel(f"held-out loss (nats per {unit})")
        if title:
            figure.suptitle(title)
        style.footer(figure.add_subplot(grid[1, :]), columns, note)
        paths = style.save(figure, out_dir / stem)
    paths.append(style.save_csv(_point_rows(records, points, costs, axis, references), out_dir / f"{stem}.csv"))
    paths.append(style.save_csv(_fit_rows(size_fit, cost_fit), out_dir / f"{stem}_fit.csv"))
    return IsoflopFigure(paths, note, size_fit, cost_fit)


def _point_rows(
    records: Sequence[Record],
    points: Sequence[Point],
    costs: Sequence[Point],
    axis: str,
    references: dict[float, float],
) -> list[dict[str, Any]]:
    """One row a run, as drawn: its causal loss at the FLOPs that its router spent, its top-k loss at those planned."""
    cost_of, top_k = {p.run: p.x for p in costs}, top_k_points(records, COST)
    rows = []
    for p in points:
        cost, reference = cost_of.get(p.run), references.get(p.budget)
        cost_topk, loss_topk = top_k.get(p.run, (None, None))
        rows.append(
            {
                "run": p.run,
                "arm": p.arm,
                "budget": p.budget,
                "seed": p.seed,
                AXES[axis].key: p.x,
                COST: cost,
                "relative_flops_per_token": cost / reference if cost and reference else None,
                "loss": p.loss,
                "flops_per_token_topk": cost_topk,
                "relative_flops_topk": cost_topk / reference if cost_topk and reference else None,
                "loss_topk": loss_topk,
            }
        )
    return rows


def _fit_rows(*fits: StudyFit) -> list[dict[str, Any]]:
    """One row a curve and axis: the optimum with its interval and the parabola in u = ln x - centre."""
    rows = []
    for fit in fits:
        for curve, row in zip(fit.curves, fit.rows(), strict=True):
            c0, c1, c2 = curve.parabola.coefficients if curve.parabola else (None, None, None)
            centre = curve.parabola.centre if curve.parabola else None
            fitted = {
                "centre": centre,
                "c0": c0,
                "c1": c1,
                "c2": c2,
                "noise_sd": fit.noise_sd,
                "dof": fit.dof,
            }
            rows.append({"axis": fit.axis, "level": fit.level, **row, **fitted})
    return rows
