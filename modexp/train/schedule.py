"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import Any

from modexp.config.train import ScheduleConfig


def lr_at(step: int, steps: int, warmup_steps: int, peak: float, final: float) -> float:
    """Rate of step ``step`` (from 0): linear up over the warm-up, then a cosine that ends, at the run's very last
    step, at ``final`` times the peak (Raposo et al. 2024, sec. 3.6: exactly the run's steps)."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    along = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * along)))


def wsd_at(step: int, steps: int, warmup_steps: int, decay_steps: int, peak: float, final: float) -> float:
    """Rate of step ``step`` (from 0): linear up, constant, and over the last ``decay_steps`` down from the peak towards
    ``final`` times it as 1 - sqrt (Hagele et al. 2024, arXiv 2405.18392, equation 1)."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    along = max(0, step - (steps - decay_steps)) / decay_steps
    return peak * (final + (1 - final) * (1 - math.sqrt(along)))


def planned_lr(schedule: ScheduleConfig, plan: dict[str, Any], step: int) -> float:
    """Rate of a step of the run planned in plan.json."""
    if schedule.kind == "wsd":
        shape = plan["steps"], plan["warmup_steps"], plan["decay_steps"]
        return wsd_at(step, *shape, plan["lr"], schedule.final_lr)
    return lr_at(step, plan["steps"], plan["warmup_steps"], plan["lr"], schedule.final_lr)
