"""Everything a fit says, by every method: parabolas, both surface fits, and what holds when a budget is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from modexp.analysis.bootstrap import Bootstrap, bootstrap
from modexp.analysis.guard import Verdict, guard_study
from modexp.analysis.interpolate import InterpolatedExponent, fit_interpolated
from modexp.analysis.isoflop import StudyFit, fit_study
from modexp.analysis.outliers import RESIDUAL_RULE, highest_losses, highest_rule, outliers
from modexp.analysis.plain import PlainExponent, fit_plain
from modexp.analysis.points import DroppedRun, Point, Record, arms_of, at_one_x, select, shared_trunks
from modexp.analysis.surface import PENALTIES, Cost, Surface, fit_cost, fit_surface

SUM_APART = 0.05  # a + b further from 1 than this is worth a sentence
ENOUGH_POINTS = 20  # four a parameter: through fewer a surface bends so near that the scatter is too small to judge by
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
    refits: int  # resamples that have a falling surface, converged or not
    refusal: str
    warnings: tuple[str, ...]
    draws: Bootstrap | None = None


@dataclass(frozen=True)
class Report:
    fit: StudyFit
    surfaces: tuple[SurfaceExponent, ...]
    plain: dict[str, PlainExponent]  # by arm, as the next
    interpolated: dict[str, InterpolatedExponent]
    warnings: tuple[str, ...]
    points: tuple[Point, ...]  # as trained: what the surfaces are fitted to
    guards: tuple[Verdict, ...] = ()

    def to_json(self) -> dict[str, Any]:
        surfaces = [{k: v for k, v in asdict(s).items() if k != "draws"} for s in self.surfaces]
        plain = {arm: asdict(found) for arm, found in self.plain.items()}
        interpolated = {arm: asdict(found) for arm, found in self.interpolated.items()}
        return {
            **self.fit.to_json(),
            "surfaces": surfaces,
            "plain": plain,
            "interpolated": interpolated,
            "warnings": list(self.warnings),
            "guards": [verdict.to_json() for verdict in self.guards],
        }

    def surface(self, arm: str, method: str) -> SurfaceExponent:
        return next(s for s in self.surfaces if (s.arm, s.method) == (arm, method))


def report(
    records: Sequence[Record],
    axis: str = "params",
    level: float = 0.90,
    baseline: str | None = None,
    resamples: int = 1000,
    nearest: int | None = None,
    drop_highest: int = 0,
    drop_outliers: bool = False,
) -> Report:
    """Fit a study by every method.

    ``resamples`` of each bootstrap, 0 leaves it out; ``nearest`` as in :func:`fit_study`, for parabola and Akima;
    ``drop_highest`` losses, or the outliers of each arm's surface (modexp.analysis.outliers), leave every fit.
    """
    kept, fit = fit_kept(records, axis, level, baseline, nearest, drop_highest, drop_outliers)
    points, _ = select(kept, axis)  # as trained: a surface needs no equal FLOPs, so a re-reading moves nothing
    by_tokens = fit_study(kept, "tokens", level, baseline, nearest)
    surfaces: list[SurfaceExponent] = []
    plain, interpolated, warnings = {}, {}, []
    for arm in arms_of(kept):
        mine = [p for p in points if p.arm == arm]
        surfaces += [surface_of(arm, mine, method, level, resamples) for method in PENALTIES]
        curves = [c for c in fit.curves if c.arm == arm and c.points]
        plain[arm] = fit_plain(curves)
        by_flops = {c.flops: at_one_x(c.points) for c in curves}
        interpolated[arm] = fit_interpolated(by_flops, fit.noise_sd if resamples else None, level, resamples)
        warnings += [s for s in (sum_of_exponents(arm, fit, by_tokens), astray(arm, mine)) if s]
    warnings += [s for s in (shared_trunks(kept),) if s]
    guards = guard_study(kept, axis, level, baseline, nearest)
    return Report(fit, tuple(surfaces), plain, interpolated, tuple(warnings), tuple(points), tuple(guards))


def fit_kept(
    records: Sequence[Record],
    axis: str,
    level: float,
    baseline: str | None,
    nearest: int | None,
    drop_highest: int,
    drop_outliers: bool,
) -> tuple[list[Record], StudyFit]:
    """The records that were not asked to leave, and the parabolas through them, which name those that were."""
    left_out = excluded(records, axis, drop_highest, drop_outliers)
    gone = {d.run for d in left_out}
    kept = [r for r in records if str(r["run"]) not in gone]
    fit = fit_study(kept, axis, level, baseline, nearest)
    asked = [highest_rule(drop_highest)] * bool(drop_highest) + [RESIDUAL_RULE] * drop_outliers
    return kept, replace(fit, dropped=(*left_out, *fit.dropped), rule=" ".join([fit.rule, *asked]))


def excluded(records: Sequence[Record], axis: str, highest: int, by_surface: bool) -> list[DroppedRun]:
    """What the user asked to leave out, arm by arm, each with its reason."""
    points, _ = select(records, axis)
    dropped = []
    for arm in dict.fromkeys(p.arm for p in points):
        mine = [p for p in points if p.arm == arm]
        top = highest_losses([p.loss for p in mine], highest) if highest else ()
        rest = [p for i, p in enumerate(mine) if i not in {o.index for o in top}]
        off = outliers([p.x for p in rest], [p.tokens for p in rest], [p.loss for p in rest]) if by_surface else ()
        found = [(mine[o.index], o.reason) for o in top] + [(rest[o.index], o.reason) for o in off]
        dropped += [DroppedRun(p.run, arm, p.budget, reason) for p, reason in found]
    return dropped


def astray(arm: str, points: Sequence[Point]) -> str:
    """A sentence where some runs lie far off the arm's surface, which nothing has left out."""
    if len(points) < ENOUGH_POINTS or not all(p.tokens for p in points):
        return ""
    found = outliers([p.x for p in points], [p.tokens for p in points], [p.loss for p in points])
    if not found:
        return ""
    names = ", ".join(points[o.index].run for o in found)
    return f"{arm}: far off its loss surface: {names}; --drop-outliers or --drop-highest leaves such runs out"


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
            f"C = {cost.kappa:.3g} x^{cost.q:.3f} D misses a run's FLOPs by {cost.worst:.0%}: the exponent leans on it"
        )
    draws = bootstrap(found.surface, x, tokens, loss, resamples) if resamples else None
    if draws:
        warnings += trouble(draws, resamples)
        draws = draws if len(draws.parameters) else None
    intervals = draws.intervals(cost=cost, level=level) if draws else {}
    refits = len(draws.parameters) if draws else 0
    exponent = found.surface.exponent(cost)
    return SurfaceExponent(arm, method, found.surface, cost, exponent, intervals, refits, "", tuple(warnings), draws)


def trouble(draws: Bootstrap, resamples: int) -> list[str]:
    """Sentences on resamples that did not refit as they should."""
    if draws.num_failed == resamples:
        return [f"no interval: none of {resamples} resamples has a falling surface"]
    words = []
    if draws.num_failed:
        words.append(f"{draws.num_failed} of {resamples} resamples have no falling surface: the intervals lack them")
    if draws.num_unconverged:
        words.append(f"{draws.num_unconverged} of {resamples} resamples have not converged: the intervals hold them")
    return words


def sum_of_exponents(arm: str, fit: StudyFit, by_tokens: StudyFit) -> str:
    """A sentence where a of N* ~ C^a and b of D* ~ C^b do not add up to about 1, as under C = 6ND they would."""
    if fit.axis not in ("params", "non_embedding", "active") or fit.exponent(arm).exponent is None:
        return ""
    tokens = by_tokens.exponent(arm).exponent
    a = fit.exponent(arm).exponent
    if tokens is None or a is None or abs(a + tokens - 1) <= SUM_APART:
        return ""
    return (
        f"{arm}: a + b = {a:.3f} + {tokens:.3f} = {a + tokens:.3f}, not 1: FLOPs are not 6 N D at these sizes, so read"
        " sizes and tokens each from its own line"
    )
