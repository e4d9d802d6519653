"""Held-out loss against forward FLOPs per token, relative to the baseline's isoFLOP optimum at the same budget.

``frontier`` (MoD paper, Fig. 4 right) gives each marker the area of its model's parameters; ``mode`` (Fig. 7) is the
same figure with plain markers, for studies whose arms hold experts, where parameters are no measure of a step. Losses
are causal; those that see the future stand in the CSV and are drawn by ``sampling``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modexp.analysis.isoflop import fit_study
from modexp.analysis.points import Point, Record, baseline_first, baseline_of, select
from modexp.plots import style
from modexp.plots.panel import COST, Panel, key_of, missing, note_of, references_of, require_points, scale_of
from modexp.wording import budget_text, size_text

WIDTH = 5.6  # inches
LARGEST = 100.0  # pt², area of the marker of the largest model: its sample still fits a line of the legend


def draw(
    records: Sequence[Record],
    out_dir: Path,
    stem: str = "frontier",
    *,
    title: str = "",
    unit: str = "token",
    sized: bool = True,
    level: float = 0.90,
) -> style.Drawn:
    """Write stem.png, stem.svg and stem.csv. ``sized``: marker area proportional to parameters.

    UserError while no run is finished.
    """
    points, _ = select(records, COST)
    require_points(points, records)
    fit = fit_study(records, COST, level)
    baseline, arms = baseline_of(records), baseline_first(records)
    budgets = sorted({p.budget for p in points})
    references, borrowed = references_of(fit, points, baseline)
    flops, label_x = scale_of(references, budgets, baseline)
    lines = [*missing(records, len(points)), *note_of(fit, baseline, budgets, references, borrowed)]
    note = style.wrapped(lines, WIDTH)
    params = {str(r["run"]): float(r["params_total"]) for r in records}
    scale = LARGEST / max(params[p.run] for p in points)

    with style.context():
        from matplotlib.lines import Line2D

        columns: list[list[Any]] = []
        for arm in arms:
            column = []
            for budget, shade in zip(budgets, style.shades(len(budgets)), strict=True):
                if any((p.arm, p.budget) == (arm, budget) for p in points):
                    stroke = style.stroke(arms, baseline, arm, shade)
                    label = f"{budget_text(budget)}  {arm}"
                    column.append(Line2D([], [], **{**stroke.marks(), **stroke.line()}, label=label))
            columns.append(column)
        columns = style.folded([c for c in columns if c], 3)
        key = key_of(fit, with_top_k=False)
        key += size_key([params[p.run] for p in points], scale) if sized else []
        columns.append(key)
        columns = [c for c in columns if c]
        foot = style.footer_height(max(map(len, columns)), len(note.splitlines()))
        figure = style.new_figure(WIDTH, 3.6 + foot)
        grid = figure.add_gridspec(2, 1, height_ratios=[3.6, foot])
        axes = figure.add_subplot(grid[0])
        panel = Panel(axes, fit, points, flops)
        for arm in arms:
            for budget, shade in zip(budgets, style.shades(len(budgets)), strict=True):
                if budget in flops:
                    areas = {run: scale * size for run, size in params.items()} if sized else None
                    panel.curve(arm, budget, style.stroke(arms, baseline, arm, shade), areas)
        panel.finish()
        axes.set_xlabel(label_x)
        axes.set_ylabel(f"held-out loss (nats per {unit})")
        if title:
            figure.suptitle(title)
        style.footer(figure.add_subplot(grid[1]), columns, note)
        paths = style.save(figure, out_dir / stem)
    rows = point_rows(records, points, references)
    return style.Drawn([*paths, style.save_csv(rows, out_dir / f"{stem}.csv")], note)


def size_key(sizes: Sequence[float], scale: float) -> list[Any]:
    """Legend entries for the largest model, the middle one and the smallest, where their areas differ to the eye."""
    from matplotlib.lines import Line2D

    ordered = sorted(set(sizes))
    shown: list[float] = []
    for size in (ordered[-1], ordered[len(ordered) // 2], ordered[0]):
        if not shown or shown[-1] / size >= 1.5:
            shown.append(size)
    look: dict[str, Any] = {"marker": "o", "linestyle": "none", "markerfacecolor": "none"}
    return [
        # a Line2D's marker is given by its diameter, scatter's by the area of the square around it: both in points
        Line2D(
            [], [], color=style.GREY, markersize=(scale * size) ** 0.5, label=f"{size_text(size)} parameters", **look
        )
        for size in shown
    ]


def point_rows(
    records: Sequence[Record], points: Sequence[Point], references: Mapping[float, float]
) -> list[dict[str, Any]]:
    """One row a run; the ratio stays empty where the baseline has no run."""
    by_run = {str(r["run"]): r for r in records}
    return [
        {
            "run": p.run,
            "arm": p.arm,
            "budget": p.budget,
            "seed": p.seed,
            "params_total": by_run[p.run]["params_total"],
            COST: p.x,
            "relative_flops_per_token": p.x / references[p.budget] if p.budget in references else None,
            "loss": p.loss,
            "loss_topk": by_run[p.run].get("loss_topk"),
        }
        for p in points
    ]
