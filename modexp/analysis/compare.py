"""Two arms against each other, budget by budget, on runs paired by seed and rung of FLOPs per token.

Runs of one pair see the same data in the same order, so part of their noise is common and leaves the difference. Each
arm keeps its own parabola; the covariance of paired residuals, pooled over the study, enters the variance of what is
computed from both. On equal grids that is the variance of the paired differences themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modexp.analysis.curve import CurveFit, Noise
from modexp.analysis.parabola import Parabola, student_t
from modexp.analysis.points import Point
from modexp.wording import budget_text

SAME_RUNG = 1.4  # ratio of FLOPs per token up to which two runs are on the same rung


@dataclass(frozen=True)
class Difference:
    """Loss at the optimum of ``arm`` less that of ``baseline`` in nats: negative where the arm is better."""

    arm: str
    baseline: str
    budget: float
    difference: float
    low: float
    high: float
    relative: float  # difference over the baseline's loss
    pairs: int  # runs of the arm that have a partner
    correlation: float  # of paired residuals, pooled over the study
    distinguishable: bool
    sentence: str


@dataclass(frozen=True)
class Shared:
    """Noise that runs have in common with their partners: its ``covariance`` (nats²) over all pairs of ``arms`` arms
    with the baseline, each of which adds ``dof`` degrees of freedom."""

    covariance: float
    arms: int
    dof: float
    noise: Noise

    @property
    def correlation(self) -> float:
        return self.covariance / self.noise.sd**2 if self.noise.sd else 0.0

    def margin(self, ours: np.ndarray, theirs: np.ndarray, joint: np.ndarray) -> float:
        """Half-width for a quantity with weights (n,) on our losses, (m,) on theirs; ``joint`` (n, m) marks pairs."""
        own, both = float(ours @ ours + theirs @ theirs), 2 * float(ours @ joint @ theirs)
        variance = max(own + both * self.correlation, 0.0)
        dof = self.dof_of(own, both) if both else self.noise.dof
        return student_t(self.noise.level, dof) * self.noise.sd * math.sqrt(variance)

    def dof_of(self, own: float, both: float) -> float:
        """Satterthwaite's degrees of freedom of own x variance + both x covariance.

        Of K arms and a baseline whose residuals all correlate by rho: the pairs have the baseline in common, so the
        covariance is known less well than K x dof would say. One arm gives back the ``dof`` of plain differences.
        """
        k, rho = self.arms, min(max(self.correlation, -0.9), 0.9)
        of_variance = 2 * (1 + k * rho**2) / (k + 1)
        of_covariance = (1 + rho**2) / k + (1 - 1 / k) * (rho + rho**2)
        common = (4 * rho + 2 * (k - 1) * rho**2) / (k + 1)
        spread = own**2 * of_variance + both**2 * of_covariance + 2 * own * both * common
        dof = 2 * (own + both * rho) ** 2 / spread * self.dof
        return min(max(dof, 1.0), self.noise.dof)


def vertex_differences(curves: Sequence[CurveFit], baseline: str, noise: Noise) -> list[Difference]:
    """Every arm against the baseline wherever both have an optimum."""
    both = with_baseline(curves, baseline)
    shared = shared_noise(both, noise)
    return [difference_of(*pair, shared) for pair in both if pair[0].optimum and pair[1].optimum]


def with_baseline(curves: Sequence[CurveFit], baseline: str) -> list[tuple[CurveFit, CurveFit]]:
    """Each fitted curve with the baseline's at its budget."""
    references = {c.budget: c for c in curves if c.arm == baseline and c.parabola}
    return [(c, references[c.budget]) for c in curves if c.arm != baseline and c.parabola and c.budget in references]


def difference_of(ours: CurveFit, theirs: CurveFit, shared: Shared) -> Difference:
    assert ours.parabola is not None, f"Got {ours}"
    assert theirs.parabola is not None, f"Got {theirs}"
    joint = pairs_of(ours.points, theirs.points)
    difference = ours.parabola.vertex_loss - theirs.parabola.vertex_loss
    margin = shared.margin(vertex_weights(ours), -vertex_weights(theirs), joint)
    relative = difference / theirs.parabola.vertex_loss
    distinguishable = abs(difference) > margin
    verdict = ("lower" if difference < 0 else "higher") if distinguishable else "not distinguishable"
    level = shared.noise.level
    return Difference(
        ours.arm,
        theirs.arm,
        ours.budget,
        difference,
        difference - margin,
        difference + margin,
        relative,
        int(joint.sum()),
        shared.correlation,
        distinguishable,
        f"{ours.arm} against {theirs.arm} at {budget_text(ours.budget)} FLOPs: {difference:+.4f} nats"
        f" ({relative:+.2%}), {level:.0%} interval {difference - margin:+.4f} to {difference + margin:+.4f}: {verdict}",
    )


def pairs_of(ours: Sequence[Point], theirs: Sequence[Point]) -> np.ndarray:
    """(n, m), 1 where two runs have one seed and are each other's nearest in training FLOPs per token."""
    joint = np.zeros((len(ours), len(theirs)))
    for seed in {p.seed for p in ours}:
        rows = [i for i, p in enumerate(ours) if p.seed == seed and p.tokens]
        columns = [j for j, p in enumerate(theirs) if p.seed == seed and p.tokens]
        if not rows or not columns:
            continue
        cost = [np.log([points[i].flops / points[i].tokens for i in chosen]) for points, chosen in
                ((ours, rows), (theirs, columns))]  # fmt: skip
        apart = np.abs(cost[0][:, None] - cost[1][None, :])
        for i, j in enumerate(apart.argmin(axis=1)):
            if apart[:, j].argmin() == i and apart[i, j] <= math.log(SAME_RUNG):
                joint[rows[i], columns[j]] = 1
    return joint


def shared_noise(both: Sequence[tuple[CurveFit, CurveFit]], noise: Noise) -> Shared:
    """Covariance of paired residuals, one for the study as the noise is: over all budgets and arms.

    E[r1' P r2] = covariance x trace(M1 P M2 P'), with M the residual makers of the two parabolas and P the pairs.
    """
    products = dof = 0.0
    for ours, theirs in both:
        joint = pairs_of(ours.points, theirs.points)
        products += float(ours.residuals() @ joint @ theirs.residuals())
        dof += float(np.trace(residual_maker(ours) @ joint @ residual_maker(theirs) @ joint.T))
    limit, arms = noise.sd**2, len({ours.arm for ours, _ in both})
    covariance = min(max(products / dof, -limit), limit) if dof > 1e-9 else 0.0
    return Shared(covariance, arms, dof / max(arms, 1), noise)


def design_of(curve: CurveFit) -> np.ndarray:
    """(points, 3): 1, u, u² of each run."""
    assert curve.parabola is not None, f"Got {curve.refusal}"
    u = np.log([p.x for p in curve.points]) - curve.parabola.centre
    return np.vander(u, 3, increasing=True)


def estimator(curve: CurveFit) -> np.ndarray:
    """(3, points): coefficients = estimator @ losses."""
    assert curve.parabola is not None, f"Got {curve.refusal}"
    return np.array(curve.parabola.inverse_gram) @ design_of(curve).T


def residual_maker(curve: CurveFit) -> np.ndarray:
    return np.eye(len(curve.points)) - design_of(curve) @ estimator(curve)


def height_gradient(parabola: Parabola, u: float) -> np.ndarray:
    """Of the parabola's loss at ``u`` in its coefficients, (3,)."""
    return np.array([1.0, u, u * u])


def vertex_weights(curve: CurveFit) -> np.ndarray:
    """(points,): how the vertex loss moves with each run's loss; at the vertex the slope is 0, so u* may be held."""
    assert curve.parabola is not None, f"Got {curve.refusal}"
    return height_gradient(curve.parabola, curve.parabola.vertex_u) @ estimator(curve)
