"""What figures of isoFLOP curves share: points, parabolas and optima over a size or over relative forward FLOPs, what
the FLOPs are relative to, and the sentences for what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from modexp.analysis.curve import MIN_SIZES
from modexp.analysis.isoflop import StudyFit
from modexp.analysis.points import AXES, Point, Record, reason_to_drop
from modexp.errors import UserError
from modexp.plots import style
from modexp.wording import budget_text

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


class Panel:
    """One pair of axes: points, parabolas and optima of a fit, sizes divided by ``references[budget]``.

    ``top_k``, (size, loss) by run, is drawn faintly.
    """

    def __init__(
        self,
        axes: Axes,
        fit: StudyFit,
        points: Sequence[Point],
        references: dict[float, float],
        top_k: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        self.axes, self.fit, self.references, self.top_k = axes, fit, references, top_k or {}
        self.points = [p for p in points if p.budget in references]
        self.relative = any(reference != 1.0 for reference in references.values())

    def curve(
        self,
        arm: str,
        budget: float,
        stroke: style.Stroke,
        areas: Mapping[str, float] | None = None,
    ) -> None:
        """Draw one arm at one budget. ``areas``, by run: of markers, in pt²."""
        mine = [p for p in self.points if (p.arm, p.budget) == (arm, budget)]
        if not mine:
            return
        reference = self.references[budget]
        faint = [(x / reference, loss) for x, loss in (self.top_k[p.run] for p in mine if p.run in self.top_k)]
        if faint:
            self.axes.plot(*zip(*faint, strict=True), **stroke.marks(), alpha=0.3, markersize=3, zorder=2)
        x, y = [p.x / reference for p in mine], [p.loss for p in mine]
        if areas is None:
            self.axes.plot(x, y, **stroke.marks(), zorder=3)
        else:
            self.axes.scatter(x, y, s=[areas[p.run] for p in mine], **stroke.disc(), zorder=3)
        fitted = self.fit.curve(arm, budget)
        if fitted and fitted.parabola and fitted.num_sizes >= MIN_SIZES:
            parabola = fitted.parabola
            grid = np.geomspace(parabola.x_low, parabola.x_high, 100)
            self.axes.plot(grid / reference, [parabola.loss(v) for v in grid], **stroke.line(), zorder=2.5)
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
        x = [
            x / self.references[p.budget]
            for p in self.points
            for x in (p.x, *(self.top_k[p.run][:1] if p.run in self.top_k else ()))
        ]
        if self.relative:
            style.ratio_axis(self.axes, min(x, default=1.0), max(x, default=1.0))
            self.axes.axvline(1.0, color=style.GREY, linewidth=0.8, zorder=1)
        elif x:
            style.size_axis(self.axes, min(x), max(x))


def references_of(fit: StudyFit, points: Sequence[Point], baseline: str) -> tuple[dict[float, float], list[float]]:
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


def scale_of(references: dict[float, float], budgets: Sequence[float], baseline: str) -> tuple[dict[float, float], str]:
    """What FLOPs per token are drawn over, by budget, and the axis' label: as they are while nothing is a reference."""
    label = "forward FLOPs per token"
    return (references, f"{label} / {baseline}'s optimum") if references else (dict.fromkeys(budgets, 1.0), label)


def top_k_points(records: Sequence[Record], axis: str) -> dict[str, tuple[float, float]]:
    """Size and loss that sees the future, by run. The top-k takes just the planned capacity, so its FLOPs are those
    planned; what a causal router spent is its own."""
    key = AXES[axis].key
    return {str(r["run"]): (r[key], r["loss_topk"]) for r in records if r.get("loss_topk") is not None and r.get(key)}


def require_points(points: Sequence[Any], records: Sequence[Record]) -> None:
    """UserError while there is nothing to draw."""
    if not points:
        raise UserError(f"no finished run to draw: {states(records) or 'the study has no runs'}", "try modexp status")


def states(records: Sequence[Record]) -> str:
    """'4 planned, 1 failed, 1 left out of the fit': what is not a point, by status."""
    found = Counter(
        "left out of the fit" if r.get("status") == "done" else str(r.get("status") or "planned")
        for r in records
        if reason_to_drop(r)
    )
    return ", ".join(f"{count} {state}" for state, count in found.items())


def missing(records: Sequence[Record], drawn: int) -> list[str]:
    """How many runs the figure lacks; nothing when it lacks none."""
    others = len(records) - drawn - sum(bool(reason_to_drop(r)) for r in records)
    reasons = [states(records), f"{others} repeated or of unknown size" if others > 0 else ""]
    return [f"{drawn} of {len(records)} runs ({', '.join(filter(None, reasons))})"] if drawn < len(records) else []


def note_of(
    fit: StudyFit,
    baseline: str,
    budgets: Sequence[float],
    references: Mapping[float, float],
    borrowed: Sequence[float],
    where: str = "",
) -> list[str]:
    """What a reader must know and the curves do not show; nothing for a finished study with every optimum.

    ``where``: the panel that is relative, "right: ", of more than one.
    """
    lines = []
    refused = [f"{c.arm} at {budget_text(c.budget)}" for c in fit.curves if not c.optimum]
    if refused:
        lines.append(f"no optimum: {', '.join(refused)}")
    return lines + reference_note(baseline, budgets, references, borrowed, where)


def reference_note(
    baseline: str,
    budgets: Sequence[float],
    references: Mapping[float, float],
    borrowed: Sequence[float],
    where: str = "",
) -> list[str]:
    """Where relative FLOPs are relative to something else than a fitted optimum, or to nothing."""
    lines = []
    if borrowed:
        which = ", ".join(map(budget_text, borrowed))
        lines.append(f"{where}relative to the best {baseline} run where its optimum is not fitted ({which})")
    absent = [budget_text(b) for b in budgets if b not in references]
    if not references:
        lines.append(f"{where}FLOPs are not relative: no {baseline} run is finished")
    elif absent:
        lines.append(f"{where}without {', '.join(absent)}, where no {baseline} run is finished")
    return lines


def key_of(fit: StudyFit, with_top_k: bool) -> list[Any]:
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
