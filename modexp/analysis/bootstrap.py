"""Intervals of a fitted loss surface by resampling its points: every refit is a full fit, all are solved together.

Pairs and percentiles, as Besiroglu et al. 2024 drew them, whose standard errors this gives. How often 90 % intervals
hold the truth (tests/benchmarks/surface_coverage.py; 200 studies of 3 budgets x 7 or 9 sizes, 1 % noise):

    vpnls       a 92-93 %, N* 90-91 %
    approach3   a 95-97 %, N* 93-95 %: nearly a median, and few points make the median of a resample jump

Drawing residuals instead is too narrow for approach3's N* (80-85 %), and narrower by half on Chinchilla's own
points, whose scatter is not the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modexp.analysis.newton import minimise
from modexp.analysis.surface import (
    PARAMETERS,
    PENALTIES,
    SIX_ND,
    Cost,
    Losses,
    Surface,
    SurfaceOptimum,
    exponent_of,
    optimum_of,
    to_parameters,
    to_theta,
)

BATCH = 200  # refits solved together: their arrays stay in a core's cache


@dataclass(frozen=True)
class Bootstrap:
    """Refits of one surface: ``parameters`` (R, 5) in the order of PARAMETERS.

    ``num_failed`` resamples had no falling surface and are left out. ``num_unconverged`` are among those that
    count: they creep along a valley in which E goes to zero, and leaving them out would cut that tail off.
    """

    parameters: np.ndarray
    num_unconverged: int
    num_failed: int

    def exponent(self, cost: Cost = SIX_ND) -> np.ndarray:
        """a in x* ~ C^a (R,)."""
        return exponent_of(self.parameters, cost)

    def optimum(self, budget: float, cost: Cost = SIX_ND) -> SurfaceOptimum:
        """Best size, tokens and loss at ``budget`` FLOPs, each (R,)."""
        return optimum_of(self.parameters, budget, cost)

    def intervals(
        self, budget: float | None = None, cost: Cost = SIX_ND, level: float = 0.90
    ) -> dict[str, tuple[float, float]]:
        """Percentile limits of E, A, B, alpha, beta and a; with a budget, of its x, tokens and loss too."""
        drawn = dict(zip(PARAMETERS, self.parameters.T, strict=True)) | {"a": self.exponent(cost)}
        if budget is not None:
            drawn |= self.optimum(budget, cost)._asdict()
        tails = [(1 - level) / 2, (1 + level) / 2]
        limits = {name: np.quantile(values, tails) for name, values in drawn.items()}
        return {name: (float(low), float(high)) for name, (low, high) in limits.items()}

    def standard_errors(self) -> dict[str, float]:
        """Standard deviation of each parameter over the refits."""
        return dict(zip(PARAMETERS, self.parameters.std(axis=0, ddof=1).tolist(), strict=True))


def bootstrap(surface: Surface, n: Losses, d: Losses, loss: Losses, resamples: int = 1000, seed: int = 0) -> Bootstrap:
    """Refit ``surface`` to its own points (sizes, tokens, losses, each (n,)) drawn with replacement.

    Assumes only that points scatter independently, at each its own noise. Seeds repeated at one size and budget are
    points like others. Runs that branch from one trunk are not independent: their intervals are too narrow.
    Each refit starts at ``surface``.
    """
    n, d, loss = (np.asarray(values, dtype=float) for values in (n, d, loss))
    log_n, log_d = np.log(n), np.log(d)
    u, v, y = log_n - log_n.mean(), log_d - log_d.mean(), np.log(loss)
    weights = resample(len(y), resamples, seed)
    start = to_theta(surface.parameters, n, d)
    refits, converged = [], []
    for batch in np.array_split(weights, max(1, resamples // BATCH)):
        theta, _, reached = minimise(
            PENALTIES[surface.method], np.repeat(start[None], len(batch), axis=0), u, v, y, batch
        )
        refits.append(to_parameters(theta, n, d))
        converged.append(reached)
    parameters, reached = np.concatenate(refits), np.concatenate(converged)
    falls = (parameters[:, 3:] > 0).all(axis=1) & (parameters[:, 1:3] > 0).all(axis=1)
    return Bootstrap(parameters[falls], int((falls & ~reached).sum()), int((~falls).sum()))


def resample(num_points: int, resamples: int, seed: int) -> np.ndarray:
    """How often each point is drawn in each resample (resamples, num_points)."""
    drawn = np.random.default_rng(seed).integers(num_points, size=(resamples, num_points))
    return np.stack([np.bincount(row, minlength=num_points) for row in drawn]).astype(float)
