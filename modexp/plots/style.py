"""One style for all figures: sizes, colours, ticks, saving. matplotlib is imported when a figure is made.

An arm has a hue, a line style and a marker; a budget has a lightness, light to dark as it grows, the same for
every arm. So a figure printed grey still tells budgets by shade and arms by line and marker.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modexp.errors import UserError
from modexp.files import write_bytes, write_text
from modexp.wording import budget_text, size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 300
GREY = "0.45"

RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.5,
    "legend.fontsize": 7.5,
    "figure.titlesize": 9.5,
    "figure.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "0.25",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.91",
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.color": "0.25",
    "ytick.color": "0.25",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "text.parse_math": False,  # a study's name may hold a dollar sign
    "svg.hashsalt": "modexp",  # else element ids differ from one run to the next
}

# Hue in degrees of OKLCH, marker, dashes. Baseline first: open and dashed; conditional arms filled and solid.
_BASELINE = (250.0, "o", (0, (3.5, 1.8)))
_OTHERS = [
    (45.0, "s", "solid"),
    (160.0, "^", "solid"),
    (325.0, "D", "solid"),
    (95.0, "v", "solid"),
    (205.0, "P", "solid"),
    (15.0, "X", "solid"),
    (285.0, "p", "solid"),
]
MAX_ARMS = 1 + len(_OTHERS)


@dataclass(frozen=True)
class Drawn:
    """What was written, and what the note on the figure says: empty when nothing is missing."""

    paths: list[Path]
    note: str


@dataclass(frozen=True)
class Stroke:
    """How one curve is drawn."""

    color: tuple[float, float, float]
    marker: str
    linestyle: Any
    filled: bool

    def marks(self) -> dict[str, Any]:
        """Keywords of Axes.plot for the points alone."""
        face = self.color if self.filled else "white"
        return {
            "color": self.color,
            "marker": self.marker,
            "markerfacecolor": face,
            "markeredgecolor": self.color,
            "linestyle": "none",
        }

    def disc(self) -> dict[str, Any]:
        """Keywords of Axes.scatter for markers whose area tells something: lines around them stay visible."""
        face = (*self.color, 0.35) if self.filled else (1.0, 1.0, 1.0, 0.35)
        return {"marker": self.marker, "facecolor": [face], "edgecolor": [self.color], "linewidth": 0.9}

    def bar(self) -> dict[str, Any]:
        """Keywords of Axes.barh."""
        return {"facecolor": self.color if self.filled else "white", "edgecolor": self.color, "linewidth": 1.0}

    def line(self) -> dict[str, Any]:
        return {"color": self.color, "linestyle": self.linestyle}


def stroke(arms: Sequence[str], baseline: str, arm: str, shade: float) -> Stroke:
    """Look of ``arm`` among ``arms``; ``shade`` 0 (light, smallest budget) .. 1 (dark, largest)."""
    if len(arms) > MAX_ARMS:
        raise UserError(f"arms={len(arms)} are more than a figure can tell apart, {MAX_ARMS}", "plot fewer arms")
    others = [a for a in arms if a != baseline]
    hue, marker, linestyle = _BASELINE if arm == baseline else _OTHERS[others.index(arm)]
    return Stroke(oklch(0.76 - 0.38 * shade, 0.125, hue), marker, linestyle, filled=arm != baseline)


def shades(count: int) -> list[float]:
    """Evenly spaced from light to dark; a single one is dark."""
    return [i / (count - 1) for i in range(count)] if count > 1 else [0.75]


def oklch(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    """Perceptual lightness 0..1, chroma and hue (degrees) -> sRGB 0..1.

    Ottosson 2020, "A perceptual color space for image processing" (Oklab). Out of gamut, chroma gives way and
    lightness stays: lightness is what carries the budget.
    """
    a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    red = 4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short
    green = -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short
    blue = -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short
    if chroma > 0 and not all(-1e-6 <= v <= 1 + 1e-6 for v in (red, green, blue)):
        return oklch(lightness, max(0.0, chroma - 0.005), hue)
    return _gamma(red), _gamma(green), _gamma(blue)


def _gamma(linear: float) -> float:
    linear = min(1.0, max(0.0, linear))
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055


def context() -> AbstractContextManager[None]:
    """The style, for the time of drawing and saving; matplotlib's own settings are untouched afterwards."""
    import matplotlib

    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, "backend": "agg", **RC}
    return matplotlib.rc_context(settings)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches, laid out without overlaps; no window, no pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def footer(axes: Axes, columns: Sequence[Sequence[Any]], note: str) -> None:
    """One legend, given by columns of handles, and a note below it, on axes that show nothing else."""
    from matplotlib.lines import Line2D

    axes.set_axis_off()
    height = max(len(column) for column in columns)
    blank = Line2D([], [], linestyle="none", label=" ")
    padded = [handle for column in columns for handle in [*column, *[blank] * (height - len(column))]]
    axes.legend(
        handles=padded,
        ncols=len(columns),
        loc="upper center",
        borderaxespad=0,
        columnspacing=1.8,
        labelspacing=0.35,
    )
    axes.text(0.5, 0.0, note, transform=axes.transAxes, ha="center", va="bottom", fontsize=6.5, color=GREY)


def legend_width(columns: Sequence[Sequence[Any]]) -> float:
    """Inches that a legend of these columns takes."""
    return sum(0.57 + 0.058 * max(len(handle.get_label()) for handle in column) for column in columns)


def folded(columns: Sequence[Sequence[Any]], rows: int) -> list[list[Any]]:
    """Columns of a legend, short ones put below one another, so that many arms at one budget do not stand in a row."""
    stacked: list[list[Any]] = []
    for column in columns:
        if stacked and len(stacked[-1]) + len(column) <= rows:
            stacked[-1].extend(column)
        else:
            stacked.append(list(column))
    return stacked


def wrapped(lines: Sequence[str], width: float) -> str:
    """A note's sentences, a line each, broken to fit a figure ``width`` inches wide."""
    return "\n".join(part for line in lines for part in textwrap.wrap(line, round(19.4 * width)))


def footer_height(rows: int, note_lines: int) -> float:
    """Inches that ``footer`` needs."""
    return 0.16 * rows + 0.125 * note_lines + 0.15


def size_axis(
    axes: Axes, low: float, high: float, name: Literal["x", "y"] = "x", text: Callable[[float], str] = size_text
) -> None:
    """A log axis for sizes that reads 10k, 100k, 1M, 220M, from one decade to six; ``text`` writes the ticks."""
    from matplotlib.ticker import FixedLocator, NullFormatter

    limits = size_limits(low, high)
    axes.set(**{f"{name}scale": "log", f"{name}lim": limits})
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(size_ticks(*limits)))
    axis.set_major_formatter(lambda value, _: text(value))
    axis.set_minor_formatter(NullFormatter())


def size_limits(low: float, high: float) -> tuple[float, float]:
    """Of a log axis that shows ``low`` .. ``high``."""
    pad = max((high / low) ** 0.06, 1.1)  # wide enough that three digits tell the ticks apart
    return low / pad, high * pad


def flops_axis(axes: Axes, low: float, high: float) -> None:
    """A log axis for training FLOPs that reads 6e18, 1e19, 2e19; a single tick where there is one budget."""
    size_axis(axes, low, high, text=lambda value: budget_text(float(f"{value:.3g}")))
    if high < 1.05 * low:
        axes.set_xticks([math.sqrt(low * high)])
        axes.set_xticks([], minor=True)


def size_ticks(low: float, high: float) -> list[float]:
    """Round sizes within low .. high: the finest steps that leave room for their labels."""
    from matplotlib.ticker import MaxNLocator

    if high < 3 * low:  # less than half a decade: evenly spaced
        even = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)
        return [float(tick) for tick in even if low <= tick <= high]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for heads in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [head * 10.0**decade for decade in decades for head in heads]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= 6:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 6)]


def ratio_axis(axes: Axes, low: float, high: float) -> None:
    """A log axis for ratios: ticks at powers of two (0.5, 1, 2), at round numbers where those are few."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    axes.set_xscale("log", base=2)
    low, high = min(low, 0.95), max(high, 1.05)
    pad = (high / low) ** 0.06
    axes.set_xlim(low / pad, high * pad)
    first, last = math.ceil(math.log2(low / pad)), math.floor(math.log2(high * pad))
    step = max(1, math.ceil((last - first) / 7))
    powers = [p for p in range(first, last + 1) if p % step == 0]
    ticks = [2.0**p for p in powers] if len(powers) >= 3 else size_ticks(low / pad, high * pad)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.3g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write stem.png (300 dpi) and stem.svg atomically, within ``context``: same figure, same bytes."""
    paths = []
    undated: dict[str, Any] = {"Date": None}
    for suffix, metadata in ((".png", None), (".svg", undated)):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], dpi=DPI, metadata=metadata)
        path = stem.with_name(stem.name + suffix)
        write_bytes(path, buffer.getvalue())
        paths.append(path)
    return paths


def save_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """The numbers behind a figure, in full precision, columns as in the first row."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())
    return path
