"""The exponent a of optimum = k C^a: a weighted line through the optima of one arm in log-log, and how it holds
when one budget is left out.

Intervals by the delta method with the study's pooled Student t (coverage by simulation: docs/statistics.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import scipy.special

from modexp.analysis.curve import CurveFit, Noise
from modexp.analysis.parabola import Parabola
from modexp.wording import budget_text

SHORT_LEVER = 2.0  # ratio of the largest over the smallest budget below which an exponent is mostly noise
LARGEST_LOG = 700.0  # e to this is the largest number there is, nearly


@dataclass(frozen=True)
class ExponentFit:
    """optimum = coefficient x C^exponent of one arm, C in FLOPs; None throughout when refused.

    ``line_variance`` at ln C is (1/weight + (ln C - mean)^2/spread) noise variances: see :meth:`variance`.
    """

    arm: str
    budgets: tuple[float, ...]
    exponent: float | None
    low: float | None
    high: float | None
    coefficient: float | None
    refusal: str
    warnings: tuple[str, ...]
    mean: float = 0.0  # of ln C, weighted
    weight: float = 0.0
    spread: float = 0.0

    def optimum(self, flops: float) -> float:
        assert self.exponent is not None, f"Got {self.refusal}"
        assert self.coefficient is not None, f"Got {self.refusal}"
        return self.coefficient * flops**self.exponent

    def variance(self, flops: float) -> float:
        """Of ln optimum at ``flops`` on the line, in noise variances."""
        return 1 / self.weight + (math.log(flops) - self.mean) ** 2 / self.spread


@dataclass(frozen=True)
class LeftOut:
    """What the other budgets say of one that was left out: the exponent without it and its optimum predicted."""

    arm: str
    budget: float
    exponent: float | None  # of the others; None where fewer than two remain
    predicted: float | None
    found: float
    within: bool | None  # the optimum found lies in the interval of the prediction, at the noise's level


def refused(arm: str, budgets: tuple[float, ...], reason: str) -> ExponentFit:
    return ExponentFit(arm, budgets, None, None, None, None, reason, ())


def too_near(budgets: Sequence[float], intercept: float) -> str:
    """A refusal where the line through the optima is so steep that its value at C = 1 is no number."""
    if abs(intercept) < LARGEST_LOG:
        return ""
    apart = f"{budget_text(min(budgets))} and {budget_text(max(budgets))}"
    return f"the budgets {apart} lie too near each other for an exponent: add a budget some times as large"


class Vertex(NamedTuple):
    """The optimum of one budget; ``flops`` is what its runs consumed."""

    budget: float
    flops: float
    parabola: Parabola


def vertices(curves: Sequence[CurveFit]) -> list[Vertex]:
    """Of the curves whose optimum stands."""
    return [Vertex(c.budget, c.flops, c.parabola) for c in curves if c.optimum and c.parabola]


def fit_exponent(arm: str, fitted: Sequence[Vertex], noise: Noise) -> ExponentFit:
    """Weighted line of ln(optimum) in ln C; with two budgets, the line through both."""
    budgets = tuple(vertex.budget for vertex in fitted)
    if len(fitted) < 2:
        return refused(arm, budgets, f"an exponent needs 2 budgets with an optimum, got {len(fitted)}")
    log_c = [math.log(v.flops) for v in fitted]
    log_x = [math.log(v.parabola.vertex) for v in fitted]
    weights = [1 / v.parabola.vertex_variance for v in fitted]  # the noise level cancels in the line
    total = sum(weights)
    mean_c = sum(w * c for w, c in zip(weights, log_c, strict=True)) / total
    mean_x = sum(w * x for w, x in zip(weights, log_x, strict=True)) / total
    spread = sum(w * (c - mean_c) ** 2 for w, c in zip(weights, log_c, strict=True))
    triples = list(zip(weights, log_c, log_x, strict=True))
    slope = sum(w * (c - mean_c) * (x - mean_x) for w, c, x in triples) / spread
    intercept = mean_x - slope * mean_c
    if refusal := too_near(budgets, intercept):
        return refused(arm, budgets, refusal)
    margin = noise.margin(1 / spread)
    warnings = []
    if len(fitted) == 2:
        warnings.append("two budgets: the line goes through both, and nothing checks it")
    if max(budgets) / min(budgets) < SHORT_LEVER:
        texts = " and ".join(map(budget_text, (min(budgets), max(budgets))))
        warnings.append(f"the budgets {texts} are less than {SHORT_LEVER:g}x apart: a short lever for an exponent")
    misfit = sum(w * (x - intercept - slope * c) ** 2 for w, c, x in triples)
    free = len(fitted) - 2
    if free and misfit / free > noise.sd**2 * scipy.special.fdtri(free, noise.dof, noise.level):
        warnings.append("the optima scatter about the line by more than their noise: the interval is too narrow")
    return ExponentFit(
        arm,
        budgets,
        slope,
        slope - margin,
        slope + margin,
        math.exp(intercept),
        "",
        tuple(warnings),
        mean_c,
        total,
        spread,
    )


def leave_one_out(arm: str, curves: Sequence[CurveFit], noise: Noise) -> list[LeftOut]:
    """Each budget of ``arm`` predicted from the others; empty with fewer than three optima."""
    fitted = [c for c in curves if c.optimum]
    rows = []
    for curve in fitted if len(fitted) >= 3 else []:
        assert curve.optimum is not None, f"Got {curve}"
        assert curve.parabola is not None, f"Got {curve}"
        others = fit_exponent(arm, vertices([c for c in fitted if c is not curve]), noise)
        predicted = within = None
        if others.exponent is not None:
            predicted = others.optimum(curve.flops)
            margin = noise.margin(others.variance(curve.flops) + curve.parabola.vertex_variance)
            within = abs(math.log(curve.optimum.x / predicted)) <= margin
        rows.append(LeftOut(arm, curve.budget, others.exponent, predicted, curve.optimum.x, within))
    return rows
