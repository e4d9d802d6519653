"""The frontier figure (MoD paper, Fig. 4): held-out loss against parameters and against forward FLOPs.

Left: one curve an arm and budget over parameters. Right: the same runs over forward FLOPs per token, relative
to the isoFLOP optimum of the baseline at the same budget, so that 1 is "as cheap a step as the best dense
model".
The headline of a conditional arm is its causal loss; its top-k loss, which sees the future, is drawn faintly.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modexp.analysis.isoflop import StudyFit, fit_study
from modexp.analysis.points import AXES, Point, Record, arms_of, baseline_of, reason_to_drop, select
from modexp.analysis.wording import budget_text
from modexp.errors import UserError
from modexp.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COST = "flops_per_token"
STAR: dict[str, Any] = {
    "marker": "*",
    "markersize": 10,
    "markeredgecolor": "white",
    "markeredgewidth": 0.6,
    "linestyle": "none",
}


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
    axis: str = "params_total",
    level: float = 0.90,
) -> IsoflopFigure:
    """Write stem.png, stem.svg, stem.csv (points) and stem_fit.csv (fits) of a study, finished or not.

    ``unit``: of which loss is nats; ``axis``: size on the left panel. UserError while no run is finished.
    """
    points, _ = select(records, axis)
    if not points:
        states = _missing(records) or "the study has no runs"
        raise UserError(f"no finished run to draw: {states}", "try modexp status")
    size_fit, cost_fit = (fit_study(records, a, level) for a in (axis, COST))
    baseline = baseline_of(records)
    arms = sorted(arms_of(records), key=lambda arm: arm != baseline)  # the baseline first, else as they come
    budgets = sorted({p.budget for p in points})
    references, borrowed = _references(cost_fit, select(records, COST)[0], baseline)
    note = _note(records, len(points), size_fit, baseline, budgets, references, borrowed)

    with style.context():
        from matplotlib.lines import Line2D

        top_k = {str(r["run"]): r["loss_topk"] for r in records if r.get("loss_topk") is not None}
        key = _key(size_fit, any(p.run in top_k for p in points))
        foot = style.footer_height(max(len(budgets), len(key)), len(note.splitlines()))
        figure = style.new_figure(max(7.2, 1.55 * (len(arms) + 1)), 3.1 + foot)
        grid = figure.add_gridspec(2, 2, height_ratios=[3.1, foot])
        left = figure.add_subplot(grid[0, 0])
        right = figure.add_subplot(grid[0, 1], sharey=left)
        panels = (
            Panel(left, size_fit, points, dict.fromkeys(budgets, 1.0)),
            Panel(right, cost_fit, select(records, COST)[0], references),
        )
        columns: list[list[Any]] = []
        for arm in arms:
            column = []
            for budget, shade in zip(budgets, style.shades(len(budgets)), strict=True):
                stroke = style.stroke(arms, baseline, arm, shade)
                if any((p.arm, p.budget) == (arm, budget) for p in points):
                    for panel in panels:
                        panel.curve(arm, budget, stroke, top_k)
                    label = f"{budget_text(budget)}  {arm}"
                    column.append(Line2D([], [], **{**stroke.marks(), **stroke.line()}, label=label))
            columns.append(column)
        columns.append(key)
        for panel in panels:
            panel.finish()
        left.set_xlabel(AXES[axis])
        right.set_xlabel(f"forward FLOPs per token / {baseline}'s optimum")
        right.tick_params(labelleft=False)
        left.set_ylabel(f"held-out loss (nats per {unit})")
        if title:
            figure.suptitle(title)
        style.footer(figure.add_subplot(grid[1, :]), [c for c in columns if c], note)
        paths = style.save(figure, out_dir / stem)
    paths.append(style.save_csv(_point_rows(records, points, axis, references), out_dir / f"{stem}.csv"))
    paths.append(style.save_csv(_fit_rows(size_fit, cost_fit), out_dir / f"{stem}_fit.csv"))
    return IsoflopFigure(paths, note, size_fit, cost_fit)


class Panel:
    """One pair of axes: points, parabolas and optima of a fit, sizes divided by ``references[budget]``."""

    def __init__(self, axes: Axes, fit: StudyFit, points: Sequence[Point], references: dict[float, float]) -> None:
        self.axes, self.fit, self.references = axes, fit, references
        self.points = [p for p in points if p.budget in references]
        self.relative = fit.axis == COST

    def curve(self, arm: str, budget: float, stroke: style.Stroke, top_k: dict[str, float]) -> None:
        mine = [p for p in self.points if (p.arm, p.budget) == (arm, budget)]
        if not mine:
            return
        reference = self.references[budget]
        faint = [(p.x / reference, top_k[p.run]) for p in mine if p.run in top_k]
        if faint:
            self.axes.plot(*zip(*faint, strict=True), **stroke.marks(), alpha=0.3, markersize=3, zorder=2)
        self.axes.plot([p.x / reference for p in mine], [p.loss for p in mine], **stroke.marks(), zorder=3)
        fitted = self.fit.curve(arm, budget)
        if fitted and fitted.parabola and fitted.num_sizes >= 5:
            parabola = fitted.parabola
            x = np.geomspace(parabola.x_low, parabola.x_high, 100)
            self.axes.plot(x / reference, [parabola.loss(v) for v in x], **stroke.line(), zorder=2.5)
        if fitted and fitted.optimum:
            best = fitted.optimum
            self.axes.plot(
                [best.x_low / reference, best.x_high / reference],
                [best.loss] * 2,
                color=stroke.color,
                linewidth=0.9,
                marker="|",
                markersize=5,
                zorder=4,
            )
            self.axes.plot(best.x / reference, best.loss, color=stroke.color, **STAR, zorder=5)

    def finish(self) -> None:
        x = [p.x / self.references[p.budget] for p in self.points]
        if self.relative:
            style.ratio_axis(self.axes, min(x, default=1.0), max(x, default=1.0))
            self.axes.axvline(1.0, color=style.GREY, linewidth=0.8, zorder=1)
        else:
            style.size_axis(self.axes, min(x), max(x))


def _references(fit: StudyFit, points: Sequence[Point], baseline: str) -> tuple[dict[float, float], list[float]]:
    """FLOPs per token of the baseline's optimum by budget, and the budgets where its best run stands in."""
    references, borrowed = {}, []
    for curve in fit.curves:
        runs = [p for p in points if (p.arm, p.budget) == (baseline, curve.budget)]
        if curve.arm != baseline or not runs:
            continue
        if curve.optimum:
            references[curve.budget] = curve.optimum.x
        else:
            references[curve.budget] = min(runs, key=lambda p: p.loss).x
            borrowed.append(curve.budget)
    return references, borrowed


def _missing(records: Sequence[Record]) -> str:
    """'4 planned, 1 failed, 1 left out of the fit': what is not a point, by status."""
    states = Counter(
        "left out of the fit" if r.get("status") == "done" else str(r.get("status") or "planned")
        for r in records
        if reason_to_drop(r)
    )
    return ", ".join(f"{count} {state}" for state, count in states.items())


def _note(
    records: Sequence[Record],
    drawn: int,
    fit: StudyFit,
    baseline: str,
    budgets: Sequence[float],
    references: dict[float, float],
    borrowed: Sequence[float],
) -> str:
    """What a reader must know and the curves do not show; empty for a finished study with every optimum."""
    lines = []
    if drawn < len(records):
        lines.append(f"{drawn} of {len(records)} runs ({_missing(records)})")
    refused = [f"{c.arm} at {budget_text(c.budget)}" for c in fit.curves if not c.optimum]
    if refused:
        lines.append(f"no optimum: {', '.join(refused)}")
    if borrowed:
        where = ", ".join(map(budget_text, borrowed))
        lines.append(f"right: relative to the best {baseline} run where its optimum is not fitted ({where})")
    absent = [budget_text(b) for b in budgets if b not in references]
    if absent:
        lines.append(f"right: without {', '.join(absent)}, where no {baseline} run is finished")
    return "\n".join(part for line in lines for part in textwrap.wrap(line, 140))


def _key(fit: StudyFit, with_top_k: bool) -> list[Any]:
    """Legend entries for what the curves share, as far as it is drawn."""
    from matplotlib.lines import Line2D

    bar: dict[str, Any] = {"linewidth": 0.9, "marker": "|", "markersize": 5}
    handles = []
    if any(curve.optimum for curve in fit.curves):
        handles.append(Line2D([], [], color=style.GREY, **STAR, label="fitted optimum"))
        handles.append(Line2D([], [], color=style.GREY, **bar, label=f"its {fit.level:.0%} interval"))
    if with_top_k:
        faint: dict[str, Any] = {"marker": "s", "markersize": 3, "linestyle": "none", "alpha": 0.4}
        handles.append(Line2D([], [], color=style.GREY, **faint, label="top-k (sees the future)"))
    return handles


def _point_rows(
    records: Sequence[Record], points: Sequence[Point], axis: str, references: dict[float, float]
) -> list[dict[str, Any]]:
    by_run = {str(r["run"]): r for r in records}
    rows = []
    for p in points:
        record = by_run[p.run]
        cost, reference = record.get(COST), references.get(p.budget)
        rows.append(
            {
                "run": p.run,
                "arm": p.arm,
                "budget": p.budget,
                "seed": p.seed,
                axis: p.x,
                COST: cost,
                "relative_flops_per_token": cost / reference if cost and reference else None,
                "loss": p.loss,
                "loss_topk": record.get("loss_topk"),
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
