"""Rows of estimates with intervals, in groups, one below another: what a forest plot is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from modexp.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAP = 0.4  # rows between two groups

Interval = tuple[float, float | None, float | None]  # value, low, high


def lay_out(axes: Axes, groups: Mapping[str, Sequence[str]], *others: Axes) -> dict[tuple[str, str], float]:
    """Label the rows of every group below its name; the height of each (group, row). ``others`` share the y axis."""
    places: dict[tuple[str, str], float] = {}
    ticks: list[float] = []
    labels: list[str] = []
    heads: list[int] = []
    y = 0.0
    for group, rows in groups.items():
        heads.append(len(ticks))
        ticks.append(y)
        labels.append(group)
        for row in rows:
            y += 1
            places[group, row] = y
            ticks.append(y)
            labels.append(row)
        y += 1 + GAP
    axes.set_yticks(ticks, labels)
    for i in heads:
        axes.yaxis.get_ticklabels()[i].set_fontweight("bold")
        for each in (axes, *others):
            each.yaxis.get_major_ticks()[i].gridline.set_visible(False)
    for each in (axes, *others):
        each.tick_params(axis="y", length=0)
    axes.set_ylim(y - GAP - 0.4, -0.6)
    return places


def height(groups: Mapping[str, Sequence[str]]) -> float:
    """Rows that ``lay_out`` fills, names and gaps included."""
    return sum(1 + len(rows) + GAP for rows in groups.values())


def limits(found: Sequence[Interval]) -> tuple[float, float]:
    """A range in which all values and most intervals fit: one that is many times wider than the others is cut."""
    values = [value for value, _, _ in found]
    ends = [end for _, low, high in found for end in (low, high) if end is not None]
    widths = [high - low for _, low, high in found if low is not None and high is not None]
    room = max(max(values) - min(values), 2 * median(widths) if widths else 0.0, 0.02 * max(map(abs, values)), 1e-12)
    low = max(min([*values, *ends]), min(values) - room)
    high = min(max([*values, *ends]), max(values) + room)
    pad = 0.06 * (high - low) or room
    return low - pad, high + pad


def draw_interval(axes: Axes, y: float, found: Interval, stroke: style.Stroke, size: float = 4.5) -> None:
    """The value's marker on its bar; a bar that leaves the axes ends in an arrow."""
    value, low, high = found
    left, right = axes.get_xlim()
    if low is not None and high is not None:
        axes.plot([low, high], [y, y], color=stroke.color, linewidth=1.1, marker="|", markersize=size, zorder=2.5)
        arrow: dict[str, Any] = {"color": stroke.color, "markersize": 4, "clip_on": False, "linestyle": "none"}
        if low < left:
            axes.plot(left, y, marker="<", **arrow, zorder=5)
        if high > right:
            axes.plot(right, y, marker=">", **arrow, zorder=5)
    axes.plot(value, y, **{**stroke.marks(), "markersize": size}, zorder=4)
