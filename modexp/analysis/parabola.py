"""A parabola of loss in log size, where its vertex lies, and how well the data know it.

    loss = c0 + c1 u + c2 u²,   u = ln x - centre,   vertex at u* = -c1 / (2 c2)

Approach 2 of Hoffmann et al. 2022 (sec. 3.2). The vertex is a ratio of two noisy numbers, so its interval is
Fieller's (1954): the set of u at which the slope c1 + 2 c2 u cannot be told from zero. A bootstrap is too
narrow with five sizes (it covers 78-85 % where 90 % is asked for).

Sizes x are in any positive unit, losses in nats; noise is the standard deviation of one loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.special

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Parabola:
    """Least-squares fit. ``inverse_gram`` times the noise variance is the covariance of ``coefficients``."""

    centre: float  # mean of ln x: u is small and the three columns are nearly orthogonal
    coefficients: Vector  # c0, c1, c2 in nats
    inverse_gram: tuple[Vector, Vector, Vector]
    residual_squares: float
    dof: int
    x_low: float
    x_high: float

    def loss(self, x: float) -> float:
        u = math.log(x) - self.centre
        c0, c1, c2 = self.coefficients
        return c0 + u * (c1 + u * c2)

    @property
    def curvature(self) -> float:
        return self.coefficients[2]

    @property
    def vertex_u(self) -> float:
        """Vertex in u; only where the curvature is not zero."""
        _, c1, c2 = self.coefficients
        return -c1 / (2 * c2)

    @property
    def vertex(self) -> float:
        """Vertex in the unit of x."""
        return _exp(self.centre + self.vertex_u)

    @property
    def vertex_loss(self) -> float:
        c0, c1, c2 = self.coefficients
        return c0 - c1 * c1 / (4 * c2)

    @property
    def vertex_variance(self) -> float:
        """Delta-method variance of ln(vertex) for unit noise variance."""
        _, c1, c2 = self.coefficients
        return _quadratic_form(self.inverse_gram, (0.0, -1 / (2 * c2), c1 / (2 * c2 * c2)))

    @property
    def vertex_loss_variance(self) -> float:
        """Delta-method variance of the vertex loss for unit noise variance: the curve's height at u*."""
        u = self.vertex_u
        return _quadratic_form(self.inverse_gram, (1.0, u, u * u))


@dataclass(frozen=True)
class FiellerSet:
    """All sizes that the data allow for the vertex.

    ``bounded``: low .. high. ``two rays``: everything *but* low .. high. ``everything``: no limits. It is
    never empty, as the estimate itself belongs to it; it is bounded exactly when the curvature can be told
    from zero at this level.
    """

    kind: Literal["bounded", "two rays", "everything"]
    low: float | None
    high: float | None


def fit_parabola(x: Sequence[float], loss: Sequence[float]) -> Parabola:
    """Fit points (n,), (n,), repeated sizes welcome. ValueError with fewer than three distinct sizes."""
    if len(set(x)) < 3:
        raise ValueError(f"a parabola needs 3 distinct sizes, got {len(set(x))}")
    log_x = np.log(np.asarray(x, dtype=float))
    y = np.asarray(loss, dtype=float)
    centre = float(log_x.mean())
    design = np.vander(log_x - centre, 3, increasing=True)  # (n, 3)
    coefficients, *_ = np.linalg.lstsq(design, y)
    residual = y - design @ coefficients
    inverse_gram = np.linalg.inv(design.T @ design)
    return Parabola(
        centre=centre,
        coefficients=_vector(coefficients),
        inverse_gram=(_vector(inverse_gram[0]), _vector(inverse_gram[1]), _vector(inverse_gram[2])),
        residual_squares=float(residual @ residual),
        dof=len(y) - 3,
        x_low=float(min(x)),
        x_high=float(max(x)),
    )


def fieller_set(parabola: Parabola, noise_sd: float, dof: int, level: float = 0.90) -> FiellerSet:
    """Sizes u with (c1 + 2 c2 u)² <= t² s² Var(c1 + 2 c2 u), in the unit of x."""
    centre, (_, c1, c2) = parabola.centre, parabola.coefficients
    variance = parabola.inverse_gram
    scale = (student_t(level, dof) * noise_sd) ** 2
    # The condition is a u² + 2 b u + c <= 0.
    a = 4 * (c2 * c2 - scale * variance[2][2])
    b = 2 * (c1 * c2 - scale * variance[1][2])
    c = c1 * c1 - scale * variance[1][1]
    discriminant = b * b - a * c
    if a > 0:
        root = math.sqrt(max(discriminant, 0.0))  # below zero by rounding only: u* is always in the set
        return FiellerSet("bounded", _exp(centre + (-b - root) / a), _exp(centre + (-b + root) / a))
    if a == 0 or discriminant <= 0:
        return FiellerSet("everything", None, None)
    root = math.sqrt(discriminant)
    return FiellerSet("two rays", _exp(centre + (-b + root) / a), _exp(centre + (-b - root) / a))


def student_t(level: float, dof: float) -> float:
    """Half-width of a two-sided interval in standard errors: 1.645 for 0.90 and many degrees of freedom."""
    return float(scipy.special.stdtrit(dof, (1 + level) / 2))


def _exp(log_x: float) -> float:
    return math.exp(min(log_x, 700.0))  # a nearly straight line has its vertex anywhere; JSON has no infinity


def _vector(values: np.ndarray) -> Vector:
    a, b, c = (float(v) for v in values)
    return a, b, c


def _quadratic_form(matrix: tuple[Vector, Vector, Vector], v: Vector) -> float:
    return sum(v[i] * matrix[i][j] * v[j] for i in range(3) for j in range(3))
