"""One trunk, many budgets: with a rate that is constant until the decay, a run of a large budget passes on its way
through the very states that the same run at a smaller budget decays from (Hagele et al. 2024, arXiv 2405.18392).

So the trunk of a size is its run at the largest budget, and its runs at smaller ones are branches: they start from a
checkpoint of the trunk and train their own decay alone. A branch computes what it would have computed by itself, to the
bit, because nothing before its decay depends on the budget: batch, rate and warm-up of every run are the rules' at one
budget for the whole study, ``budget.rules_at``, the geometric mean of its budgets. The price: at the other budgets the
batch and the warm-up are not their own rules'. One for each trunk would put jumps into the middle of a curve.

Budgets share a size only where both grids hold it. All grids of an arm therefore stand on one lattice of sizes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from modexp.config.identity import digest, scientific
from modexp.config.root import Config
from modexp.config.study import GridConfig
from modexp.config.train import WsdConfig
from modexp.errors import UserError
from modexp.plan.grid import Arms, Branch, PlannedRun, StudyPlan, at_shape, grown, plan_sizes, rungs_near, sized
from modexp.plan.run import optimal_shape
from modexp.wording import budget_text

PHASES = 100  # of the lattice that are tried, a hundredth of a step apart


def plan_shared(arms: Arms, budgets: Sequence[float], seeds: Sequence[int], grid: GridConfig) -> StudyPlan:
    """:func:`~modexp.plan.grid.plan_study` with sizes that budgets have in common, and one budget for the rules.

    UserError where an arm's schedule has no constant part. Who branches off whom is :func:`with_branches`'s.
    """
    budgets, at_budget = sorted(set(budgets)), rules_budget(budgets)
    sizes: dict[str, dict[float, list[Config]]] = {}
    for arm, at in arms.items():
        schedule = at(budgets[0]).schedule
        if not isinstance(schedule, WsdConfig):
            raise UserError(
                f"share_trunk=on needs a rate that is constant until the decay, and arm {arm} has"
                f" schedule={schedule.kind}",
                "add schedule=wsd",
            )
        sizes[arm] = common_sizes(at, budgets, at_budget, grid)
    plans = [plan_sizes({arm: of[budget] for arm, of in sizes.items()}, budget, seeds) for budget in budgets]
    return StudyPlan(
        tuple(run for plan in plans for run in plan.runs), tuple(drop for plan in plans for drop in plan.dropped)
    )


def rules_budget(budgets: Sequence[float]) -> float:
    """The geometric mean, to four digits: a logarithm's last bit, which differs between machines, is no identity."""
    return float(f"{math.exp(sum(map(math.log, budgets)) / len(budgets)):.4g}")


def common_sizes(
    at: Callable[[float], Config], budgets: Sequence[float], at_budget: float, grid: GridConfig
) -> dict[float, list[Config]]:
    """An arm's configurations at each budget, small to large."""

    def ruled(config: Config, budget: float) -> Config:
        return replace(config, budget=replace(config.budget, flops=budget, rules_at=at_budget))

    base = at(at_budget)
    if base.size != "auto" or base.model.d_model is not None:
        return {budget: [ruled(config, budget) for config in sized(base, grid)] for budget in budgets}
    centres = [math.log(optimal_shape(base.model, at(b), grid.tokens_per_param)[0]) for b in budgets]
    origin, firsts = lattice(centres, budgets, grid)
    step = lattice_step(grid)
    config = grown(base, grid)
    rungs = range(min(firsts), max(firsts) + grid.points)
    shapes = rungs_near(config, [math.exp(origin + k * step) for k in rungs])
    chosen = dict(zip(rungs, shapes, strict=True))
    return {
        budget: [ruled(at_shape(config, chosen[k]), budget) for k in range(first, first + grid.points)]
        for budget, first in zip(budgets, firsts, strict=True)
    }


def lattice_step(grid: GridConfig) -> float:
    """So that ``points`` rungs stay within centre / span .. centre x span wherever the centre lies between rungs: a
    grid on the lattice is half a step off its centre at most."""
    return 2 * math.log(grid.span) / grid.points


def lattice(centres: Sequence[float], budgets: Sequence[float], grid: GridConfig) -> tuple[float, list[int]]:
    """The place of rung 0, and the number of each budget's first rung; sizes are logarithms of FLOPs per token.

    The rungs nearest each centre are taken; of all phases of the lattice the one that saves most, and of those the one
    whose grids are centred best.
    """
    step, half = lattice_step(grid), (grid.points - 1) / 2

    def firsts(origin: float) -> list[int]:
        return [round((centre - origin) / step - half) for centre in centres]

    def merit(origin: float) -> tuple[float, float]:
        sharing: dict[int, list[float]] = defaultdict(list)
        for first, budget in zip(firsts(origin), budgets, strict=True):
            for k in range(first, first + grid.points):
                sharing[k].append(budget)
        saved = sum(sum(group) - max(group) for group in sharing.values()) / sum(budgets)
        off = max(abs(c - origin - (f + half) * step) for c, f in zip(centres, firsts(origin), strict=True))
        return round(saved, 6), -off

    origin = max((centres[0] + i / PHASES * step for i in range(PHASES)), key=merit)
    return origin, firsts(origin)


# ---- who branches off whom, and what that saves --------------------------------------------------------------


def with_branches(plan: StudyPlan) -> StudyPlan:
    """The same runs; those that differ from a run of a larger budget in nothing but the budget become its branches."""
    groups: dict[str, list[PlannedRun]] = defaultdict(list)
    for run in plan.runs:
        fields = {key: value for key, value in scientific(run.config).items() if key != "budget.flops"}
        groups[digest({**fields, "arm": run.plan.arm})].append(run)
    branches: dict[str, Branch] = {}
    for family in groups.values():
        trunk = max(family, key=lambda run: run.plan.budget).plan
        for run in family:
            step = run.plan.steps - run.plan.decay_steps
            if run.plan.name != trunk.name:
                branches[run.plan.name] = Branch(trunk.name, step, step * run.plan.batch_size)
    runs = tuple(replace(run, branch=branches.get(run.plan.name)) for run in plan.runs)
    return replace(plan, runs=runs)


@dataclass(frozen=True)
class Saving:
    """FLOPs of a plan's runs as they count, those that are trained once for several of them, and the share that could
    be saved if every size were common to all budgets: (1 - delta)(sum C - max C) / sum C."""

    counted: int
    shared: int
    limit: float
    trunks: int
    branches: int
    rules_at: float

    @property
    def share(self) -> float:
        return self.shared / self.counted

    @property
    def sentence(self) -> str:
        of_limit = f", {self.share / self.limit:.1%} of it" if self.limit else ""
        return (
            f"trunks: {self.branches} runs branch off {self.trunks} others, at the largest budget of their size;"
            f" {self.counted - self.shared:.4g} FLOPs are trained in place of {self.counted:.4g}:"
            f" {self.share:.2%} saved (limit, were every size common to all budgets: {self.limit:.2%}{of_limit});"
            f" batch, rate and warm-up of every budget are the rules' at {budget_text(self.rules_at)} FLOPs"
        )


def saving(runs: Sequence[PlannedRun]) -> Saving | None:
    """What branches save; None for a study that shares no trunk by its request."""
    first = runs[0].config if runs else None
    if first is None or first.budget.rules_at is None or not isinstance(first.schedule, WsdConfig):
        return None
    budgets = {run.plan.budget for run in runs}
    return Saving(
        counted=sum(run.plan.flops for run in runs),
        shared=sum(run.flops_shared for run in runs),
        limit=(1 - first.schedule.decay) * (sum(budgets) - max(budgets)) / sum(budgets),
        trunks=len({run.branch.trunk for run in runs if run.branch}),
        branches=sum(run.branch is not None for run in runs),
        rules_at=first.budget.rules_at,
    )
