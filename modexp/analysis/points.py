"""Which runs of a study enter a fit, and for each that does not: why.

A *record* is a plain dict, one a run, as read from the run directories; an unfinished run may lack keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from modexp.errors import UserError
from modexp.wording import budget_text

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """A measure of size: where a record holds it, and what a figure calls it."""

    key: str
    label: str


AXES = {
    "params": Axis("params_total", "parameters"),
    "non_embedding": Axis("params_non_embedding", "non-embedding parameters"),
    "active": Axis("params_active", "active parameters per token"),
    "flops_per_token": Axis("flops_per_token", "forward FLOPs per token"),
    "tokens": Axis("tokens", "training tokens"),
    "seconds": Axis("seconds_per_token", "measured seconds of training per token"),
}

# what tells two runs of one arm, budget and seed apart
SETTLED = ("params_total", "flops_per_token", "tokens", "loss", "lr", "batch_size")

TOLERANCE = 1e-3  # share by which what a run consumed may miss its plan and its budget
LOOSEST = 1e-2  # of its budget, where half a sequence is more than that: such runs spent no equal FLOPs

RULE = (
    f"A run enters once, when it is done, its held-out loss is finite, and it consumed its plan to {TOLERANCE:.1%} and"
    f" its budget to as much (to half a sequence where that is more, {LOOSEST:.0%} at most)."
)


@dataclass(frozen=True)
class Point:
    """One finished run as a point of a curve. ``x`` in the unit of the axis, losses in nats a token."""

    run: str
    arm: str
    budget: float  # target training FLOPs, exact: 1.5e19 and 2.4e19 are two budgets
    seed: int
    x: float  # as measured, where the axis is: seeds of one size then differ in it
    size: float  # as planned: one number for all seeds of a size
    loss: float
    epochs: float
    flops: float  # consumed in training, under the convention that the study is read in
    tokens: float  # trained on
    seconds_per_token: float | None  # measured, of training


@dataclass(frozen=True)
class DroppedRun:
    run: str
    arm: str
    budget: float
    reason: str


def select(records: Sequence[Record], axis: str) -> tuple[list[Point], list[DroppedRun]]:
    """Points on ``axis`` (a key of AXES), in the order of the records, and the runs left out; guard runs are
    neither."""
    if axis not in AXES:
        raise UserError(f"axis={axis} is not a size that runs report", f"try one of {', '.join(AXES)}")
    points, dropped = [], []
    seen: dict[tuple[Any, ...], str] = {}
    for record in records:
        if is_guard(record):
            continue
        run, arm, budget = str(record["run"]), str(record["arm"]), float(record["budget"])
        reason = reason_to_drop(record)
        x = size_of(record, axis)
        if not reason and not (x or 0) > 0:
            reason = f"reports no {AXES[axis].key}"
        if not reason:
            same = (arm, budget, record.get("seed"), *(record.get(key) for key in SETTLED))
            reason = f"is the same run as {seen[same]}" if same in seen else ""
            seen.setdefault(same, run)
        if reason:
            dropped.append(DroppedRun(run, arm, budget, reason))
            continue
        assert x is not None, f"Got {record}"
        points.append(
            Point(
                run,
                arm,
                budget,
                seed=int(record.get("seed") or 0),
                x=float(x),
                size=planned_size(record, axis, float(x)),
                loss=float(record["loss"]),
                epochs=float(record.get("epochs") or 0.0),
                flops=float(record.get("flops_reread") or record["flops_consumed"]),
                tokens=float(record.get("tokens") or 0.0),
                seconds_per_token=record.get("seconds_per_token"),
            )
        )
    return points, dropped


def is_guard(record: Record) -> bool:
    """Whether a run tries another learning rate than its rule's: never a point, see modexp/analysis/guard.py."""
    return float(record.get("lr_scale") or 1.0) != 1.0


def shared_trunks(records: Sequence[Record]) -> str:
    """A sentence where runs branch off others; empty where each is its own."""
    branches = sum(bool(record.get("trunk")) for record in records)
    return (
        f"{branches} of {len(records)} runs share the trunk of a larger budget: the losses of one size go up and down"
        " together, so intervals, which take them for independent, are too narrow"
        if branches
        else ""
    )


def size_of(record: Record, axis: str) -> float | None:
    """A run's place on an axis. Its FLOPs per token are those that its causal router really spent."""
    realised = record.get("flops_per_token_causal") if axis == "flops_per_token" else None
    return realised if realised is not None else record.get(AXES[axis].key)


def planned_size(record: Record, axis: str, x: float) -> float:
    """What tells sizes of one arm and budget apart: planned FLOPs per token where ``x`` is measured, else ``x``."""
    return float(record.get("flops_per_token") or x) if axis in ("flops_per_token", "seconds") else x


def at_one_x(points: Sequence[Point]) -> list[tuple[float, float]]:
    """(x, loss) of every point of a curve, runs of one size standing at the geometric mean of what they measured."""
    measured: dict[float, list[float]] = {}
    for p in points:
        measured.setdefault(p.size, []).append(p.x)
    means = {size: xs[0] if len(set(xs)) == 1 else math.exp(mean(map(math.log, xs))) for size, xs in measured.items()}
    return [(means[p.size], p.loss) for p in points]


def reason_to_drop(record: Record) -> str:
    """Why this run cannot be a point of a fit; empty when it can."""
    status, loss = record.get("status"), record.get("loss")
    if status == "failed":
        return f"failed: {record.get('error') or 'no reason recorded'}"
    if status == "diverged" or (loss is not None and not math.isfinite(loss)):
        return "diverged"
    if status != "done":
        return f"not finished ({status or 'no status'})"
    if loss is None:
        return "has no held-out loss"
    consumed, budget = record.get("flops_consumed"), float(record["budget"])
    if consumed is None:
        return "does not say what it consumed"
    if missed_plan(record):
        planned = record["flops_planned"]
        return f"missed its plan of {planned:.6g} FLOPs by {consumed / planned - 1:+.2%} (allowed {TOLERANCE:.2%})"
    tolerance = tolerance_of(record)
    miss = consumed / budget - 1
    if abs(miss) > tolerance:
        return f"missed its budget of {budget_text(budget)} FLOPs by {miss:+.2%} (allowed {tolerance:.2%})"
    return ""


def missed_plan(record: Record) -> bool:
    """Whether a finished run consumed other FLOPs than its plan promised; a plan is kept to the last step."""
    planned = record.get("flops_planned")
    return bool(planned) and abs(record["flops_consumed"] / planned - 1) > TOLERANCE


def tolerance_of(record: Record) -> float:
    """Share by which a run may miss its budget: plans are whole sequences, so half of one may be wanting."""
    if record.get("budget_tolerance"):  # a table whose budgets are read off its FLOPs
        return float(record["budget_tolerance"]) + TOLERANCE
    T, tokens = record.get("sequence_length"), record.get("tokens_planned")
    half = T / tokens / 2 if T and tokens else 0.0
    return min(max(TOLERANCE, half), LOOSEST) * (1 + 1e-9)


def arms_of(records: Sequence[Record]) -> list[str]:
    """Arms in order of appearance."""
    return list(dict.fromkeys(str(r["arm"]) for r in records))


def baseline_of(records: Sequence[Record]) -> str:
    """The arm others are compared with: ``baseline`` where one is so called, else the first dense one."""
    arms = arms_of(records)
    dense = [str(r["arm"]) for r in records if not r.get("routed")]
    return "baseline" if "baseline" in arms else (dense or arms)[0]


def baseline_first(records: Sequence[Record]) -> list[str]:
    """Arms as figures list them: the baseline, then the others as they come."""
    baseline = baseline_of(records)
    return sorted(arms_of(records), key=lambda arm: arm != baseline)
