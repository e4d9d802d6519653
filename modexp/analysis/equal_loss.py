"""The second reading of a comparison: how cheap a forward pass of an arm may be until it only equals the baseline.

Both curves run over forward FLOPs per token. The baseline's optimum has loss L0 at F0; the arm reaches L0 on the left
flank of its own parabola at F. The interval of F / F0 inverts the test of "the arm's loss at q F0 is L0", with the
noise of both fits and what their runs share; as Fieller's interval for a vertex, it divides by no slope.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from modexp.analysis.compare import (
    Difference,
    Shared,
    difference_of,
    estimator,
    pairs_of,
    shared_noise,
    vertex_weights,
    with_baseline,
)
from modexp.analysis.curve import CurveFit
from modexp.analysis.isoflop import StudyFit
from modexp.analysis.parabola import Parabola
from modexp.analysis.points import at_one_x
from modexp.errors import UserError

CANDIDATES = 401  # ratios that are tried, evenly spaced in their logarithm


@dataclass(frozen=True)
class ArmComparison:
    """One arm against the baseline at one budget. Ratios are the arm's over the baseline's; None: not reached, or open.

    ``flops``: FLOPs per forward pass at the baseline's best loss, ``flops_low`` .. ``flops_high`` its interval.
    ``speed``: training tokens a second there, measured, which is steps a second at equal batch.
    """

    difference: Difference
    flops: float | None
    flops_low: float | None
    flops_high: float | None
    speed: float | None
    sentence: str


def compare_arms(fit: StudyFit) -> list[ArmComparison]:
    """Every arm at every budget where it and the baseline have an optimum. ``fit``: by ``flops_per_token``."""
    if fit.axis != "flops_per_token":
        raise UserError(f"axis={fit.axis} is no cost of a forward pass", "compare by flops_per_token")
    both = with_baseline(fit.curves, fit.baseline)
    shared = shared_noise(both, fit.noise)
    return [compare_curves(*pair, shared) for pair in both if pair[0].optimum and pair[1].optimum]


def compare_curves(ours: CurveFit, theirs: CurveFit, shared: Shared) -> ArmComparison:
    difference = difference_of(ours, theirs, shared)
    mine, base = parabola_of(ours), parabola_of(theirs)
    start = math.log(base.vertex)
    ratios = np.linspace(math.log(mine.x_low) - start, math.log(mine.vertex) - start, CANDIDATES)
    gaps, margins = gaps_at(ratios + start, ours, theirs, shared)
    below = np.flatnonzero(gaps <= 0)  # the flank falls: from the first of these on the arm is at least as good
    allowed = np.abs(gaps) <= margins
    allowed[below[:1]] = True  # the root itself, between candidates where there is no noise
    inside = np.flatnonzero(allowed)
    root = float(ratios[below[0]]) if len(below) and below[0] > 0 else None
    low = float(ratios[inside[0]]) if len(inside) and inside[0] > 0 else None
    high = float(ratios[inside[-1]]) if len(inside) and inside[-1] < CANDIDATES - 1 else None
    flops = None if root is None else math.exp(root)
    speed = None if root is None else speed_ratio(ours, theirs, start + root)
    cheapest = bool(len(below) and below[0] == 0)
    sentence = told(difference, flops, low, high, speed, cheapest, len(inside) > 0 and not difference.distinguishable)
    return ArmComparison(
        difference,
        flops,
        None if low is None else math.exp(low),
        None if high is None else math.exp(high),
        speed,
        sentence,
    )


def parabola_of(curve: CurveFit) -> Parabola:
    assert curve.parabola is not None, f"Got {curve.refusal}"
    return curve.parabola


def gaps_at(log_x: np.ndarray, ours: CurveFit, theirs: CurveFit, shared: Shared) -> tuple[np.ndarray, np.ndarray]:
    """(arm's loss at each ``log_x`` less the baseline's best loss, half-width of its interval), nats, (candidates,).

    ``log_x`` stands at a given ratio to the baseline's optimum, so it moves with that optimum.
    """
    mine, base = parabola_of(ours), parabola_of(theirs)
    u = log_x - mine.centre
    c0, c1, c2 = mine.coefficients
    _, b1, b2 = base.coefficients
    vertex_gradient = np.array([0.0, -1 / (2 * b2), b1 / (2 * b2 * b2)])
    on_ours = np.vander(u, 3, increasing=True) @ estimator(ours)
    on_theirs = np.outer(c1 + 2 * c2 * u, vertex_gradient @ estimator(theirs)) - vertex_weights(theirs)
    joint = pairs_of(ours.points, theirs.points)
    margins = np.array([shared.margin(*weights, joint) for weights in zip(on_ours, on_theirs, strict=True)])
    return c0 + u * (c1 + u * c2) - base.vertex_loss, margins


def speed_ratio(ours: CurveFit, theirs: CurveFit, log_x: float) -> float | None:
    """Tokens a second of the arm at ``log_x`` over the baseline's at its optimum, read between the measured runs."""
    mine, base = seconds_at(ours, log_x), seconds_at(theirs, math.log(parabola_of(theirs).vertex))
    return base / mine if mine and base else None


def seconds_at(curve: CurveFit, log_x: float) -> float | None:
    """Seconds a token, interpolated between the curve's sizes in log-log, each the geometric mean of its seeds that
    were measured; None where a size was not."""
    sizes: dict[float, list[float]] = {x: [] for x, _ in at_one_x(curve.points)}
    for p, (x, _) in zip(curve.points, at_one_x(curve.points), strict=True):
        sizes[x] += [math.log(p.seconds_per_token)] if p.seconds_per_token else []
    if not all(sizes.values()):
        return None
    xs = sorted(sizes)
    return math.exp(float(np.interp(log_x, np.log(xs), [np.mean(sizes[x]) for x in xs])))


def told(
    difference: Difference,
    flops: float | None,
    low: float | None,
    high: float | None,
    speed: float | None,
    cheapest: bool,
    may: bool,
) -> str:
    """``cheapest``: the smallest run reaches the baseline's best loss; ``may``: some ratio cannot be told from one
    that does."""
    if flops is None:
        if cheapest:
            return (
                f"even the smallest {difference.arm} run reaches {difference.baseline}'s best loss: add smaller sizes"
            )
        if may:
            start = "any ratio of its grid" if low is None else f"{math.exp(low):.2f}x its FLOPs per forward pass"
            return (
                f"{difference.arm}'s best loss cannot be told from {difference.baseline}'s, which it could reach from"
                f" {start} on"
            )
        return f"{difference.arm} does not reach {difference.baseline}'s best loss"
    ends = ["open" if end is None else f"{math.exp(end):.2f}x" for end in (low, high)]
    faster = "" if speed is None else f", training {speed:.2f}x as many tokens a second (steps, at equal batch)"
    return (
        f"{difference.arm} equals {difference.baseline}'s best loss with {flops:.2f}x its FLOPs per forward pass"
        f" ({ends[0]} to {ends[1]}){faster}"
    )
