"""Where an adaptive study spends its last runs: seeds at the vertices of the comparison that is known least.

Of all places the vertex is where one more run narrows the vertex loss most: a run at u adds uu' to the Gram matrix, so
at the vertex its variance v becomes v / (1 + v).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from modexp.analysis.curve import MIN_SIZES, CurveFit
from modexp.analysis.isoflop import StudyFit
from modexp.sweep.decisions import Added, Decision, planned_run
from modexp.sweep.state import State
from modexp.wording import budget_text

MOST_SEEDS = 6  # runs of one decision: intervals are measured again before more are spent


@dataclass(frozen=True)
class Width:
    """How well one comparison is known: relative half-width, infinite where a curve has no bounded optimum."""

    relative: float
    curves: tuple[CurveFit, ...]  # baseline and arm, or the one curve of a study of one arm


def seeds(state: State) -> Decision:
    """More seeds for the widest comparison that can be afforded, or a stop with its reason."""
    target = state.sweep.adapt.interval
    found = sorted(widths(state), key=lambda w: -w.relative)
    wide = [w for w in found if w.relative > target]
    for width in wide:
        added = affordable(state, at_vertex(state, width, target))
        if added:
            names = " against ".join(c.arm for c in reversed(width.curves))
            known = "no bounded interval" if math.isinf(width.relative) else f"{width.relative:.2%} of the loss"
            reason = f"the half-width of {names} is the widest, {known} (target {target:.2%}): seeds at the vertex"
            if math.isinf(width.relative):
                reason = f"{names}: a curvature cannot be told from zero: a seed at the ends and the vertex"
            widest = None if math.isinf(width.relative) else width.relative
            return state.decision("seeds", width.curves[0].budget, "", added, reason, half_width=widest)
    unknown = [f"{c.arm} at {budget_text(c.budget)}" for c in state.fit.curves if not c.optimum and not undecided(c)]
    widest = wide[0].relative if wide else found[0].relative if found else None
    if wide:
        known = "has no bounded interval" if math.isinf(wide[0].relative) else f"is known to {wide[0].relative:.2%}"
        where = budget_text(wide[0].curves[0].budget)
        reason = f"the spend limit, {state.limit:.3g} FLOPs, is reached; the widest comparison, at {where}, {known}"
    elif found:
        reason = f"every comparison is known to {widest:.2%} of the loss or better (target {target:.2%})"
    else:
        reason = "no curve has an optimum that more seeds could narrow"
    reason += f"; without an optimum: {', '.join(unknown)}" if unknown else ""
    return state.decision("stop", None, "", (), reason, half_width=None if widest == math.inf else widest)


def undecided(curve: CurveFit) -> bool:
    """Whether nothing but noise keeps this curve from an optimum."""
    p = curve.parabola
    inside = p is not None and p.curvature > 0 and p.x_low <= p.vertex <= p.x_high
    return inside and curve.optimum is None and curve.num_sizes >= MIN_SIZES


def widths(state: State) -> Iterator[Width]:
    """One for each arm but the baseline and each budget; for the curves themselves where there is one arm."""
    fit = state.fit
    helpable = {(c.arm, c.budget): c for c in fit.curves if c.optimum or undecided(c)}
    dense = [arm for arm, at in state.arms.items() if not at(state.sweep.budgets[0]).model.has_routing]
    baseline = "baseline" if "baseline" in state.arms else (dense or list(state.arms))[0]
    for (arm, budget), curve in helpable.items():
        reference = helpable.get((baseline, budget))
        if len(state.arms) > 1 and (arm == baseline or reference is None):
            continue
        curves = (curve,) if len(state.arms) == 1 or reference is None else (reference, curve)
        first = curves[0].parabola
        assert first is not None, f"Got {curves[0]}"
        loss = first.vertex_loss
        known = all(c.optimum for c in curves)
        yield Width(half_width(fit, curves) / loss if known else math.inf, curves)


def variance(curve: CurveFit) -> float:
    assert curve.parabola is not None, f"Got {curve}"
    return curve.parabola.vertex_loss_variance


def half_width(fit: StudyFit, curves: Sequence[CurveFit]) -> float:
    """Of the vertex loss, or of the difference of two, in nats."""
    last = curves[-1]
    for c in fit.comparisons if len(curves) > 1 else ():
        if (c.arm, c.budget) == (last.arm, last.budget):
            return (c.high - c.low) / 2
    return fit.noise.margin(sum(variance(c) for c in curves))


def at_vertex(state: State, width: Width, target: float) -> list[Added]:
    """Runs that should bring the comparison to its target, at most ``MOST_SEEDS``, for the worse known arm first."""
    if math.isinf(width.relative):
        return [
            a for c in width.curves if not c.optimum for at in ("low", "vertex", "high") for a in more(state, c, at, 1)
        ]
    variances = [variance(c) for c in width.curves]
    counts, before = [0] * len(variances), sum(variances)
    while sum(counts) < MOST_SEEDS and width.relative * math.sqrt(sum(variances) / before) > target:
        worst = variances.index(max(variances))
        counts[worst] += 1
        variances[worst] /= 1 + variances[worst]
    return [a for c, n in zip(width.curves, counts, strict=True) for a in more(state, c, "vertex", n)]


def more(state: State, curve: CurveFit, at: str, count: int) -> list[Added]:
    """``count`` runs at new seeds, at the smallest, the largest or the size nearest the vertex."""
    runs = state.done[curve.arm, curve.budget]
    assert curve.parabola is not None, f"Got {curve}"
    log_vertex = curve.parabola.centre + curve.parabola.vertex_u
    nearest = min(runs, key=lambda run: abs(math.log(run.plan.flops_per_token) - log_vertex))
    shape = {"low": runs[0], "high": runs[-1], "vertex": nearest}[at].config.model.shape
    key = (curve.arm, curve.budget, shape)
    used = [a.seed for d in state.log for a in d.runs if (a.arm, a.budget, a.shape) == key]
    return [Added(curve.arm, curve.budget, max(used) + 1 + i, shape) for i in range(count)]


def affordable(state: State, wanted: Sequence[Added]) -> list[Added]:
    """The first of them that the spend limit has room for."""
    room, chosen = state.room, []
    for added in dict.fromkeys(wanted):
        room -= planned_run(added, state.arms).plan.flops
        if room >= 0:
            chosen.append(added)
    return chosen
