"""Learning curves (MoD paper, Fig. 3 right): smoothed training loss and held-out points of some runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modexp.analysis.curves import default_window, running_mean
from modexp.analysis.wording import budget_text, size_text
from modexp.errors import UserError
from modexp.plots import style

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
) -> list[Path]:
    """Write stem.png, stem.svg and stem.csv.

    ``runs``: dicts {run, arm, budget, metrics}, metrics being rows {step, tokens, flops, train/loss,
    val/loss}; rows may lack a loss. ``baseline``: arm drawn open and dashed, by default the first run's.
    UserError: an unknown ``x``, or no run with a training loss.
    """
    if x not in X_KEYS:
        raise UserError(f"x={x} is not an axis of learning curves", f"try one of {', '.join(X_KEYS)}")
    curves = [curve for run in runs if len((curve := _read(run, X_KEYS[x])).steps)]
    if not curves:
        raise UserError(f"none of {len(runs)} runs has logged a training loss", "try modexp status")
    arms = list(dict.fromkeys(curve.arm for curve in curves))
    missing = len(runs) - len(curves)
    note = f"{missing} of {len(runs)} runs without a training loss" if missing else ""

    with style.context():
        from matplotlib.lines import Line2D

        columns = 1 if len(curves) <= 3 else 2
        foot = style.footer_height(math.ceil((len(curves) + 2) / columns), len(note.splitlines()))
        figure = style.new_figure(5.2, 3.1 + foot)
        grid = figure.add_gridspec(2, 1, height_ratios=[3.1, foot])
        axes = figure.add_subplot(grid[0])
        handles = []
        for curve in curves:
            siblings = [c.run for c in curves if c.arm == curve.arm]
            shade = style.shades(len(siblings))[siblings.index(curve.run)]
            stroke = style.stroke(arms, baseline or arms[0], curve.arm, shade)
            axes.plot(curve.x, curve.smooth, **stroke.line(), zorder=3)
            axes.plot(curve.val_x, curve.val_loss, **stroke.marks(), zorder=4)
            label = f"{curve.run} ({curve.window}-step mean)"
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
        style.footer(figure.add_subplot(grid[1]), split, note)
        paths = style.save(figure, out_dir / stem)
    table = [row for curve in curves for row in curve.rows(x)]
    return [*paths, style.save_csv(table, out_dir / f"{stem}.csv")]


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
