"""One isoFLOP curve: its parabola, the optimum with its interval, or the reason why there is none.

Fieller's interval for the optimum needs the noise of one run, which few points a curve cannot tell: it is pooled over
a whole study (sum of residual squares over sum of degrees of freedom; seeds enter as repeated points). Noise includes
what a parabola cannot follow, so intervals widen on over-wide grids.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modexp.analysis.parabola import Parabola, fieller_set, fit_parabola, student_t
from modexp.analysis.points import Point, at_one_x
from modexp.wording import size_text

# Thresholds are chosen from the simulations in docs/statistics.md.
MIN_SIZES = 5
OUTER_SHARE = 0.2  # a vertex in the outer fifth of the grid (in log size) rests on one flank
WIDEST_GRID = 64.0  # largest over smallest size, +-8x: beyond it the parabola's own bias passes 3 %


@dataclass(frozen=True)
class Optimum:
    """Vertex of one curve. ``x`` in the unit of the axis, ``loss`` in nats; both with their interval."""

    x: float
    x_low: float
    x_high: float
    loss: float
    loss_low: float
    loss_high: float


@dataclass(frozen=True)
class CurveFit:
    """One (arm, budget). ``optimum`` is None exactly when ``refusal`` says why; a parabola may remain."""

    arm: str
    budget: float
    points: tuple[Point, ...]
    parabola: Parabola | None
    optimum: Optimum | None
    refusal: str
    warnings: tuple[str, ...]

    @property
    def num_sizes(self) -> int:
        return len({p.size for p in self.points})

    @property
    def raw_minimum(self) -> float:
        """Size of the run of lowest loss: what a fit is better than."""
        return min(self.points, key=lambda p: p.loss).x

    @property
    def flops(self) -> float:
        """Training FLOPs of the curve: the geometric mean of what its runs consumed."""
        return math.exp(sum(math.log(p.flops) for p in self.points) / len(self.points))

    def residuals(self) -> np.ndarray:
        """Loss less parabola, nats, (points,)."""
        assert self.parabola is not None, f"Got {self.refusal}"
        return np.array([p.loss - self.parabola.loss(p.x) for p in self.points])


@dataclass(frozen=True)
class Noise:
    """Scatter of one run (nats), how well it is known, and the level of the intervals made from it."""

    sd: float
    dof: int
    level: float

    def margin(self, unit_variance: float) -> float:
        """Half-width for a quantity whose variance is ``unit_variance`` x noise variance."""
        return student_t(self.level, self.dof) * self.sd * math.sqrt(unit_variance)


def pooled_noise(parabolas: Sequence[Parabola], level: float) -> Noise:
    dof = sum(p.dof for p in parabolas)
    squares = sum(p.residual_squares for p in parabolas)
    return Noise(math.sqrt(squares / dof) if dof else 0.0, dof, level)


def parabola_of(points: Sequence[Point]) -> Parabola | None:
    """Through the points of one curve; None with fewer than three sizes."""
    several = len({p.size for p in points}) >= 3
    return fit_parabola([p.x for p in points], [p.loss for p in points]) if several else None


def fit_curve(arm: str, budget: float, points: Sequence[Point], parabola: Parabola | None, noise: Noise) -> CurveFit:
    num_sizes = len({p.size for p in points})
    refusal = refusal_of(num_sizes, parabola, noise)
    optimum = None
    if parabola and not refusal:
        span = fieller_set(parabola, noise.sd, noise.dof, noise.level)
        assert span.low is not None, f"Got {span}"
        assert span.high is not None, f"Got {span}"
        margin = noise.margin(parabola.vertex_loss_variance)
        loss = parabola.vertex_loss
        optimum = Optimum(parabola.vertex, span.low, span.high, loss, loss - margin, loss + margin)
    warnings = tuple(warnings_of(points, parabola, optimum))
    return CurveFit(arm, budget, tuple(points), parabola, optimum, refusal, warnings)


def refusal_of(num_sizes: int, parabola: Parabola | None, noise: Noise) -> str:
    """Why this curve has no optimum that could be claimed; empty when it has."""
    if num_sizes < MIN_SIZES or parabola is None:
        return f"a fit needs {MIN_SIZES} distinct sizes, got {num_sizes}"
    if parabola.curvature <= 0:
        return "curvature is not positive: the curve has no minimum"
    grid = f"{size_text(parabola.x_low)}-{size_text(parabola.x_high)}"
    if parabola.vertex < parabola.x_low:
        return f"the minimum lies outside the grid {grid}: add sizes below {size_text(parabola.x_low)}"
    if parabola.vertex > parabola.x_high:
        return f"the minimum lies outside the grid {grid}: add sizes above {size_text(parabola.x_high)}"
    if fieller_set(parabola, noise.sd, noise.dof, noise.level).kind != "bounded":
        return (
            f"curvature cannot be told from zero at {noise.level:.0%}: the least-squares minimum, "
            f"{size_text(parabola.vertex)}, has no bounded interval; add seeds or widen the grid {grid}"
        )
    return ""


def warnings_of(points: Sequence[Point], parabola: Parabola | None, optimum: Optimum | None) -> list[str]:
    warnings = []
    if parabola and optimum:
        low, high = math.log(parabola.x_low), math.log(parabola.x_high)
        place = (math.log(optimum.x) - low) / (high - low)
        if place < OUTER_SHARE:
            warnings.append("off-centre: the optimum is in the lowest fifth of the grid, smaller sizes are missing")
        if place > 1 - OUTER_SHARE:
            warnings.append("off-centre: the optimum is in the highest fifth of the grid, larger sizes are missing")
        if optimum.x_low < parabola.x_low or optimum.x_high > parabola.x_high:
            warnings.append("the optimum's interval reaches beyond the grid")
    if parabola and parabola.x_high / parabola.x_low > WIDEST_GRID * (1 + 1e-9):
        ratio = parabola.x_high / parabola.x_low
        warnings.append(f"the grid spans {ratio:.0f}x, wider than +-8x: a parabola is biased by 3 % and more")
    seeds = {p.seed for p in points}
    held = Counter((p.seed, p.size) for p in points)
    place_of = {p.size: x for p, (x, _) in zip(points, at_one_x(points), strict=True)}
    outer = sorted(place_of, key=lambda size: place_of[size])
    for seed in sorted(seeds):
        absent = [size for size in outer if not held[seed, size]]
        # extra seeds are spent at the vertex, so a seed is missing only where those on both sides of it are there
        inside = [place_of[size] for size in absent if held[seed, outer[0]] and held[seed, outer[-1]]]
        if inside:
            warnings.append(f"seed {seed} is missing at {', '.join(map(size_text, inside))}")
    repeated = [p.epochs for p in points if p.epochs > 1]
    if repeated:
        warnings.append(f"{len(repeated)} of {len(points)} runs repeat their data (up to {max(repeated):.1f} epochs)")
    return warnings
