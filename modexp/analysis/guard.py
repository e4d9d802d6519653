"""Whether an optimum would move if the learning rate had been tuned at both ends of its curve.

A guard run trains the size at an end of a curve at another multiple of the rule's rate (modexp/plan/guard.py). Each
end's losses are replaced by its best over the rates, and the curve is fitted again. The best of three noisy losses is
a little too low, at both ends alike: the answer concerns the place of the optimum, not the loss there.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from modexp.analysis.curve import CurveFit
from modexp.analysis.isoflop import fit_study
from modexp.analysis.points import Record, is_guard, size_of
from modexp.wording import budget_text, size_text

Run = tuple[str, float, int, float]  # arm, budget, seed, planned FLOPs per token: what a guard shares with its run
Size = tuple[str, float, float]  # of all seeds: arm, budget, planned FLOPs per token


@dataclass(frozen=True)
class End:
    """One guarded size. ``losses`` by rate over the rule's, in nats; infinite where a run diverged."""

    x: float  # in the unit of the axis
    losses: dict[float, float]

    @property
    def best(self) -> float:
        """The rate of the lowest loss; of equal ones the rule's."""
        return min(self.losses, key=lambda rate: (self.losses[rate], rate != 1))


@dataclass(frozen=True)
class Verdict:
    """One curve. ``tuned`` is its optimum with the best rate at the guarded ends; None where either has none."""

    arm: str
    budget: float
    ends: tuple[End, ...]
    optimum: float | None
    low: float | None
    high: float | None
    tuned: float | None
    moves: bool | None  # whether ``tuned`` lies outside low .. high; None: cannot be told
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """Losses of runs that diverged are null: JSON has no infinity."""

        def finite(losses: dict[float, float]) -> dict[str, float | None]:
            return {f"{rate:g}": loss if math.isfinite(loss) else None for rate, loss in losses.items()}

        return {**asdict(self), "ends": [{"x": end.x, "losses": finite(end.losses)} for end in self.ends]}


def guard_study(
    records: Sequence[Record],
    axis: str,
    level: float = 0.90,
    baseline: str | None = None,
    nearest: int | None = None,
) -> list[Verdict]:
    """A verdict for every curve that has guard runs, finished or not; options as in :func:`fit_study`."""
    if not any(map(is_guard, records)):
        return []
    ours: dict[Run, Record] = {key_of(r): r for r in records if not is_guard(r)}
    tried: dict[Run, dict[float, Record]] = defaultdict(dict)
    for row in records:
        if is_guard(row) and key_of(row) in ours:
            tried[key_of(row)][float(row["lr_scale"])] = row
    ends: dict[tuple[str, float], list[End]] = defaultdict(list)
    gains: dict[Size, float] = {}
    rescued: dict[Run, Record] = {}  # of a run that diverged at the rule's rate: the best that did not
    waiting: set[tuple[str, float]] = set()
    for key in sorted(tried, key=lambda k: k[3]):
        arm, budget, _, size = key
        runs = {1.0: ours[key], **tried[key]}
        if any(run["status"] not in ("done", "diverged") for run in runs.values()):
            waiting.add((arm, budget))
            continue
        losses = {rate: loss_of(runs[rate]) for rate in sorted(runs)}
        end = End(float(size_of(ours[key], axis) or size), losses)
        ends[arm, budget].append(end)
        best = losses[end.best]
        if math.isfinite(losses[1.0]):
            gains[arm, budget, size] = losses[1.0] - best
        elif math.isfinite(best):
            rescued[key] = {**runs[end.best], "lr_scale": 1.0}
    tuned_rows = [tuned_row(row, gains, rescued) for row in records]
    before, after = (fit_study(rows, axis, level, baseline, nearest) for rows in (records, tuned_rows))
    guarded = {*ends, *waiting}
    curves = [curve for curve in before.curves if (curve.arm, curve.budget) in guarded]
    return [
        verdict_on(curve, again, tuple(ends[curve.arm, curve.budget]), (curve.arm, curve.budget) in waiting, level)
        for curve in curves
        if (again := after.curve(curve.arm, curve.budget))
    ]


def verdict_on(curve: CurveFit, again: CurveFit, ends: tuple[End, ...], is_waiting: bool, level: float) -> Verdict:
    """``again``: the same curve, fitted with the best rate at its guarded ends."""
    found, p = curve.optimum, again.parabola
    tuned = p.vertex if p and p.curvature > 0 and found and not is_waiting else None
    moves = None
    if is_waiting:
        answer = "guard runs are not finished"
    elif not found:
        answer = f"no optimum that could move: {curve.refusal}"
    elif not tuned:
        answer = "with the best rates at its ends the curve has no minimum: the optimum rests on the rule"
    else:
        moves = not found.x_low <= tuned <= found.x_high
        answer = (
            f"with the best rates at its ends the optimum {'moves beyond' if moves else 'stays within'} its"
            f" {level:.0%} interval {size_text(found.x_low)} .. {size_text(found.x_high)}:"
            f" {size_text(found.x)} to {size_text(tuned)}"
        )
    sentence = f"{curve.arm} at {budget_text(curve.budget)}: " + "; ".join([*map(words_of, ends), answer])
    low, high, optimum = (found.x_low, found.x_high, found.x) if found else (None, None, None)
    return Verdict(curve.arm, curve.budget, ends, optimum, low, high, tuned, moves, sentence)


def key_of(row: Record) -> Run:
    return str(row["arm"]), float(row["budget"]), int(row["seed"]), float(row["flops_per_token"])


def loss_of(row: Record) -> float:
    """Nats; infinite for a run that diverged."""
    loss = row.get("loss")
    return float(loss) if row["status"] == "done" and loss is not None and math.isfinite(loss) else math.inf


def tuned_row(row: Record, gains: dict[Size, float], rescued: dict[Run, Record]) -> Record:
    """The run as if trained at its end's best rate. Other seeds of that size are taken to gain as much."""
    if is_guard(row):
        return row
    arm, budget, _, size = key = key_of(row)
    if key in rescued:
        return rescued[key]
    gain, loss = gains.get((arm, budget, size), 0.0), row.get("loss")
    return {**row, "loss": loss - gain} if gain and loss is not None else row


def words_of(end: End) -> str:
    losses = ", ".join(f"{loss:.4f}" if math.isfinite(loss) else "diverged" for loss in end.losses.values())
    rates = ", ".join(f"{rate:g}" for rate in end.losses)
    return f"at {size_text(end.x)} lr x {rates} gives {losses} (best x {end.best:g})"
