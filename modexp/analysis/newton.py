"""Many small fits of a loss surface at once: damped Newton steps, vectorised over the fits.

A fit has five parameters theta = (log A, log B, log E, alpha, beta) and predicts (Hoffmann et al. 2022, eq. 10)

    log L = log(exp(log A - alpha u) + exp(log B - beta v) + exp(log E))

with u, v = log size and log tokens, *centred*: uncentred, A and alpha are nearly one direction and digits are lost.
Many starts of one fit, and many resamples of one study, are the same problem with another first axis, so one
solver serves both; scipy's take one problem a call, and a thousand calls take minutes.

Shapes: R fits, n points; theta (R, 5), u, v (n,), y = log L and weights broadcast to (R, n).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

# Penalty of a residual s = log L - log prediction: its value and first two derivatives, each shaped as s.
Penalty = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]

HUBER_DELTA = 1e-3  # Hoffmann et al. 2022, sec. 3.3
COARSE_DELTAS = (3e-2, 1e-2, 3e-3)  # on the way there: from afar 1e-3 is all corners, on which Newton's steps stall
COARSE_STEPS = 30
MAX_STEPS = 300
LONGEST_STEP = 2.0  # in any parameter: from far away a Newton step may point anywhere
PRECISION = 1e-11  # a fit has converged when a step that it takes promised less than this share of the objective
EXACT = 1e-28  # mean penalty of a point below which only rounding is left


def huber(s: np.ndarray, delta: float = HUBER_DELTA) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """s²/2 up to delta, straight beyond: nearly the absolute error at the usual scatter of half a percent."""
    inside = np.abs(s) <= delta
    value = np.where(inside, s * s / 2, delta * (np.abs(s) - delta / 2))
    return value, np.clip(s, -delta, delta), inside.astype(float)


def relative_square(s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Half the squared relative error ((L - prediction) / L)², written in s."""
    ratio = np.exp(-np.clip(s, -50.0, 50.0))  # prediction over loss
    return (1 - ratio) ** 2 / 2, (1 - ratio) * ratio, ratio * (2 * ratio - 1)


class Expansion(NamedTuple):
    """Objective (R,), gradient (R, 5) and Hessian (R, 5, 5) at theta."""

    value: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray


def expand(
    penalty: Penalty, theta: np.ndarray, u: np.ndarray, v: np.ndarray, y: np.ndarray, weights: np.ndarray
) -> Expansion:
    """Weighted *sum* (a mean stops optimizers early: Besiroglu et al. 2024) of penalties, with derivatives."""
    residual, jacobian = residuals(theta, u, v, y)
    value, slope, bend = penalty(residual)
    slope, bend = weights * slope, weights * bend
    gradient = -np.einsum("rpn,rn->rp", jacobian, slope)
    hessian = (jacobian * (bend + slope)[:, None, :]) @ jacobian.transpose(0, 2, 1)
    # Second derivatives of log-sum-exp: those of its terms (here), less the product of slopes (above, in the sum).
    for term, (level, exponent, log_size) in enumerate(((0, 3, u), (1, 4, v))):
        share = slope * jacobian[:, term]
        first = (share * log_size).sum(axis=1)
        hessian[:, level, level] -= share.sum(axis=1)
        hessian[:, level, exponent] += first
        hessian[:, exponent, level] += first
        hessian[:, exponent, exponent] -= (share * log_size**2).sum(axis=1)
    hessian[:, 2, 2] -= (slope * jacobian[:, 2]).sum(axis=1)
    return Expansion((weights * value).sum(axis=1), gradient, hessian)


def residuals(theta: np.ndarray, u: np.ndarray, v: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log L - prediction (R, n), and the prediction's derivatives in theta (R, 5, n)."""
    log_a, log_b, log_e, alpha, beta = theta.T[:, :, None]
    terms = np.stack(np.broadcast_arrays(log_a - alpha * u, log_b - beta * v, log_e), axis=1)  # (R, 3, n)
    top = terms.max(axis=1)
    shares = np.exp(terms - top[:, None])
    total = shares.sum(axis=1)
    shares /= total[:, None]
    jacobian = np.concatenate([shares, -shares[:, :1] * u, -shares[:, 1:2] * v], axis=1)
    return y - top - np.log(total), jacobian


def minimise(
    penalty: Penalty, theta: np.ndarray, u: np.ndarray, v: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Minimum near each start: theta (R, 5), objective (R,), converged (R,)."""
    y = np.broadcast_to(y, (len(theta), len(u)))
    weights = np.ones_like(y) if weights is None else np.broadcast_to(weights, y.shape)
    if penalty is huber:
        for delta in COARSE_DELTAS:
            theta, _, _ = _descend(partial(huber, delta=delta), theta, u, v, y, weights, COARSE_STEPS)
    return _descend(penalty, theta, u, v, y, weights, MAX_STEPS)


def _descend(
    penalty: Penalty, theta: np.ndarray, u: np.ndarray, v: np.ndarray, y: np.ndarray, weights: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Newton's steps with the Hessian's eigenvalues made positive, so that a saddle repels, and raised by a damping
    that falls after a gain and grows after a loss. Fits that are done leave the batch."""
    theta = theta.copy()
    objective, converged = np.empty(len(theta)), np.zeros(len(theta), dtype=bool)
    live = np.arange(len(theta))
    here = expand(penalty, theta, u, v, y, weights)
    damping = np.full(len(theta), 1e-3)  # share of the largest curvature
    for _ in range(steps):
        curvature, axes = np.linalg.eigh(here.hessian)
        curvature = np.abs(curvature)
        largest = curvature.max(axis=1, keepdims=True) + 1e-300
        along = np.einsum("rij,ri->rj", axes, here.gradient)
        step = -np.einsum("rij,rj->ri", axes, along / (curvature + damping[:, None] * largest))
        step *= np.minimum(1, LONGEST_STEP / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-300))
        gain = -(here.gradient * step).sum(axis=1)
        there = expand(penalty, theta[live] + step, u, v, y[live], weights[live])
        better = there.value <= here.value * (1 + 1e-14)
        theta[live[better]] += step[better]
        here = Expansion(
            *(np.where(better.reshape(-1, *[1] * (a.ndim - 1)), b, a) for a, b in zip(here, there, strict=True))
        )
        finished = (gain <= PRECISION * here.value) & (damping < 1e-5) | (
            here.value < EXACT * weights[live].sum(axis=1)
        )
        objective[live], converged[live] = here.value, finished
        damping = np.where(better, damping / 5, np.clip(damping * 6, 1e-9, 1e12))
        if finished.all():
            break
        live, damping = live[~finished], damping[~finished]
        here = Expansion(*(a[~finished] for a in here))
    return theta, objective, converged
