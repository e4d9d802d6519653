"""Learning curves (MoD paper, Fig. 3 right): smoothed training loss and held-out points of some runs; beside them, for
chosen runs, the FLOPs of a step and the steps per second."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from modexp.analysis.curves import default_window, running_mean
from modexp.errors import UserError
from modexp.plots import style
from modexp.wording import budget_text, size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

X_LABELS = {"flops": "training FLOPs", "tokens": "training tokens", "steps": "optimizer steps"}
X_KEYS = {"flops": "flops", "tokens": "tokens", "steps": "step"}
SETTLED = 0.1  # the fall from ln(vocabulary) in the first tenth of a run would flatten all that differs


def draw(
    runs: Sequence[Mapping[str, Any]],
    out_dir: Path,
    x: str = "flops",
    *,
    stem: str = "curves",
    title: str = "",
    unit: str = "token",
    baseline: str | None = None,
) -> style.Drawn:
    """Write stem.png, stem.svg and stem.csv.

    ``runs``: dicts {run, arm, budget, metrics}, metrics being rows {step, tokens, flops, train/loss,
    val/loss}; rows may lack a loss. Runs that hold flops_per_step and steps_per_second too are numbered and have
    both drawn as bars. ``baseline``: arm drawn open and dashed, by default the first run's.
    UserError: an unknown ``x``, or no run with a training loss.
    """
    if x not in X_KEYS:
        raise UserError(f"x={x} is not an axis of learning curves", f"try one of {', '.join(X_KEYS)}")
    curves = [curve for run in runs if len((curve := _read(run, X_KEYS[x])).steps)]
    if not curves:
        raise UserError(f"none of {len(runs)} runs has logged a training loss", "try modexp status")
    arms = list(dict.fromkeys(curve.arm for curve in curves))
    chosen = [run for run in runs if run["run"] in {c.run for c in curves} and "flops_per_step" in run]
    missing = len(runs) - len(curves)
    note = f"{missing} of {len(runs)} runs without a training loss" if missing else ""

    with style.context():
        from matplotlib.lines import Line2D

        columns = 1 if len(curves) <= 3 else 2
        foot = style.footer_height(math.ceil((len(curves) + 2) / columns), len(note.splitlines()))
        figure = style.new_figure(7.2 if chosen else 5.2, 3.1 + foot)
        grid = figure.add_gridspec(
            2, 2 if chosen else 1, height_ratios=[3.1, foot], width_ratios=[2, 1][: 1 + bool(chosen)]
        )
        axes = figure.add_subplot(grid[0, 0])
        handles = []
        strokes, shade = {}, shades_of(curves)
        for number, curve in enumerate(curves, 1):
            stroke = strokes[curve.run] = style.stroke(arms, baseline or arms[0], curve.arm, shade[curve.run])
            axes.plot(curve.x, curve.smooth, **stroke.line(), zorder=3)
            axes.plot(curve.val_x, curve.val_loss, **stroke.marks(), zorder=4)
            label = f"{f'#{number} ' if chosen else ''}{curve.run} ({curve.window}-step mean)"
            handles.append(Line2D([], [], **{**stroke.marks(), **stroke.line()}, label=label))
        handles += [
            Line2D([], [], color=style.GREY, label="training loss, running mean"),
            Line2D([], [], color=style.GREY, marker="o", linestyle="none", label="held-out loss"),
        ]
        settled = np.concatenate([curve.settled() for curve in curves])
        if len(settled):
            pad = 0.05 * float(np.ptp(settled)) or 0.1
            axes.set_ylim(settled.min() - pad, settled.max() + pad)
        axes.set_xlim(0, 1.02 * max(curve.x[-1] for curve in curves))
        axes.xaxis.set_major_formatter(lambda v, _: budget_text(v) if x == "flops" and v else size_text(v))
        axes.set_xlabel(X_LABELS[x])
        axes.set_ylabel(f"loss (nats per {unit})")
        if title:
            figure.suptitle(title)
        rows = math.ceil(len(handles) / columns)
        split = [handles[i : i + rows] for i in range(0, len(handles), rows)]
        if chosen:
            bars = grid[0, 1].subgridspec(2, 1)
            draw_bars(figure.add_subplot(bars[0]), chosen, strokes, "flops_per_step", "training FLOPs a step")
            draw_bars(figure.add_subplot(bars[1]), chosen, strokes, "steps_per_second", "steps per second")
        style.footer(figure.add_subplot(grid[1, :]), split, note)
        paths = style.save(figure, out_dir / stem)
    table = [row for curve in curves for row in curve.rows(x)]
    paths.append(style.save_csv(table, out_dir / f"{stem}.csv"))
    if chosen:
        keys = ("run", "arm", "budget", "flops_per_step", "steps_per_second")
        paths.append(style.save_csv([{k: run[k] for k in keys} for run in chosen], out_dir / f"{stem}_steps.csv"))
    return style.Drawn(paths, note)


def draw_bars(
    axes: Axes, runs: Sequence[Mapping[str, Any]], strokes: Mapping[str, style.Stroke], key: str, label: str
) -> None:
    """One bar a run, with its value and its ratio to the first run's."""
    first = runs[0][key]
    for i, run in enumerate(runs):
        value = run[key]
        axes.barh(i, value or 0.0, height=0.62, **strokes[run["run"]].bar(), zorder=2)
        ratio = f"  ({value / first:.2f}x)" if i and value and first else ""
        text = "not measured yet" if value is None else f"{plain(value)}{ratio}"
        axes.annotate(text, (value or 0.0, i), (3, 0), textcoords="offset points", va="center", fontsize=6.5)
    axes.set_yticks(range(len(runs)), [f"#{i}" for i in range(1, len(runs) + 1)])
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.set_xlim(0, 1.75 * max([run[key] or 0.0 for run in runs]) or 1.0)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel(label)


class Line(Protocol):
    """A run that has a line of its own."""

    @property
    def run(self) -> str: ...
    @property
    def arm(self) -> str: ...
    @property
    def budget(self) -> float: ...


def shades_of(runs: Sequence[Line]) -> dict[str, float]:
    """By run: larger budgets are darker, in all arms alike. Those of one arm and budget, which have to be told apart,
    darken in the order given."""
    before: Counter[tuple[str, float]] = Counter()
    places = {}
    for r in runs:
        places[r.run] = (r.budget, before[r.arm, r.budget])
        before[r.arm, r.budget] += 1
    steps = sorted(set(places.values()))
    shade = dict(zip(steps, style.shades(len(steps)), strict=True))
    return {run: shade[place] for run, place in places.items()}


def plain(value: float) -> str:
    """Three digits: 2.31e12, 0.184, 26."""
    return budget_text(float(f"{value:.2e}")) if value >= 1e4 else f"{value:.3g}"


def steps_per_second(metrics: Sequence[Mapping[str, Any]], tokens_per_step: int) -> float | None:
    """The median over the rows: a machine's pauses do not count. None while nothing was measured."""
    rates = [m["perf/tokens_per_s"] for m in metrics if m.get("perf/tokens_per_s")]
    return float(np.median(rates)) / tokens_per_step if rates else None


@dataclass(frozen=True)
class Curve:
    """One run, as drawn: training rows (n,) and held-out rows (m,), finite losses only."""

    run: str
    arm: str
    budget: float
    steps: np.ndarray  # (n,)
    x: np.ndarray  # (n,)
    train: np.ndarray  # (n,)
    smooth: np.ndarray  # (n,)
    window: int  # steps
    val_steps: np.ndarray  # (m,)
    val_x: np.ndarray  # (m,)
    val_loss: np.ndarray  # (m,)

    def settled(self) -> np.ndarray:
        """Losses drawn after the first tenth: they set the limits of the figure."""
        start = SETTLED * self.steps[-1]
        losses = np.concatenate([self.smooth[self.steps >= start], self.val_loss[self.val_steps >= start]])
        return losses[np.isfinite(losses)]

    def rows(self, x: str) -> list[dict[str, Any]]:
        run = {"run": self.run, "arm": self.arm, "budget": self.budget, "window_steps": self.window}
        train = zip(self.steps, self.x, self.train, self.smooth, strict=True)
        val = zip(self.val_steps, self.val_x, self.val_loss, strict=True)
        return [
            *(
                {
                    **run,
                    "step": int(s),
                    x: a,
                    "train": b,
                    "train_smoothed": c if math.isfinite(c) else None,
                    "val": None,
                }
                for s, a, b, c in train
            ),
            *({**run, "step": int(s), x: a, "train": None, "train_smoothed": None, "val": b} for s, a, b in val),
        ]


def _read(run: Mapping[str, Any], key: str) -> Curve:
    steps, x, train = _columns(run["metrics"], key, "train/loss")
    val_steps, val_x, val_loss = _columns(run["metrics"], key, "val/loss")
    window = default_window(steps) if len(steps) else 1
    smooth = running_mean(steps, train, window) if len(steps) else train
    return Curve(
        str(run["run"]),
        str(run["arm"]),
        float(run["budget"]),
        steps,
        x,
        train,
        smooth,
        window,
        val_steps,
        val_x,
        val_loss,
    )


def _columns(metrics: Sequence[Mapping[str, Any]], key: str, loss: str) -> tuple[np.ndarray, ...]:
    """Step, x and loss of the rows that have a finite loss, each (n,): a diverged run ends where it did."""
    rows = [m for m in metrics if m.get(loss) is not None and math.isfinite(m[loss])]
    found = [(m["step"], m[key], m[loss]) for m in rows]
    table = np.array(found, dtype=float).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2]
