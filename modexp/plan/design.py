"""What a planned study can know before it is run: simulated studies of its runs, fitted as the real one will be.

Losses follow L = E + A / N^alpha + B / D^beta with published constants, N all parameters and D tokens of each run,
times 1 + noise. The law is that of dense models; arms that route follow it too, for want of a better one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from modexp.analysis.curve import Noise, refusal_of
from modexp.analysis.exponent import Vertex, fit_exponent
from modexp.analysis.parabola import Parabola, fit_parabola
from modexp.plan.run import RunPlan

LEVEL = 0.90
STUDIES = 200


@dataclass(frozen=True)
class Law:
    """E in nats; A and B in nats x parameters^alpha and x tokens^beta."""

    name: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, N: np.ndarray, D: np.ndarray) -> np.ndarray:
        return self.E + self.A / N**self.alpha + self.B / D**self.beta


BESIROGLU = Law("Besiroglu et al. 2024", 1.8172, 482.01, 2085.43, 0.3478, 0.3658)


@dataclass(frozen=True)
class Expectation:
    """Of one arm. ``half_width`` of the exponent's 90 % interval, the median of the studies that give one; None where
    none does. Shares are of the studies without an exponent, and of curves without an optimum."""

    arm: str
    half_width: float | None
    refused: float
    curves_refused: float
    reason: str  # the commonest refusal of a curve; empty where there is none

    @property
    def sentence(self) -> str:
        if self.half_width is None:
            return f"{self.arm}: no exponent ({self.reason})"
        refusals = f"{self.refused:.0%} of the studies give none, {self.curves_refused:.0%} of the curves no optimum"
        return f"{self.arm}: exponent +-{self.half_width:.3f}; {refusals}"


def expect(
    plans: Sequence[RunPlan], noise: float = 0.01, studies: int = STUDIES, law: Law = BESIROGLU, seed: int = 0
) -> list[Expectation]:
    """Simulate ``studies`` studies of these runs, ``noise`` the relative standard deviation of one loss."""
    draw = np.random.default_rng(seed)
    arms = list(dict.fromkeys(plan.arm for plan in plans))
    keys = sorted({(arms.index(plan.arm), plan.budget) for plan in plans})
    curves: dict[tuple[str, float], list[Parabola]] = {}  # one parabola a study
    num_sizes: dict[tuple[str, float], int] = {}
    spent: dict[tuple[str, float], float] = {}  # mean FLOPs of a curve's runs
    for i, budget in keys:
        runs = [plan for plan in plans if (plan.arm, plan.budget) == (arms[i], budget)]
        N, D = (np.array([getattr(r, name) for r in runs], dtype=float) for name in ("params_total", "tokens"))
        loss = law.loss(N, D) * (1 + noise * draw.standard_normal((studies, len(runs))))
        key = (arms[i], budget)
        num_sizes[key] = len(set(N))
        spent[key] = math.exp(sum(math.log(r.flops) for r in runs) / len(runs))
        curves[key] = fit_parabolas(N, loss) if num_sizes[key] >= 3 else []
    exponents: dict[str, list[float]] = {arm: [] for arm in arms}
    refusals: dict[str, list[str]] = {arm: [] for arm in arms}
    for study in range(studies):
        fits = {key: parabolas[study] for key, parabolas in curves.items() if parabolas}
        dof = sum(p.dof for p in fits.values())
        squares = sum(p.residual_squares for p in fits.values())
        level = Noise(math.sqrt(squares / dof) if dof else 0.0, dof, LEVEL)
        whole: dict[str, list[Vertex]] = {arm: [] for arm in arms}
        for (arm, budget), sizes in num_sizes.items():
            parabola = fits.get((arm, budget))
            reason = refusal_of(sizes, parabola, level)
            if reason:
                refusals[arm].append(reason)
            elif parabola:
                whole[arm].append(Vertex(budget, spent[arm, budget], parabola))
        for arm in arms:
            fit = fit_exponent(arm, whole[arm], level)
            if fit.high is not None and fit.low is not None:
                exponents[arm].append((fit.high - fit.low) / 2)
    return [
        Expectation(
            arm=arm,
            half_width=median(exponents[arm]) if exponents[arm] else None,
            refused=1 - len(exponents[arm]) / studies,
            curves_refused=len(refusals[arm]) / studies / sum(a == arm for a, _ in num_sizes),
            reason=commonest(refusals[arm]) or "it needs 2 budgets",
        )
        for arm in arms
    ]


def commonest(reasons: Sequence[str]) -> str:
    """Numbers differ from study to study, so reasons are told apart by their beginning."""
    heads = [reason.partition(":")[0] for reason in reasons]
    return max(set(heads), key=heads.count) if heads else ""


def fit_parabolas(N: np.ndarray, loss: np.ndarray) -> list[Parabola]:
    """:func:`~modexp.analysis.parabola.fit_parabola` of each row of ``loss`` (studies, n) at sizes N (n,), at once."""
    first = fit_parabola(N.tolist(), loss[0].tolist())
    design = np.vander(np.log(N) - first.centre, 3, increasing=True)  # (n, 3)
    coefficients = loss @ np.linalg.pinv(design).T  # (studies, 3)
    squares = ((loss - coefficients @ design.T) ** 2).sum(axis=1)
    gram, dof, low, high = first.inverse_gram, first.dof, first.x_low, first.x_high
    return [
        Parabola(first.centre, (c[0], c[1], c[2]), gram, float(s), dof, low, high)
        for c, s in zip(coefficients.tolist(), squares.tolist(), strict=True)
    ]
