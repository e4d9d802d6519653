"""How well the predictors foresee the top-k while they train (MoD paper, Fig. 6 right): accuracy, precision, recall.

Always saying "skip" scores 1 - C/T, drawn as a grey line: an accuracy means nothing without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modexp.errors import UserError
from modexp.plots import style
from modexp.plots.curves import shades_of

WIDTH = 7.2  # inches
PANELS = ("accuracy", "precision", "recall")


@dataclass(frozen=True)
class Skill:
    """One run: steps (n,) and shares in 0..1, each (n,), NaN where there is none."""

    run: str
    arm: str
    budget: float
    share: float | None  # C/T, of the tokens that the top-k takes; None where the capacity is not one of tokens
    steps: np.ndarray
    accuracy: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


def draw(runs: Sequence[Mapping[str, Any]], out_dir: Path, stem: str = "predictor", *, title: str = "") -> style.Drawn:
    """Write stem.png, stem.svg and stem.csv.

    ``runs``: dicts {run, arm, budget, share, metrics} of the runs that have a predictor; metrics are rows {step,
    val/predictor_precision, val/predictor_recall}, which rows may lack. UserError: no such row.
    """
    skills = [skill for run in runs if len((skill := read(run)).steps)]
    if not skills:
        raise UserError(
            f"none of {len(runs)} runs has measured its predictor", "arms with model.causal=predictor do, as they train"
        )
    lines = []
    if len(skills) < len(runs):
        lines.append(f"{len(runs) - len(skills)} of {len(runs)} runs with a predictor have not measured it yet")
    if any(skill.share is None for skill in skills):
        lines.append("no accuracy where a capacity is not a share of the tokens")
    note = style.wrapped(lines, WIDTH)
    arms = list(dict.fromkeys(skill.arm for skill in skills))

    with style.context():
        from matplotlib.lines import Line2D
        from matplotlib.ticker import MaxNLocator

        handles: list[Any] = []
        columns = 1 if len(skills) <= 2 else 2
        foot = style.footer_height(math.ceil((len(skills) + 1) / columns), len(note.splitlines()))
        figure = style.new_figure(WIDTH, 2.9 + foot)
        grid = figure.add_gridspec(2, 3, height_ratios=[2.3, foot])
        panels = [figure.add_subplot(grid[0, i]) for i in range(3)]
        shade = shades_of(skills)
        for skill in skills:
            stroke = style.stroke(arms, "", skill.arm, shade[skill.run])
            look = {**stroke.marks(), **stroke.line(), "markersize": 3}
            for axes, name in zip(panels, PANELS, strict=True):
                axes.plot(skill.steps, getattr(skill, name), **look, zorder=3)
            handles.append(Line2D([], [], **look, label=skill.run))
        skip = sorted({1 - skill.share for skill in skills if skill.share is not None})
        for level in skip:
            panels[0].axhline(level, color=style.GREY, linewidth=1.0, linestyle=(0, (1, 1.5)), zorder=2)
        if skip:
            shown = ", ".join(f"{level:.1%}" for level in skip)
            look = {"color": style.GREY, "linewidth": 1.0, "linestyle": (0, (1, 1.5))}
            handles.append(Line2D([], [], **look, label=f"always skip ({shown})"))
        for axes, name in zip(panels, PANELS, strict=True):
            axes.set_title(name)
            axes.set_xlabel("optimizer step")
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.set_xlim(0, 1.03 * max(skill.steps[-1] for skill in skills))
            axes.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.3g} %")
        low = [np.nanmin(s.accuracy) for s in skills if not np.isnan(s.accuracy).all()]
        if low:
            floor = min(*low, *skip)
            panels[0].set_ylim(floor - 0.1 * (1 - floor), 1.0)
        for axes in panels[1:]:
            axes.set_ylim(0, 1.02)
        if title:
            figure.suptitle(title)
        rows = math.ceil(len(handles) / columns)
        split = [handles[i : i + rows] for i in range(0, len(handles), rows)]
        style.footer(figure.add_subplot(grid[1, :]), split, note)
        paths = style.save(figure, out_dir / stem)
    table = [row for skill in skills for row in rows_of(skill)]
    return style.Drawn([*paths, style.save_csv(table, out_dir / f"{stem}.csv")], note)


def read(run: Mapping[str, Any]) -> Skill:
    rows = [m for m in run["metrics"] if m.get("val/predictor_recall") is not None]
    precision = np.array([m["val/predictor_precision"] for m in rows], dtype=float)
    recall = np.array([m["val/predictor_recall"] for m in rows], dtype=float)
    share = run["share"]
    nothing = np.full(len(rows), np.nan)
    return Skill(
        str(run["run"]),
        str(run["arm"]),
        float(run["budget"]),
        share,
        np.array([m["step"] for m in rows], dtype=float),
        nothing if share is None else accuracy_of(precision, recall, share),
        precision,
        recall,
    )


def accuracy_of(precision: np.ndarray, recall: np.ndarray, share: float) -> np.ndarray:
    """Share of right answers, where ``share`` of the tokens belong to the top-k: each (n,).

    Hits are recall x share, answers "go" are hits / precision; wrong are the "go" that miss and the members not
    found. NaN where precision is 0, which leaves the number of answers "go" open.
    """
    hits = recall * share
    said_go = np.divide(hits, precision, out=np.full_like(hits, np.nan), where=precision > 0)
    return 1 - (said_go - hits) - (share - hits)


def share_of(capacity: Any, sequence_length: int) -> float | None:
    """C/T as it was rounded to whole tokens, the mean over the blocks; None for what is not a capacity of tokens."""
    many = capacity if isinstance(capacity, list | tuple) else [capacity]
    if not all(isinstance(c, int | float) for c in many):
        return None
    return sum(max(1, round(c * sequence_length)) for c in many) / len(many) / sequence_length


def rows_of(skill: Skill) -> list[dict[str, Any]]:
    columns = zip(skill.steps, skill.accuracy, skill.precision, skill.recall, strict=True)
    always = None if skill.share is None else 1 - skill.share
    run = {"run": skill.run, "arm": skill.arm, "budget": skill.budget}
    return [
        {
            **run,
            "step": int(step),
            "accuracy": None if math.isnan(accuracy) else accuracy,
            "always_skip": always,
            "precision": precision,
            "recall": recall,
        }
        for step, accuracy, precision, recall in columns
    ]
