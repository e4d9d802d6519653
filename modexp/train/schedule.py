"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math


def lr_at(step: int, steps: int, warmup_steps: int, peak: float, final: float) -> float:
    """Rate of step ``step`` (from 0): linear up over the warm-up, then a cosine that ends, at the run's very last
    step, at ``final`` times the peak (Raposo et al. 2024, sec. 3.6: exactly the run's steps)."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    along = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * along)))
