"""Optimum of an isoFLOP curve by interpolation, without a shape (Porian et al. 2024, sec. 3 and their code).

Mean loss per size, Akima's spline of log loss in log size, its minimum, and a least-squares line of log optimum in
log C. It follows curves that are no parabolas, wide grids above all, but passes through every point, noise
included, so near a flat minimum it needs losses that scatter little; the intervals show it.

The paper has one run a size; of several seeds the mean enters, as the best of them is too low where more were run.

Sizes x in any positive unit, losses in nats, budgets C in FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from modexp.analysis.exponent import too_near
from modexp.wording import size_text

MIN_SIZES = 3  # as in the paper's code
STEPS_PER_GAP = 100  # of the search between two sizes (the paper: 25)
MIN_INTERIOR = 0.5  # share of redraws with an inner minimum below which a budget is refused (the paper's rule)

Curve = Sequence[tuple[float, float]]  # (x, loss) of the runs at one budget


@dataclass(frozen=True)
class InterpolatedOptimum:
    """One budget. ``x`` and ``loss`` are None exactly when ``refusal`` says why; limits also without noise."""

    budget: float
    x: float | None
    loss: float | None
    x_low: float | None
    x_high: float | None
    refusal: str


@dataclass(frozen=True)
class InterpolatedExponent:
    """x* = coefficient x C^exponent over the budgets with an optimum; None throughout when refused."""

    optima: tuple[InterpolatedOptimum, ...]
    exponent: float | None
    low: float | None
    high: float | None
    coefficient: float | None
    refusal: str


def fit_interpolated(
    curves: Mapping[float, Curve],
    noise_sd: float | None = None,
    level: float = 0.90,
    resamples: int = 1000,
    seed: int = 0,
) -> InterpolatedExponent:
    """Optimum of every budget's curve (budget -> points) and the exponent.

    ``noise_sd``: scatter of one run's loss between seeds, in nats (``StudyFit.noise_sd`` has it); without it there
    are no intervals. The bootstrap is the paper's: Gaussian noise of that size (over the root of
    the number of runs) is added to every mean loss, relative to it in logs, all optima and the line are found again,
    and percentiles are taken. It assumes independent runs of equal scatter.
    Redraws whose minimum falls on an edge leave that budget out of their line.
    """
    budgets = sorted(curves)
    generator = np.random.default_rng(seed)
    optima, redrawn = [], []
    for budget in budgets:
        x, loss, runs = mean_per_size(curves[budget])
        noise = generator.standard_normal((len(x), resamples if noise_sd else 0))
        noise *= (noise_sd or 0.0) / np.sqrt(runs)[:, None]
        optimum, log_x = _optimum(budget, x, loss, noise, level)
        optima.append(optimum)
        if not optimum.refusal:
            redrawn.append(log_x)
    fitted = [(math.log(o.budget), math.log(o.x)) for o in optima if o.x is not None]
    if len(fitted) < 2:
        refusal = f"an exponent needs 2 budgets with an optimum, got {len(fitted)}"
        return InterpolatedExponent(tuple(optima), None, None, None, None, refusal)
    log_c, log_optimum = np.array(fitted).T
    slope, intercept = np.polyfit(log_c, log_optimum, 1)
    if refusal := too_near([o.budget for o in optima if o.x is not None], float(intercept)):
        return InterpolatedExponent(tuple(optima), None, None, None, None, refusal)
    low = high = None
    if noise_sd:
        slopes = _slopes(log_c, np.array(redrawn))
        low, high = _percentiles(slopes[np.isfinite(slopes)], level)
    return InterpolatedExponent(tuple(optima), float(slope), low, high, math.exp(intercept), "")


def mean_per_size(points: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes ascending, the mean loss of the runs of each, and how many those are; all (n,)."""
    losses: dict[float, list[float]] = {}
    for x, loss in points:
        losses.setdefault(x, []).append(loss)
    sizes = sorted(losses)
    means = [sum(losses[x]) / len(losses[x]) for x in sizes]
    return np.array(sizes), np.array(means), np.array([len(losses[x]) for x in sizes])


def nearest_to_minimum(points: Curve, count: int = 7) -> list[tuple[float, float]]:
    """Points of the ``count`` sizes nearest, in log size, to the lowest loss, by size: where a parabola holds.

    Repeated sizes count once and all their points are kept.
    """
    best, _ = min(points, key=lambda p: p[1])
    sizes = sorted({x for x, _ in points})
    nearest = set(sorted(sizes, key=lambda x: abs(math.log(x / best)))[:count])
    return sorted(p for p in points if p[0] in nearest)


def _optimum(
    budget: float, x: np.ndarray, loss: np.ndarray, noise: np.ndarray, level: float
) -> tuple[InterpolatedOptimum, np.ndarray]:
    """Optimum of one curve, and log x* (R,) with each column of ``noise`` (n, R) added: NaN on an edge."""

    def refused(sentence: str) -> tuple[InterpolatedOptimum, np.ndarray]:
        return InterpolatedOptimum(budget, None, None, None, None, sentence), np.empty(0)

    if len(x) < MIN_SIZES:
        return refused(f"an interpolation needs {MIN_SIZES} distinct sizes, got {len(x)}")
    # relative noise, as noise that is large beside a loss would make it negative, and its logarithm nothing
    redraws = np.log(loss)[:, None] + noise / loss[:, None]
    log_x, log_loss = _minima(x, np.concatenate([np.log(loss)[:, None], redraws], axis=1))
    if math.isnan(log_x[0]):
        edge, side = (x[0], "below") if loss[0] < loss[-1] else (x[-1], "above")
        return refused(f"the lowest loss is at an end of the grid: add sizes {side} {size_text(float(edge))}")
    low = high = None
    redrawn = log_x[1:]
    if redrawn.size:
        inner = redrawn[np.isfinite(redrawn)]
        if len(inner) < MIN_INTERIOR * len(redrawn):
            return refused(
                f"noise alone moves the minimum to an end of the grid in {1 - len(inner) / len(redrawn):.0%}"
            )
        low, high = (math.exp(limit) for limit in _percentiles(inner, level))
    return InterpolatedOptimum(budget, math.exp(log_x[0]), math.exp(log_loss[0]), low, high, ""), redrawn


def _minima(x: np.ndarray, log_losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log size and log loss at the minimum of each column of ``log_losses`` (n, R); size NaN at an end of the grid."""
    log_x = np.log(x)
    grid = np.linspace(log_x[0], log_x[-1], (len(x) - 1) * STEPS_PER_GAP)
    curve = Akima1DInterpolator(log_x, log_losses)(grid)  # (grid, R)
    lowest = curve.argmin(axis=0)
    inner = (lowest > 0) & (lowest < len(grid) - 1)
    return np.where(inner, grid[lowest], np.nan), curve.min(axis=0)


def _slopes(log_c: np.ndarray, log_x: np.ndarray) -> np.ndarray:
    """Least-squares slope of each column of log_x (budgets, R) over its finite rows; NaN with fewer than two."""
    there = np.isfinite(log_x)
    count = there.sum(axis=0)
    few = count < 2
    mean_c = (there * log_c[:, None]).sum(axis=0) / np.maximum(count, 1)
    centred = there * (log_c[:, None] - mean_c)
    spread = np.where(few, np.nan, (centred**2).sum(axis=0))
    return (centred * np.where(there, log_x, 0.0)).sum(axis=0) / spread


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
