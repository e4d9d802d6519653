"""Everything a fit says, by every method: parabolas, both surface fits, and what holds when a budget is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from modexp.analysis.bootstrap import Bootstrap, bootstrap
from modexp.analysis.isoflop import StudyFit, fit_study
from modexp.analysis.points import Point, Record, arms_of, select
from modexp.analysis.surface import PENALTIES, Cost, Surface, fit_cost, fit_surface

SUM_APART = 0.05  # a + b further from 1 than this is worth a sentence
OFF_LINE = 0.05  # runs further than this from C = kappa x^q D are, too


@dataclass(frozen=True)
class SurfaceExponent:
    """One arm's surface by one method; ``refusal`` says why there is none. Intervals by bootstrap (resamples > 0)."""

    arm: str
    method: str
    surface: Surface | None
    cost: Cost | None
    exponent: float | None
    intervals: dict[str, tuple[float, float]]  # of E, A, B, alpha, beta, a
    refits: int  # resamples that converged
    refusal: str
    warnings: tuple[str, ...]
    draws: Bootstrap | None = None


@dataclass(frozen=True)
class Report:
    fit: StudyFit
    surfaces: tuple[SurfaceExponent, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        surfaces = [{k: v for k, v in asdict(s).items() if k != "draws"} for s in self.surfaces]
        return {**self.fit.to_json(), "surfaces": surfaces, "warnings": list(self.warnings)}

    def surface(self, arm: str, method: str) -> SurfaceExponent:
        return next(s for s in self.surfaces if (s.arm, s.method) == (arm, method))


def report(
    records: Sequence[Record],
    axis: str = "params",
    level: float = 0.90,
    baseline: str | None = None,
    resamples: int = 1000,
) -> Report:
    """Fit a study by every method. ``resamples`` of each surface's bootstrap; 0 leaves its intervals out."""
    fit = fit_study(records, axis, level, baseline)
    points, _ = select(records, axis)  # as trained: a surface needs no equal FLOPs, so a re-reading moves nothing
    surfaces, warnings = [], []
    for arm in arms_of(records):
        mine = [p for p in points if p.arm == arm]
        surfaces += [surface_of(arm, mine, method, level, resamples) for method in PENALTIES]
        if sentence := sum_of_exponents(arm, records, fit):
            warnings.append(sentence)
    return Report(fit, tuple(surfaces), tuple(warnings))


def surface_of(arm: str, points: Sequence[Point], method: str, level: float, resamples: int) -> SurfaceExponent:
    x, tokens, loss, flops = ([getattr(p, name) for p in points] for name in ("x", "tokens", "loss", "flops"))
    if not all(tokens):
        return SurfaceExponent(arm, method, None, None, None, {}, 0, "a surface needs the tokens of every run", ())
    found = fit_surface(method, x, tokens, loss)
    if found.surface is None:
        return SurfaceExponent(arm, method, None, None, None, {}, 0, found.refusal, found.warnings)
    cost = fit_cost(x, tokens, flops)
    warnings = list(found.warnings)
    if cost.worst > OFF_LINE:
        warnings.append(
            f"C = {cost.kappa:.3g} x^{cost.q:.3f} D misses the FLOPs of a run by {cost.worst:.0%}: the exponent leans on it"
        )
    draws = bootstrap(found.surface, x, tokens, loss, resamples) if resamples else None
    intervals = draws.intervals(cost=cost, level=level) if draws else {}
    refits = len(draws.parameters) if draws else 0
    exponent = found.surface.exponent(cost)
    return SurfaceExponent(arm, method, found.surface, cost, exponent, intervals, refits, "", tuple(warnings), draws)


def sum_of_exponents(arm: str, records: Sequence[Record], fit: StudyFit) -> str:
    """A sentence where a of N* ~ C^a and b of D* ~ C^b do not add up to about 1, as under C = 6ND they would."""
    if fit.axis not in ("params", "non_embedding", "active") or fit.exponent(arm).exponent is None:
        return ""
    tokens = fit_study([r for r in records if r["arm"] == arm], "tokens", fit.level).exponents[0].exponent
    a = fit.exponent(arm).exponent
    if tokens is None or a is None or abs(a + tokens - 1) <= SUM_APART:
        return ""
    return (
        f"{arm}: a + b = {a:.3f} + {tokens:.3f} = {a + tokens:.3f}, not 1: FLOPs are not 6 N D at these sizes, so read"
        " sizes and tokens each from its own line"
    )
