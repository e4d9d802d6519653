"""The loss surface L = E + A / N^alpha + B / D^beta, fitted to all budgets of an arm at once.

Two methods; both weigh a point by its *relative* error, both end in full precision:

``approach3``: Hoffmann et al. 2022 (sec. 3.3, eq. 10) as corrected by Besiroglu et al. 2024: the sum of
    Huber(1e-3) on log L. Nearly the absolute error, so single bad runs hardly count.
``vpnls``: variable projection (Czech et al. 2026): E, A, B follow linearly from the two exponents. Squared error
    of L over L: linear in E, A, B, as log L would not be, and to first order the error of log L, so that the two
    methods answer the same question. Plain squares of L would let the smallest, cheapest runs, whose losses are the
    highest, decide. More precise where scatter is Gaussian.

Both start from a grid of exponents with E, A, B projected out, and end by Newton's steps in all five: in the minimum
that a search in the two exponents alone finds (tests/test_surface.py), and to more digits.

N may be any size x that runs report (parameters, FLOPs per token), D is training tokens, L in nats a token.
Parameters are always in the order E, A, B, alpha, beta; the last axis of arrays (..., 5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import scipy.optimize

from modexp.analysis.newton import Penalty, huber, minimise, relative_square

PENALTIES: dict[str, Penalty] = {"approach3": huber, "vpnls": relative_square}
PARAMETERS = ("E", "A", "B", "alpha", "beta")
MIN_POINTS = 6  # one more than parameters
MIN_LEVELS = 3  # distinct sizes, and distinct token counts: two heights of A/N^alpha do not tell A from alpha
CLOSEST_LINE = 0.99  # squared correlation of log N and log D beyond which the two terms cannot be told apart
EXPONENTS = np.geomspace(0.05, 1.6, 8)  # starts: all pairs
VANISHED = 1e-4  # share of the lowest loss that E, A/N^alpha or B/D^beta must reach somewhere
STEEPEST = 5.0  # an exponent beyond it is a wall that one size stands behind, no power law
LARGEST_LOG = 700.0  # of a level: beyond it is no float, and the exponent is a wall
SAME = 1e-6  # two starts agree when their objectives differ by less than this share

Losses = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Cost:
    """Training FLOPs C = kappa x^q D. ``worst``: largest relative error of C over the runs it was fitted to."""

    kappa: float = 6.0
    q: float = 1.0
    worst: float = 0.0


SIX_ND = Cost()


class SurfaceOptimum(NamedTuple):
    """Size, training tokens and loss of the best run for a budget: floats, or arrays (R,)."""

    x: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray


@dataclass(frozen=True)
class Surface:
    """A fitted surface. ``objective`` is the sum that was minimised, over ``num_points``."""

    method: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float
    objective: float
    converged: bool
    starts: int
    agreeing: int  # starts that ended in this minimum
    num_points: int

    @property
    def parameters(self) -> np.ndarray:
        """E, A, B, alpha, beta (5,)."""
        return np.array([self.E, self.A, self.B, self.alpha, self.beta])

    def loss(self, x: Losses | float, tokens: Losses | float) -> np.ndarray:
        return loss_of(self.parameters, x, tokens)

    def exponent(self, cost: Cost = SIX_ND) -> float:
        """a in x* ~ C^a; tokens go as C^(1 - q a), which is alpha / (alpha + q beta)."""
        return float(exponent_of(self.parameters, cost))

    def optimum(self, budget: float, cost: Cost = SIX_ND) -> SurfaceOptimum:
        """Best size, tokens and loss at ``budget`` training FLOPs."""
        return SurfaceOptimum(*(float(v) for v in optimum_of(self.parameters, budget, cost)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class SurfaceFit:
    """``surface`` is None exactly when ``refusal`` says why."""

    surface: Surface | None
    refusal: str
    warnings: tuple[str, ...] = field(default=())


def approach3(n: Losses, d: Losses, loss: Losses) -> SurfaceFit:
    """Sum of Huber(1e-3) on log L; sizes, tokens, losses (n,)."""
    return fit_surface("approach3", n, d, loss)


def vpnls(n: Losses, d: Losses, loss: Losses) -> SurfaceFit:
    """Least squares of the relative error by variable projection; sizes, tokens, losses (n,)."""
    return fit_surface("vpnls", n, d, loss)


def fit_surface(method: str, n: Losses, d: Losses, loss: Losses) -> SurfaceFit:
    """Fit by ``method``, a key of PENALTIES, from 64 starts; every start is polished, the best is kept.

    Data that cannot carry five parameters give a refusal, never an exception. All values must be positive.
    """
    n, d, loss = (np.asarray(values, dtype=float) for values in (n, d, loss))
    if refusal := _refusal_of_data(n, d):
        return SurfaceFit(None, refusal)
    log_n, log_d = np.log(n), np.log(d)
    u, v = log_n - log_n.mean(), log_d - log_d.mean()
    starts = _starts(u, v, loss)
    theta, objective, converged = minimise(PENALTIES[method], starts, u, v, np.log(loss))
    best = int(objective.argmin())
    agreeing = int((objective <= objective[best] * (1 + SAME) + 1e-20).sum())
    E, A, B, alpha, beta = (float(p) for p in to_parameters(theta[best], n, d))
    if refusal := _refusal_of_fit((A, B, alpha, beta), n, d, loss):
        return SurfaceFit(None, refusal)
    value, sure = float(objective[best]), bool(converged[best])
    surface = Surface(method, E, A, B, alpha, beta, value, sure, len(starts), agreeing, len(loss))
    warnings = []
    if not sure:
        warnings.append("the fit has not converged: its parameters are not the minimum's")
    if VANISHED * loss.min() > E:
        warnings.append("the irreducible loss E came out as zero: the runs do not reach where the curve flattens")
    return SurfaceFit(surface, "", tuple(warnings))


def fit_cost(x: Losses, tokens: Losses, flops: Losses) -> Cost:
    """Line of log(C/D) in log x over the runs, as a ledger's C is no exact 6ND; all (n,), sizes not all equal.

    Read ``worst`` before use: it is what the line leaves out, such as attention that grows with width, not size.
    """
    x, tokens, flops = (np.asarray(values, dtype=float) for values in (x, tokens, flops))
    log_x, log_ratio = np.log(x), np.log(flops / tokens)
    centre = log_x.mean()
    q, level = np.polyfit(log_x - centre, log_ratio, 1)
    worst = np.abs(np.expm1(log_ratio - level - q * (log_x - centre))).max()
    return Cost(math.exp(level - q * centre), float(q), float(worst))


# --- formulas, for one surface or for many: parameters (..., 5) -----------------------------------------------


def loss_of(parameters: np.ndarray, x: Losses | float, tokens: Losses | float) -> np.ndarray:
    """E + A / x^alpha + B / D^beta; x and tokens broadcast against the leading axes."""
    E, A, B, alpha, beta = np.moveaxis(parameters, -1, 0)
    return E + A * np.asarray(x) ** -alpha + B * np.asarray(tokens) ** -beta


def exponent_of(parameters: np.ndarray, cost: Cost = SIX_ND) -> np.ndarray:
    alpha, beta = parameters[..., 3], parameters[..., 4]
    return beta / (alpha + cost.q * beta)


def optimum_of(parameters: np.ndarray, budget: float, cost: Cost = SIX_ND) -> SurfaceOptimum:
    """Minimum of the surface on C = kappa x^q D: x^(alpha + q beta) = alpha A / (q beta B) (C / kappa)^beta."""
    _, A, B, alpha, beta = np.moveaxis(parameters, -1, 0)
    log_reach = math.log(budget / cost.kappa)
    log_x = (np.log(alpha * A) - np.log(cost.q * beta * B) + beta * log_reach) / (alpha + cost.q * beta)
    x, tokens = np.exp(log_x), np.exp(log_reach - cost.q * log_x)
    return SurfaceOptimum(x, tokens, loss_of(parameters, x, tokens))


def to_parameters(theta: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """E, A, B, alpha, beta (..., 5) from the solver's theta (..., 5), whose sizes are centred on their mean log."""
    log_a, log_b, log_e, alpha, beta = np.moveaxis(theta, -1, 0)
    log_a, log_b = log_a + alpha * np.log(n).mean(), log_b + beta * np.log(d).mean()
    levels = (np.exp(np.minimum(level, LARGEST_LOG)) for level in (log_e, log_a, log_b))
    return np.stack([*levels, alpha, beta], axis=-1)


def to_theta(parameters: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Inverse of ``to_parameters``."""
    E, A, B, alpha, beta = np.moveaxis(parameters, -1, 0)
    log_a, log_b = np.log(A) - alpha * np.log(n).mean(), np.log(B) - beta * np.log(d).mean()
    return np.stack([log_a, log_b, np.log(E), alpha, beta], axis=-1)


# --- starts and refusals ---------------------------------------------------------------------------------------


def _starts(u: np.ndarray, v: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """All pairs of exponents with the E, A, B >= 0 that fit best for each, solved linearly; theta (64, 5)."""
    starts = []
    for alpha in EXPONENTS:
        for beta in EXPONENTS:
            columns = np.stack([np.exp(-alpha * u), np.exp(-beta * v), np.ones_like(u)], axis=1) / loss[:, None]
            levels, _ = scipy.optimize.nnls(columns, np.ones_like(u))
            starts.append([*np.log(np.maximum(levels, 1e-3 * loss.min())), alpha, beta])
    return np.array(starts)


def _refusal_of_data(n: np.ndarray, d: np.ndarray) -> str:
    """Why these points cannot carry a surface; empty when they can."""
    num_points = len(set(zip(n.tolist(), d.tolist(), strict=True)))
    if num_points < MIN_POINTS:
        return f"a surface needs {MIN_POINTS} distinct points, got {num_points}"
    for values, name in ((n, "sizes"), (d, "token counts")):
        if len(set(values.tolist())) < MIN_LEVELS:
            return f"a surface needs {MIN_LEVELS} distinct {name}, got {len(set(values.tolist()))}"
    if np.corrcoef(np.log(n), np.log(d))[0, 1] ** 2 > CLOSEST_LINE:
        return "sizes and tokens lie on one line (a single budget, or a fixed ratio): add runs of another budget"
    return ""


def _refusal_of_fit(fitted: tuple[float, float, float, float], n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> str:
    A, B, alpha, beta = fitted
    for level, exponent, values, name in ((A, alpha, n, "size"), (B, beta, d, "tokens")):
        if not exponent > 0:
            return f"loss does not fall with {name}: its exponent came out as {exponent:.3g}"
        if exponent > STEEPEST:
            return f"loss falls with {name} as with a wall: its exponent came out as {exponent:.3g}"
        if level * values.min() ** -exponent < VANISHED * loss.min():
            return f"loss does not depend on {name} in these runs: its term came out as zero"
    return ""
