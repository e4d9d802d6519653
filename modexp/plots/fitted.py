"""What figures of fits share: their sheet and legend, the order of arms, and the sentences for what is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from modexp.analysis.curve import CurveFit
from modexp.analysis.exponent import ExponentFit
from modexp.analysis.isoflop import StudyFit
from modexp.analysis.points import Record, is_guard, reason_to_drop
from modexp.plots import style
from modexp.plots.panel import states
from modexp.wording import budget_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

NAMED = 8  # budgets of one arm that a note names; more are counted


def sheet(width: float, height: float, columns: Sequence[Sequence[Any]], note: str) -> tuple[Figure, SubFigure, Axes]:
    """A figure, the part of it to draw in (``height`` inches), and the axes of its footer, as wide as the figure
    however wide the labels of the panels are."""
    foot = style.footer_height(max(map(len, columns)), len(note.splitlines()))
    figure = style.new_figure(width, height + foot)
    figure.set_layout_engine("constrained", wspace=0.05)  # room between a panel and the label of the next
    body, below = cast("Sequence[SubFigure]", figure.subfigures(2, 1, height_ratios=[height, foot]))
    axes = below.add_subplot()
    style.footer(axes, columns, note)
    return figure, body, axes


def legend_columns(handles: Sequence[Any], key: Sequence[Any], width: float) -> list[list[Any]]:
    """Handles in columns of at least three and the key beside them; fewer columns where their labels are too long
    for ``width`` inches, and everything in one where even two are."""
    for count in range(math.ceil(len(handles) / 3), 0, -1):
        rows = math.ceil(len(handles) / count)
        columns = [list(handles[i : i + rows]) for i in range(0, len(handles), rows)] + ([list(key)] if key else [])
        if style.legend_width(columns) <= width:
            return columns
    return [[*handles, *key]]


def shade_key(budgets: Sequence[float]) -> list[Any]:
    """What light and dark mean: nothing to say of one budget, and of many only the ends."""
    from matplotlib.lines import Line2D

    if len(budgets) > 4:
        span = f"{budget_text(budgets[0])} .. {budget_text(budgets[-1])}"
        return [Line2D([], [], linestyle="none", label=f"light to dark: {span} FLOPs")]
    return [
        Line2D([], [], color=style.oklch(0.76 - 0.38 * shade, 0.0, 0.0), marker="s", linestyle="none", label=text)
        for text, shade in zip((f"{budget_text(b)} FLOPs" for b in budgets), style.shades(len(budgets)), strict=True)
        if len(budgets) > 1
    ]


def by_reason(said: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """(who, reason) with everybody of whom one thing is said named together: no sentence stands twice."""
    found: dict[str, list[str]] = {}
    for who, reason in said:
        found.setdefault(reason, []).append(who)
    return [(", ".join(names), reason) for reason, names in found.items()]


def arms_in(fit: StudyFit) -> list[str]:
    """As legends list them: the baseline first."""
    return sorted((e.arm for e in fit.exponents), key=lambda arm: arm != fit.baseline)


def exponent_text(e: ExponentFit) -> str:
    """exponent 0.493 (0.412 .. 0.574)"""
    return f"exponent {value_text(e.exponent, e.low, e.high)}" if e.exponent is not None else "no exponent"


def value_text(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" + (f" ({low:.3f} .. {high:.3f})" if low is not None else "")


def curves_named(curves: Sequence[CurveFit]) -> str:
    """baseline at 6e18, 2e19; mod at 6e18"""
    arms: dict[str, list[str]] = {}
    for curve in curves:
        arms.setdefault(curve.arm, []).append(budget_text(curve.budget))
    return "; ".join(
        f"{arm} at {', '.join(budgets) if len(budgets) <= NAMED else f'{len(budgets)} budgets'}"
        for arm, budgets in arms.items()
    )


def runs_note(fit: StudyFit, records: Sequence[Record], of_surfaces: int | None = None) -> list[str]:
    """How many runs the fit lacks, and why; nothing when it lacks none.

    ``of_surfaces``: runs that loss surfaces are fitted to; more than the curves' where --nearest keeps a few of each.
    """
    used = sum(len(curve.points) for curve in fit.curves)
    if used == len(records):
        return []
    own = [r for r in records if not is_guard(r)]
    asked = len(own) - used - sum(bool(reason_to_drop(r)) for r in own)
    reasons = [
        states(own),
        f"{len(records) - len(own)} guard runs" if len(own) < len(records) else "",
        f"{asked} repeated or left out as asked" if asked else "",
    ]
    line = f"{used} of {len(records)} runs ({', '.join(filter(None, reasons))})"
    if of_surfaces is not None and of_surfaces > used:
        line = f"parabolas and Akima: {line}; surfaces: {of_surfaces}"
    return [line]


def warnings_note(fit: StudyFit) -> list[str]:
    """What speaks against the exponents, each sentence once, with the arms that it is said of."""
    said = by_reason((e.arm, warning) for e in fit.exponents for warning in e.warnings)
    return [f"{arms}: {warning}" for arms, warning in said]


def refusals_note(fit: StudyFit) -> list[str]:
    """Arms without an exponent of their parabolas, and why."""
    return [f"{arms}: {reason}" for arms, reason in by_reason((e.arm, e.refusal) for e in fit.exponents if e.refusal)]
