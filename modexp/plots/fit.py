"""What a fit says of scaling: the optimal size and the optimal loss against training FLOPs, a line an arm.

Left: optima with their Fieller intervals and the line of each arm's exponent (Hoffmann et al. 2022, Approach 2).
Right: the losses at those optima. In both, where an arm's loss surface is fitted (vpnls), what the surface predicts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modexp.analysis.curve import CurveFit
from modexp.analysis.points import AXES, Record
from modexp.analysis.report import Report
from modexp.errors import UserError
from modexp.plots import style
from modexp.plots.fitted import (
    arms_in,
    by_reason,
    curves_named,
    exponent_text,
    legend_columns,
    refusals_note,
    runs_note,
    sheet,
    warnings_note,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 7.2  # inches
METHOD = "vpnls"
BESIDE = 0.012  # share of the axis by which arms stand apart at one budget, so that their bars do not hide each other
ALONE = 0.08  # the same with a single budget
RAW: dict[str, Any] = {"marker": "x", "linestyle": "none", "markersize": 4.5, "markeredgewidth": 1.1}


@dataclass(frozen=True)
class Line:
    """One arm's lines over training FLOPs (n,): NaN where there is no exponent, or no surface."""

    arm: str
    flops: np.ndarray
    x: np.ndarray
    x_low: np.ndarray
    x_high: np.ndarray
    surface_x: np.ndarray
    surface_loss: np.ndarray


def draw(
    report: Report,
    records: Sequence[Record],
    out_dir: Path,
    stem: str = "fit",
    *,
    title: str = "",
    unit: str = "token",
) -> style.Drawn:
    """Write stem.png, stem.svg, stem.csv (a row a curve) and stem_lines.csv (the lines, sampled).

    UserError while no curve has an optimum or three sizes.
    """
    fit = report.fit
    arms = arms_in(fit)
    curves = [c for c in fit.curves if c.optimum or c.parabola]
    if not curves:
        raise UserError(
            "no optimum to draw: no arm has runs of 3 sizes at one budget", "modexp status says what is missing"
        )
    lines = [line_of(report, arm, curves) for arm in arms if any(c.arm == arm for c in curves)]

    low, high = size_range(curves, lines)
    note = style.wrapped(
        [*runs_note(fit, records, len(report.points)), *note_of(report, curves, style.size_limits(low, high))], WIDTH
    )

    with style.context():
        handles = [arm_handle(report, arm, arms) for arm in arms]
        columns = legend_columns(handles, key_of(fit.level, curves, lines), WIDTH)
        figure, body, _ = sheet(WIDTH, 3.1, columns, note)
        left, right = body.subplots(1, 2)
        flops = [c.flops for c in curves]
        for axes in (left, right):
            style.flops_axis(axes, min(flops), max(flops))
            axes.set_xlabel("training FLOPs" + (" (arms side by side)" if len(arms) > 1 else ""))
        style.size_axis(left, low, high, "y")
        for line in lines:
            draw_line(line, left, right, style.stroke(arms, fit.baseline, line.arm, 0.75))
        share = BESIDE if len({c.budget for c in curves}) > 1 else ALONE
        for curve in curves:
            shift = share * (arms.index(curve.arm) - (len(arms) - 1) / 2)
            draw_curve(curve, left, right, style.stroke(arms, fit.baseline, curve.arm, 0.75), shift)
        left.set_ylabel(f"optimum, {AXES[fit.axis].label}")
        right.set_ylabel(f"held-out loss there (nats per {unit})")
        if title:
            figure.suptitle(title)
        paths = style.save(figure, out_dir / stem)
    paths.append(style.save_csv(curve_rows(report), out_dir / f"{stem}.csv"))
    paths.append(style.save_csv(line_rows(report, lines), out_dir / f"{stem}_lines.csv"))
    return style.Drawn(paths, note)


def line_of(report: Report, arm: str, curves: Sequence[CurveFit]) -> Line:
    """Sampled between the smallest and the largest of the arm's budgets that are drawn; its exponent's line only
    between those that have an optimum, as nothing speaks for it beyond them."""
    e, surface = report.fit.exponent(arm), report.surface(arm, METHOD)
    mine = [c for c in curves if c.arm == arm]
    fitted = [c.flops for c in mine if c.optimum]
    flops = np.geomspace(min(c.flops for c in mine), max(c.flops for c in mine), 60)
    flops = np.union1d(flops, fitted)  # so that the line reaches both its ends
    x, x_low, x_high, surface_x, surface_loss = np.full((5, len(flops)), np.nan)
    if e.exponent is not None:
        for i in np.flatnonzero((flops >= min(fitted)) & (flops <= max(fitted))):
            x[i] = e.optimum(flops[i])
            margin = report.fit.noise.margin(e.variance(flops[i]))
            x_low[i], x_high[i] = x[i] * math.exp(-margin), x[i] * math.exp(margin)
    if surface.surface and surface.cost:
        best = [surface.surface.optimum(budget, surface.cost) for budget in flops.tolist()]
        surface_x, surface_loss = np.array([b.x for b in best]), np.array([b.loss for b in best])
    return Line(arm, flops, x, x_low, x_high, surface_x, surface_loss)


def draw_line(line: Line, left: Axes, right: Axes, stroke: style.Stroke) -> None:
    there = np.isfinite(line.x)
    if there.any():
        left.fill_between(
            line.flops[there], line.x_low[there], line.x_high[there], color=stroke.color, alpha=0.13, linewidth=0
        )
        left.plot(line.flops[there], line.x[there], **stroke.line(), zorder=2.5)
    if np.isfinite(line.surface_x).all():
        for axes, values in ((left, line.surface_x), (right, line.surface_loss)):
            axes.plot(line.flops, values, color=stroke.color, linestyle=":", linewidth=1.1, zorder=2)


def draw_curve(curve: CurveFit, left: Axes, right: Axes, stroke: style.Stroke, shift: float) -> None:
    """The optimum with its interval; a cross at the best run where the fit refuses. ``shift``: share of the axis."""
    start, end = left.get_xlim()
    flops = curve.flops * (end / start) ** shift
    best = curve.optimum
    if best is None:
        left.plot(flops, curve.raw_minimum, color=stroke.color, **RAW, zorder=3)
        right.plot(flops, min(p.loss for p in curve.points), color=stroke.color, **RAW, zorder=3)
        return
    for axes, low, high, value in (
        (left, best.x_low, best.x_high, best.x),
        (right, best.loss_low, best.loss_high, best.loss),
    ):
        axes.plot([flops] * 2, [low, high], color=stroke.color, linewidth=0.9, marker="_", markersize=4, zorder=3)
        axes.plot(flops, value, **stroke.marks(), zorder=4)


def size_range(curves: Sequence[CurveFit], lines: Sequence[Line]) -> tuple[float, float]:
    """What is drawn, except where an interval leaves the sizes that were trained: Fieller's may end anywhere."""
    values = []
    for c in curves:
        if c.optimum:
            sizes = [p.x for p in c.points]
            values += [c.optimum.x, max(c.optimum.x_low, min(sizes)), min(c.optimum.x_high, max(sizes))]
        else:
            values.append(c.raw_minimum)
    trained = [p.x for c in curves for p in c.points]
    for line in lines:
        drawn = np.concatenate([line.x_low, line.x_high, line.surface_x])
        values += np.clip(drawn[np.isfinite(drawn)], min(trained), max(trained)).tolist()
    return min(values), max(values)


def note_of(report: Report, curves: Sequence[CurveFit], limits: tuple[float, float]) -> list[str]:
    fit = report.fit
    lines = []
    if refused := [c for c in curves if not c.optimum]:
        lines.append(f"no optimum: {curves_named(refused)}")
    if few := [c for c in fit.curves if c not in curves]:
        lines.append(f"not drawn, with fewer than 3 sizes: {curves_named(few)}")
    cut = [c for c in curves if c.optimum and (c.optimum.x_low < limits[0] or c.optimum.x_high > limits[1])]
    if cut:
        lines.append(f"left: intervals that leave the frame: {curves_named(cut)}")
    surfaces = by_reason((s.arm, s.refusal) for s in report.surfaces if s.method == METHOD and s.refusal)
    return [
        *lines,
        *refusals_note(fit),
        *warnings_note(fit),
        *(f"no surface for {arms}: {reason}" for arms, reason in surfaces),
    ]


def arm_handle(report: Report, arm: str, arms: Sequence[str]) -> Any:
    from matplotlib.lines import Line2D

    stroke = style.stroke(arms, report.fit.baseline, arm, 0.75)
    label = f"{arm}: {exponent_text(report.fit.exponent(arm))}"
    return Line2D([], [], **{**stroke.marks(), **stroke.line()}, label=label)


def key_of(level: float, curves: Sequence[CurveFit], lines: Sequence[Line]) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = []
    if any(c.optimum for c in curves):
        label = f"{level:.0%} interval"
        label += "; shaded: of the line" if any(np.isfinite(line.x).any() for line in lines) else ""
        bar: dict[str, Any] = {"linewidth": 0.9, "marker": "|", "markersize": 5}
        handles.append(Line2D([], [], color=style.GREY, **bar, label=label))
    if any(not c.optimum for c in curves):
        handles.append(Line2D([], [], color=style.GREY, **RAW, label="best run, no optimum"))
    if any(np.isfinite(line.surface_x).all() for line in lines):
        handles.append(Line2D([], [], color=style.GREY, linestyle=":", label=f"optimum of the surface ({METHOD})"))
    return handles


def curve_rows(report: Report) -> list[dict[str, Any]]:
    """One row a curve: the optimum as drawn, the best run where there is none."""
    rows = []
    for curve, row in zip(report.fit.curves, report.fit.rows(), strict=True):
        best = min(curve.points, key=lambda p: p.loss) if curve.points else None
        flops = {"flops": curve.flops if curve.points else None}
        raw = {"raw_minimum": best.x if best else None, "raw_loss": best.loss if best else None}
        note = row.pop("note")
        rows.append({"axis": report.fit.axis, "level": report.fit.level, **row, **flops, **raw, "note": note})
    return rows


def line_rows(report: Report, lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The lines, point by point, with the exponent that the legend names."""
    rows: list[dict[str, Any]] = []
    for line in lines:
        e = report.fit.exponent(line.arm)
        named = {"exponent": e.exponent, "exponent_low": e.low, "exponent_high": e.high}
        columns = {k: getattr(line, k).tolist() for k in ("flops", "x", "x_low", "x_high", "surface_x", "surface_loss")}
        for values in zip(*columns.values(), strict=True):
            cells = {k: None if math.isnan(v) else v for k, v in zip(columns, values, strict=True)}
            rows.append({"arm": line.arm, **cells, **named})
    return rows
