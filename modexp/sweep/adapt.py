"""What an adaptive study does next: a pure function of what was asked, what was decided and what the runs found.

Budgets are run in ascending order. The first grid is centred by the plan's prior; each later one where the fits of the
smaller budgets put the optimum, the same centre in forward FLOPs per token for every arm: the geometric mean of the
arms' own. Where a curve's minimum lies in the outer fifth of its sizes or beyond, sizes are added on that side. Then
seeds are added (modexp/sweep/seeds.py) until the target interval or the spend limit is reached.

Sizes are planned forward FLOPs per token throughout, the axis on which grids are laid. No torch, no files, no clock.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from modexp.analysis.curve import OUTER_SHARE, CurveFit
from modexp.config.study import SweepConfig
from modexp.errors import UserError
from modexp.plan.grid import Arms, PlannedRun, grown, plan_budget, rungs_of
from modexp.sweep.decisions import Added, Decision, plan_of_log, planned_run
from modexp.sweep.seeds import seeds
from modexp.sweep.state import Record, State
from modexp.wording import budget_text

PRIOR_EXPONENT = 0.5  # of the optimal FLOPs per token in the budget: Hoffmann et al. 2022, N* ~ C^.5
EDGE_ROUNDS = 3  # times that sizes are added to one curve
EDGE_SIZES = 2  # of each time


def next_round(sweep: SweepConfig, arms: Arms, log: Sequence[Decision], records: Sequence[Record]) -> list[Decision]:
    """The next decisions: sizes at edges, else the next budget's grid, else seeds, else one that says stop.

    ``records`` (other runs' are not looked at) must hold a finished record, done or diverged, of every run of
    ``log``. UserError: an arm pins its size.
    """
    for arm, at in arms.items():
        config = at(sweep.budgets[0])
        if config.size != "auto" or config.model.d_model is not None:
            raise UserError(f"arm {arm} has a size of its own, and adapt=on chooses sizes", "leave one of them out")
    names = {run.plan.name for run in plan_of_log(log, arms).runs}
    rows = [row for row in records if row["run"] in names]
    assert {row["run"] for row in rows if row["status"] in ("done", "diverged")} == names, "runs are unfinished"
    state = State(sweep, arms, log, rows)
    return list(edges(state)) or list(grid(state)) or [seeds(state)]


def replayed(sweep: SweepConfig, arms: Arms, log: Sequence[Decision], records: Sequence[Record]) -> Decision | None:
    """Decide every round of the log again from what was known then; the first decision that comes out otherwise."""
    for number in sorted({d.round for d in log}):
        before, logged = [d for d in log if d.round < number], [d for d in log if d.round == number]
        asked = logged[0].asked
        adapt = replace(sweep.adapt, interval=asked["interval"], spend=asked["spend"])
        again = next_round(replace(sweep, budgets=asked["budgets"], adapt=adapt), arms, before, records)
        if again != logged:
            return logged[0]
    return None


# ---- a budget's first sizes ----------------------------------------------------------------------------------


def grid(state: State) -> Iterator[Decision]:
    """The grid of the smallest budget that has none."""
    gridded = {d.budget for d in state.log if d.kind == "grid"}
    left = sorted(set(state.sweep.budgets) - gridded)
    if not left:
        return
    budget = left[0]
    found = {arm: place for arm in state.arms if (place := expected(state, arm, budget))} if state.records else {}
    centre = math.exp(sum(math.log(x) for x, _ in found.values()) / len(found)) if found else None
    plan = plan_budget(state.arms, budget, state.sweep.seeds, state.sweep.grid, centre)
    added = [added_of(run) for run in plan.runs]
    prior = f"centred by the prior, {state.sweep.grid.tokens_per_param:g} tokens a parameter"
    ways = "; ".join(f"{arm} {x:.3g}, {way}" for arm, (x, way) in found.items())
    reason = f"centred on {centre:.3g} FLOPs per token, the geometric mean of {ways}" if centre else prior
    numbers = {"centre": centre, "expected": {arm: x for arm, (x, _) in found.items()}}
    dropped = [f"{d.arm}, seed {d.seed}: {d.reason}" for d in plan.dropped]
    yield state.decision("grid", budget, "", added, reason, **numbers, dropped=dropped)


def expected(state: State, arm: str, budget: float) -> tuple[float, str] | None:
    """Where the known budgets put this arm's optimum, and how; None while none of its runs is done."""
    exponent = next((e for e in state.fit.exponents if e.arm == arm), None)
    if exponent and exponent.exponent and exponent.coefficient and 0 < exponent.exponent < 1:
        x = exponent.coefficient * budget**exponent.exponent
        return x, f"the line through {len(exponent.budgets)} optima, exponent {exponent.exponent:.2f}"
    curves = [c for c in state.fit.curves if c.arm == arm and (arm, c.budget) in state.done]
    if not curves:
        return None
    nearest = min(curves, key=lambda c: (c.optimum is None, abs(math.log(c.budget / budget))))
    x = optimum_or_best(state, nearest)
    way = "the optimum" if nearest.optimum else "the best place"
    moved = x * (budget / nearest.budget) ** PRIOR_EXPONENT
    return moved, f"{way} at {budget_text(nearest.budget)}, {x:.3g}, moved by C^{PRIOR_EXPONENT:g}"


def optimum_or_best(state: State, curve: CurveFit) -> float:
    """The optimum; where it is refused, the vertex drawn into the grid, or the best size of a curve without one."""
    p = curve.parabola
    if p and p.curvature > 0:
        return min(max(p.vertex, p.x_low), p.x_high)
    return best_size(state, curve.arm, curve.budget)


def best_size(state: State, arm: str, budget: float) -> float:
    """FLOPs per token of the size whose mean loss over seeds is lowest."""
    losses: dict[float, list[float]] = defaultdict(list)
    for row in state.records:
        if (row["arm"], row["budget"], row["status"]) == (arm, budget, "done"):
            losses[row["flops_per_token"]].append(row["loss"])
    return min(losses, key=lambda x: sum(losses[x]) / len(losses[x]))


# ---- a minimum on an edge ------------------------------------------------------------------------------------


def edges(state: State) -> Iterator[Decision]:
    """Sizes for every curve whose minimum is not well inside them."""
    room = state.room
    for curve in state.fit.curves if state.records else ():
        before = [d for d in state.log if d.kind == "edge" and (d.arm, d.budget) == (curve.arm, curve.budget)]
        side, place = side_of(state, curve)
        if not side or len(before) >= EDGE_ROUNDS or any(not d.runs for d in before):
            continue
        runs = [planned_run(added, state.arms) for added in beyond(state, curve, side)]
        cost = sum(run.plan.flops for run in runs)
        if cost > room:
            continue
        room -= cost
        reason = f"the minimum is {place}; sizes are added on the {side} side"
        if not runs:
            reason = f"the minimum is {place}, and the ladder ends on the {side} side"
        vertex = curve.parabola.vertex if curve.parabola else None
        added = [added_of(run) for run in runs]
        yield state.decision("edge", curve.budget, curve.arm, added, reason, vertex=vertex, side=side)


def side_of(state: State, curve: CurveFit) -> tuple[str, str]:
    """smaller, larger, or neither; and a few words on where the minimum is."""
    p = curve.parabola
    if p is None:
        return "", ""
    low, high = math.log(p.x_low), math.log(p.x_high)
    if p.curvature > 0:
        share = (p.centre + p.vertex_u - low) / (high - low)
        words = f"at {share:.0%} of the way from {p.x_low:.3g} to {p.x_high:.3g} FLOPs per token"
        return "smaller" if share < OUTER_SHARE else "larger" if share > 1 - OUTER_SHARE else "", words
    best = best_size(state, curve.arm, curve.budget)
    words = f"nowhere, as the curve bends down; its best size is {best:.3g} FLOPs per token"
    return ("smaller" if math.log(best) < (low + high) / 2 else "larger"), words


def beyond(state: State, curve: CurveFit, side: str) -> list[Added]:
    """The next sizes on a side, a step of the grid apart, at the study's seeds; fewer where the ladder ends."""
    budget, sweep = curve.budget, state.sweep
    config = grown(state.arms[curve.arm](budget), sweep.grid)
    rungs = rungs_of(config)
    used = [run.plan for run in state.planned.values() if (run.plan.arm, run.plan.budget) == (curve.arm, budget)]
    sign = 1 if side == "larger" else -1
    end = max(sign * math.log(plan.flops_per_token) for plan in used)  # sizes that diverged are tried, too
    step = 2 * math.log(sweep.grid.span) / (sweep.grid.points - 1)
    added: list[Added] = []
    for _ in range(EDGE_SIZES):
        outside = {shape: sign * math.log(x) for shape, x in rungs.items() if sign * math.log(x) > end + step / 2}
        if not outside:
            break
        target = end + step
        shape = min(outside, key=lambda s: abs(outside[s] - target))
        end = outside[shape]
        added += [Added(curve.arm, budget, seed, shape) for seed in sweep.seeds]
    return added


def added_of(run: PlannedRun) -> Added:
    return Added(run.plan.arm, run.plan.budget, run.plan.seed, run.config.model.shape)
