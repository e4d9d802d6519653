"""isoFLOP fits of a study: one parabola per arm and budget, one exponent per arm, one comparison per budget.

Approach 2 of Hoffmann et al. 2022 (sec. 3.2) with intervals that hold for few points: one noise level for
the whole study (sum of residual squares over sum of degrees of freedom; seeds enter as repeated points),
Fieller's interval for each optimum, the delta method with the same pooled Student t for what is computed from
optima. Noise includes what a parabola cannot follow, so intervals widen on over-wide grids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import scipy.special

from modexp.analysis.parabola import Parabola, fieller_set, fit_parabola, student_t
from modexp.analysis.points import RULE, DroppedRun, Point, Record, arms_of, baseline_of, select
from modexp.errors import UserError
from modexp.wording import budget_text, size_text

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
    num_runs: int
    num_sizes: int
    parabola: Parabola | None
    optimum: Optimum | None
    refusal: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class ExponentFit:
    """optimum = coefficient x C^exponent of one arm, C in FLOPs; None throughout when refused."""

    arm: str
    budgets: tuple[float, ...]
    exponent: float | None
    low: float | None
    high: float | None
    coefficient: float | None
    refusal: str
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Loss at the optimum of ``arm`` less that of ``baseline`` in nats: negative where the arm is better."""

    arm: str
    baseline: str
    budget: float
    difference: float
    low: float
    high: float
    relative: float  # difference over the baseline's loss
    distinguishable: bool
    sentence: str


@dataclass(frozen=True)
class StudyFit:
    axis: str
    level: float
    rule: str
    noise_sd: float | None  # nats, one run; None while no curve has a point to spare
    dof: int
    curves: tuple[CurveFit, ...]
    exponents: tuple[ExponentFit, ...]
    comparisons: tuple[Comparison, ...]
    dropped: tuple[DroppedRun, ...]

    def curve(self, arm: str, budget: float) -> CurveFit | None:
        return next((c for c in self.curves if (c.arm, c.budget) == (arm, budget)), None)

    def to_json(self) -> dict[str, Any]:
        """Everything, in full precision, as json.dumps takes it."""
        return asdict(self)

    def rows(self) -> list[dict[str, Any]]:
        """The table for eyes and CSV: one row a curve."""
        rows = []
        for curve in self.curves:
            optimum = asdict(curve.optimum) if curve.optimum else dict.fromkeys(Optimum.__annotations__)
            row = {"arm": curve.arm, "budget": curve.budget, "runs": curve.num_runs, "sizes": curve.num_sizes}
            note = "; ".join(filter(None, (curve.refusal, *curve.warnings)))
            rows.append({**row, **optimum, "note": note})
        return rows


def fit_study(
    records: Sequence[Record], axis: str = "params_total", level: float = 0.90, baseline: str | None = None
) -> StudyFit:
    """Fit every curve of a study. ``axis``: a key of points.AXES; ``level``: of all intervals.

    An empty or unfinished study gives a fit that refuses everything and says why. UserError: unknown axis or
    baseline, a level outside 0..1.
    """
    if not 0 < level < 1:
        raise UserError(f"level={level} is not between 0 and 1", "try level=0.9")
    arms = arms_of(records)
    if baseline is not None and baseline not in arms:
        raise UserError(f"baseline={baseline} is no arm of this study", f"try one of {', '.join(arms)}")
    points, dropped = select(records, axis)
    keys = sorted({(arms.index(str(r["arm"])), float(r["budget"])) for r in records})
    groups = {(arms[i], b): [p for p in points if (p.arm, p.budget) == (arms[i], b)] for i, b in keys}
    parabolas = {
        key: fit_parabola([p.x for p in group], [p.loss for p in group])
        for key, group in groups.items()
        if len({p.x for p in group}) >= 3
    }
    dof = sum(p.dof for p in parabolas.values())
    noise_sd = math.sqrt(sum(p.residual_squares for p in parabolas.values()) / dof) if dof else None
    noise = Noise(noise_sd or 0.0, dof, level)
    curves = tuple(_fit_curve(*key, group, parabolas.get(key), noise) for key, group in groups.items())
    reference = baseline or (baseline_of(records) if records else "")
    return StudyFit(
        axis=axis,
        level=level,
        rule=RULE,
        noise_sd=noise_sd,
        dof=dof,
        curves=curves,
        exponents=tuple(fit_exponent(arm, vertices(arm, curves), noise) for arm in arms),
        comparisons=tuple(_compare(curves, reference, noise)),
        dropped=tuple(dropped),
    )


@dataclass(frozen=True)
class Noise:
    """Scatter of one run (nats), how well it is known, and the level of the intervals made from it."""

    sd: float
    dof: int
    level: float

    def margin(self, unit_variance: float) -> float:
        """Half-width for a quantity whose variance is ``unit_variance`` x noise variance."""
        return student_t(self.level, self.dof) * self.sd * math.sqrt(unit_variance)


def _fit_curve(arm: str, budget: float, points: list[Point], parabola: Parabola | None, noise: Noise) -> CurveFit:
    num_sizes = len({p.x for p in points})
    refusal = refusal_of(num_sizes, parabola, noise)
    optimum = None
    if parabola and not refusal:
        span = fieller_set(parabola, noise.sd, noise.dof, noise.level)
        assert span.low is not None, f"Got {span}"
        assert span.high is not None, f"Got {span}"
        margin = noise.margin(parabola.vertex_loss_variance)
        loss = parabola.vertex_loss
        optimum = Optimum(parabola.vertex, span.low, span.high, loss, loss - margin, loss + margin)
    warnings = tuple(_warnings(points, parabola, optimum))
    return CurveFit(arm, budget, len(points), num_sizes, parabola, optimum, refusal, warnings)


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


def _warnings(points: list[Point], parabola: Parabola | None, optimum: Optimum | None) -> list[str]:
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
    repeated = [p.epochs for p in points if p.epochs > 1]
    if repeated:
        warnings.append(f"{len(repeated)} of {len(points)} runs repeat their data (up to {max(repeated):.1f} epochs)")
    return warnings


def vertices(arm: str, curves: Sequence[CurveFit]) -> list[tuple[float, Parabola]]:
    """Budgets of the arm whose optimum stands, each with its parabola."""
    return [(c.budget, c.parabola) for c in curves if c.arm == arm and c.optimum and c.parabola]


def fit_exponent(arm: str, fitted: Sequence[tuple[float, Parabola]], noise: Noise) -> ExponentFit:
    """Weighted line of ln(optimum) in ln C; with two budgets, the line through both."""
    budgets = tuple(budget for budget, _ in fitted)
    if len(fitted) < 2:
        refusal = f"an exponent needs 2 budgets with an optimum, got {len(fitted)}"
        return ExponentFit(arm, budgets, None, None, None, None, refusal, ())
    log_c = [math.log(budget) for budget in budgets]
    log_x = [math.log(p.vertex) for _, p in fitted]
    weights = [1 / p.vertex_variance for _, p in fitted]  # the noise level cancels in the line
    total = sum(weights)
    mean_c = sum(w * c for w, c in zip(weights, log_c, strict=True)) / total
    mean_x = sum(w * x for w, x in zip(weights, log_x, strict=True)) / total
    spread = sum(w * (c - mean_c) ** 2 for w, c in zip(weights, log_c, strict=True))
    triples = list(zip(weights, log_c, log_x, strict=True))
    slope = sum(w * (c - mean_c) * (x - mean_x) for w, c, x in triples) / spread
    intercept = mean_x - slope * mean_c
    margin = noise.margin(1 / spread)
    warnings = []
    misfit = sum(w * (x - intercept - slope * c) ** 2 for w, c, x in triples)
    free = len(fitted) - 2
    if free and misfit / free > noise.sd**2 * scipy.special.fdtri(free, noise.dof, noise.level):
        warnings.append("the optima scatter about the line by more than their noise: the interval is too narrow")
    return ExponentFit(arm, budgets, slope, slope - margin, slope + margin, math.exp(intercept), "", tuple(warnings))


def _compare(curves: tuple[CurveFit, ...], baseline: str, noise: Noise) -> list[Comparison]:
    """Every arm against the baseline where both have an optimum; curves are taken as independent."""
    references = {c.budget: c for c in curves if c.arm == baseline and c.optimum}
    comparisons = []
    for curve in curves:
        reference = references.get(curve.budget)
        if curve.arm == baseline or reference is None or not curve.optimum:
            continue
        ours, theirs = curve.parabola, reference.parabola
        assert ours is not None, f"Got {curve}"
        assert theirs is not None, f"Got {reference}"
        difference = ours.vertex_loss - theirs.vertex_loss
        margin = noise.margin(ours.vertex_loss_variance + theirs.vertex_loss_variance)
        relative = difference / theirs.vertex_loss
        distinguishable = abs(difference) > margin
        verdict = ("lower" if difference < 0 else "higher") if distinguishable else "not distinguishable"
        sentence = (
            f"{curve.arm} against {baseline} at {budget_text(curve.budget)} FLOPs: {difference:+.4f} nats "
            f"({relative:+.2%}), {noise.level:.0%} interval {difference - margin:+.4f} to "
            f"{difference + margin:+.4f}: {verdict}"
        )
        comparisons.append(
            Comparison(
                curve.arm,
                baseline,
                curve.budget,
                difference,
                difference - margin,
                difference + margin,
                relative,
                distinguishable,
                sentence,
            )
        )
    return comparisons
