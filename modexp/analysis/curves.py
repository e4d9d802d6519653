"""Smoothing of training curves."""

from __future__ import annotations

import numpy as np

WINDOW_SHARE = 0.02  # of the run


def default_window(steps: np.ndarray) -> int:
    """Width of the running mean in steps: 2 % of the run, at least 1; steps (n,), n >= 1."""
    return max(1, round(WINDOW_SHARE * float(steps[-1] - steps[0])))


def running_mean(steps: np.ndarray, values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the rows within ``window`` steps around each; steps (n,) ascending, values and result (n,).

    Centred, as a trailing mean would show each run late. NaN where the window reaches past an end
    of the run: a mean over what is left would lift the last values of a falling curve, or let them flicker.
    """
    reach = window / 2
    first = np.searchsorted(steps, steps - reach, side="left")
    last = np.searchsorted(steps, steps + reach, side="right")
    total = np.concatenate([[0.0], np.cumsum(values, dtype=float)])
    fits = (steps - reach >= steps[0]) & (steps + reach <= steps[-1]) | (last - first == 1)
    return np.where(fits, (total[last] - total[first]) / (last - first), np.nan)
