"""What the fits leave over, run by run: of the parabolas (left) and of the loss surface (right).

A fit that follows its runs leaves scatter; what bends is the fit's own error. On over-wide grids a parabola leaves what
comes after it in size, a cubic and a quartic, so such a curve is drawn through each arm's residuals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modexp.analysis.outliers import outliers
from modexp.analysis.points import AXES, Record
from modexp.analysis.report import ENOUGH_POINTS, Report
from modexp.analysis.studentised import far_runs
from modexp.errors import UserError
from modexp.plots import style
from modexp.plots.fitted import arms_in, by_reason, curves_named, legend_columns, runs_note, shade_key, sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 7.2  # inches
METHOD = "approach3"
CROWD = 100  # runs from which markers are smaller
DEGREE = 4
APART = 0.02  # in logarithms: FLOPs of one budget differ by less
MIN_RUNS = 10  # of an arm for a curve: two parabolas of five runs leave four residuals that are free
LABELS = 5  # runs that one panel names; the CSV marks them all


@dataclass(frozen=True)
class Residual:
    """One run in one panel. ``x``: size over the optimum, over the curve's middle size where there is none, or training
    FLOPs; ``y``: nats, or percent of the loss."""

    run: str
    arm: str
    budget: float
    x: float
    y: float
    is_outlier: bool
    is_refused: bool = False  # of a curve without an optimum


@dataclass(frozen=True)
class Trend:
    """The curve through one arm's residuals; x, y (n,)."""

    arm: str
    x: np.ndarray
    y: np.ndarray


def draw(
    report: Report, records: Sequence[Record], out_dir: Path, stem: str = "residuals", *, title: str = ""
) -> style.Drawn:
    """Write stem.png, stem.svg, stem.csv (a row a run) and stem_trends.csv (the curves, sampled).

    UserError where there is neither a curve with a run to spare nor a surface.
    """
    fit = report.fit
    arms = arms_in(fit)
    left_over, off_surface = of_parabolas(report), of_surfaces(report)
    if not left_over and not off_surface:
        reasons = [c.refusal for c in fit.curves][:1] + [s.refusal for s in report.surfaces if s.refusal][:1]
        raise UserError(
            f"no residuals to draw: no curve has runs to spare, no arm a surface ({'; '.join(reasons) or 'no runs'})",
            "modexp status says what is missing",
        )
    trends = [trends_of([r for r in left_over if not r.is_refused]), trends_of(off_surface)]
    budgets = sorted({r.budget for r in (*left_over, *off_surface)})
    shade = dict(zip(budgets, style.shades(len(budgets)), strict=True))
    lines = [*runs_note(fit, records, len(report.points)), *note_of(report, left_over, off_surface)]
    note = style.wrapped(lines, WIDTH)

    with style.context():
        columns = key_of(report, arms, budgets, left_over, any(trends))
        figure, body, _ = sheet(WIDTH, 3.1, columns, note)
        left, right = body.subplots(1, 2)
        for axes, residuals, curves in ((left, left_over, trends[0]), (right, off_surface, trends[1])):
            axes.axhline(0.0, color=style.GREY, linewidth=0.8, zorder=1)
            for r in residuals:
                look = style.stroke(arms, fit.baseline, r.arm, shade[r.budget]).marks()
                look |= {"markersize": 3.6 if len(residuals) < CROWD else 2.8} | (
                    {"marker": "x"} if r.is_refused else {}
                )
                axes.plot(r.x, r.y, **look, zorder=3)
            for curve in curves:
                axes.plot(curve.x, curve.y, **style.stroke(arms, fit.baseline, curve.arm, 1.0).line(), zorder=4)
        if left_over:
            style.ratio_axis(left, min(r.x for r in left_over), max(r.x for r in left_over))
            sd = fit.noise.sd
            left.axhspan(-sd, sd, color="0.93", zorder=0)
        else:
            empty(left, "no curve has a run to spare")
        if off_surface:
            style.flops_axis(right, min(r.x for r in off_surface), max(r.x for r in off_surface))
            right.yaxis.set_major_formatter(lambda v, _: f"{v:+.3g}" if v else "0")
        else:
            empty(right, "no arm has a surface")
        left.set_xlabel(f"{AXES[fit.axis].label} / optimum")
        left.set_ylabel("loss less its parabola (nats)")
        right.set_xlabel("training FLOPs")
        right.set_ylabel(f"loss over its surface, {METHOD} (%)")
        if title:
            figure.suptitle(title)
        figure.draw_without_rendering()  # names are placed where the panels end up
        for axes, residuals in ((left, left_over), (right, off_surface)):
            name_outliers(axes, residuals, figure.dpi)
        paths = style.save(figure, out_dir / stem)
    paths.append(style.save_csv(run_rows(report, left_over, off_surface), out_dir / f"{stem}.csv"))
    if rows := trend_rows(trends):
        paths.append(style.save_csv(rows, out_dir / f"{stem}_trends.csv"))
    return style.Drawn(paths, note)


def of_parabolas(report: Report) -> list[Residual]:
    """Of the runs of every curve that has more of them than its parabola needs: a bad run sits where a curve is refused
    more often than elsewhere."""
    far, found = far_runs(report.fit.curves), []
    for curve in report.fit.curves:
        if curve.parabola and curve.parabola.dof:
            middle = curve.optimum.x if curve.optimum else math.exp(curve.parabola.centre)
            for p, y in zip(curve.points, curve.residuals().tolist(), strict=True):
                found.append(Residual(p.run, p.arm, p.budget, p.x / middle, y, p.run in far, not curve.optimum))
    return found


def of_surfaces(report: Report) -> list[Residual]:
    """Of every run of an arm that has a surface; outliers by the rule that ``--drop-outliers`` goes by."""
    found = []
    for s in report.surfaces:
        if s.method != METHOD or s.surface is None:
            continue
        mine = [p for p in report.points if p.arm == s.arm]
        far = []
        if len(mine) >= ENOUGH_POINTS:
            far = [o.index for o in outliers([p.x for p in mine], [p.tokens for p in mine], [p.loss for p in mine])]
        for i, p in enumerate(mine):
            y = 100 * (p.loss / float(s.surface.loss(p.x, p.tokens)) - 1)
            found.append(Residual(p.run, p.arm, p.budget, p.flops, y, i in far))
    return found


def trends_of(residuals: Sequence[Residual]) -> list[Trend]:
    """A least-squares quartic in ln x for every arm, of lower degree where it would go through every place; none for an
    arm of fewer than MIN_RUNS runs."""
    trends = []
    for arm in dict.fromkeys(r.arm for r in residuals):
        mine = [r for r in residuals if r.arm == arm]
        x, y = np.log([r.x for r in mine]), np.array([r.y for r in mine])
        places = 1 + int((np.diff(np.sort(x)) > APART).sum())
        degree = min(DEGREE, places - 2)
        if degree >= 1 and len(mine) >= MIN_RUNS:
            centre, grid = x.mean(), np.linspace(x.min(), x.max(), 60)
            coefficients = np.polyfit(x - centre, y, degree)
            trends.append(Trend(arm, np.exp(grid), np.polyval(coefficients, grid - centre)))
    return trends


def name_outliers(axes: Axes, residuals: Sequence[Residual], dpi: float) -> None:
    """The farthest runs by name, each in the first free place beside its marker. The layout is done before."""
    per_point = dpi / 72
    marks = (axes.transData.transform([(r.x, r.y) for r in residuals]) / per_point).tolist() if residuals else []
    frame = np.asarray(axes.bbox.extents) / per_point
    taken: list[tuple[float, float, float, float]] = []  # boxes of names, in points
    for i in sorted((i for i, r in enumerate(residuals) if r.is_outlier), key=lambda i: -abs(residuals[i].y))[:LABELS]:
        r, (x, y) = residuals[i], marks[i]
        width, tall = 3.4 * len(r.run), 7.0
        boxes = [
            (x + side * 8 - (width if side < 0 else 0), y + lift - tall / 2, side, lift)
            for lift in (0, 9, -9, 18, -18, 27, -27)
            for side in (1, -1)
        ]
        free = [
            (side, lift)
            for left, low, side, lift in boxes
            if frame[0] < left and left + width < frame[2] and frame[1] < low and low + tall < frame[3]
            if not any(left < u < left + width and low - 1 < v < low + tall + 1 for u, v in marks)
            if not any(left < b and a < left + width and low < d and c < low + tall for a, b, c, d in taken)
        ]
        side, lift = free[0] if free else (1 if x < (frame[0] + frame[2]) / 2 else -1, 0)
        start = x + side * 8 - (width if side < 0 else 0)
        taken.append((start, start + width, y + lift - tall / 2, y + lift + tall / 2))
        axes.annotate(
            r.run,
            (r.x, r.y),
            (8 * side, lift),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=5.8,
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
            zorder=5,
        )


def empty(axes: Axes, text: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.55, text, transform=axes.transAxes, ha="center", color=style.GREY)


def note_of(report: Report, left_over: Sequence[Residual], off_surface: Sequence[Residual]) -> list[str]:
    lines = []
    shown = {(r.arm, r.budget) for r in left_over}
    bare = [c for c in report.fit.curves if c.points and (c.arm, c.budget) not in shown]
    if bare:
        lines.append(f"left: without curves that have no run to spare: {curves_named(bare)}")
    if refused := [c for c in report.fit.curves if not c.optimum and (c.arm, c.budget) in shown]:
        lines.append(f"left: over their middle size, as they have no optimum: {curves_named(refused)}")
    refused_surfaces = by_reason((s.arm, s.refusal) for s in report.surfaces if s.method == METHOD and s.refusal)
    lines += [f"right: no surface for {arms}: {reason}" for arms, reason in refused_surfaces]
    for side, residuals, rule in (
        ("left", left_over, "too far off their parabola to be noise"),
        ("right", off_surface, "far off their surface"),
    ):
        count = sum(r.is_outlier for r in residuals)
        if count > LABELS:
            lines.append(f"{side}: {count} runs {rule}, the farthest {LABELS} named; the CSV marks all")
    return lines


def key_of(
    report: Report, arms: Sequence[str], budgets: Sequence[float], left_over: Sequence[Residual], curved: bool
) -> list[Any]:
    """Arms in the shade of their curves."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for arm in arms:
        stroke = style.stroke(arms, report.fit.baseline, arm, 1.0)
        handles.append(Line2D([], [], **{**stroke.marks(), **stroke.line()}, label=arm))
    key: list[Any] = shade_key(budgets)
    if any(r.is_refused for r in left_over):
        key.append(
            Line2D([], [], color=style.GREY, marker="x", linestyle="none", label="of a curve without an optimum")
        )
    if left_over:
        key.append(Patch(color="0.93", label=f"noise of one run, ±{report.fit.noise.sd:.2g} nats"))
    if curved:
        key.append(Line2D([], [], color=style.GREY, label="trend of an arm, at most quartic"))
    return legend_columns(handles, key, WIDTH)


def run_rows(report: Report, left_over: Sequence[Residual], off_surface: Sequence[Residual]) -> list[dict[str, Any]]:
    """One row a run that is in either panel. ``loss_moved`` is what its parabola is fitted to: the loss at the FLOPs of
    the curve, other than ``loss`` only where another convention counts them."""
    moved = {p.run: p.loss for curve in report.fit.curves for p in curve.points}
    by_left, by_right = {r.run: r for r in left_over}, {r.run: r for r in off_surface}
    rows = []
    for p in report.points:
        left, right = by_left.get(p.run), by_right.get(p.run)
        if left or right:
            rows.append(
                {
                    "run": p.run,
                    "arm": p.arm,
                    "budget": p.budget,
                    AXES[report.fit.axis].key: p.x,
                    "loss": p.loss,
                    "loss_moved": moved.get(p.run),
                    "size_over_optimum": left.x if left and not left.is_refused else None,
                    "parabola_residual": left.y if left else None,
                    "parabola_outlier": left.is_outlier if left else None,
                    "flops": p.flops,
                    "surface_residual_percent": right.y if right else None,
                    "surface_outlier": right.is_outlier if right else None,
                    "noise_sd": report.fit.noise_sd,
                }
            )
    return rows


def trend_rows(trends: Sequence[Sequence[Trend]]) -> list[dict[str, Any]]:
    return [
        {"fit": name, "arm": trend.arm, "x": x, "y": y}
        for name, panel in zip(("parabola", METHOD), trends, strict=True)
        for trend in panel
        for x, y in zip(trend.x.tolist(), trend.y.tolist(), strict=True)
    ]
