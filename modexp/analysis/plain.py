"""The exponent as most papers fit it: a parabola of log loss a budget, and a line in which all optima weigh alike.

It stands beside the weighted line of :mod:`modexp.analysis.exponent` as a check. Both are right where losses scatter
evenly about true parabolas; where they differ, the weights or the shape decide, and the data do not. It needs no noise
level, so it has no interval, and refuses only what has no vertex inside its grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modexp.analysis.curve import MIN_SIZES, CurveFit
from modexp.analysis.parabola import fit_parabola


@dataclass(frozen=True)
class PlainExponent:
    """Of one arm; ``exponent`` is None exactly when ``refusal`` says why."""

    budgets: tuple[float, ...]  # whose vertex lies inside the grid
    exponent: float | None
    refusal: str


def fit_plain(curves: Sequence[CurveFit]) -> PlainExponent:
    """Through the points of one arm's curves; losses in nats, positive."""
    found = [(c.budget, c.flops, vertex) for c in curves if (vertex := inner_vertex(c)) is not None]
    budgets = tuple(budget for budget, _, _ in found)
    if len(found) < 2:
        return PlainExponent(budgets, None, f"an exponent needs 2 budgets with an optimum, got {len(found)}")
    slope, _ = np.polyfit(np.log([flops for _, flops, _ in found]), np.log([x for *_, x in found]), 1)
    return PlainExponent(budgets, float(slope), "")


def inner_vertex(curve: CurveFit) -> float | None:
    """Of the parabola of log loss, in the unit of the axis; None at or beyond an end, or with too few sizes."""
    if curve.num_sizes < MIN_SIZES:
        return None
    parabola = fit_parabola([p.x for p in curve.points], [math.log(p.loss) for p in curve.points])
    inside = parabola.curvature > 0 and parabola.x_low < parabola.vertex < parabola.x_high
    return parabola.vertex if inside else None
