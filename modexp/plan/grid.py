"""A study's runs: one grid of sizes a budget, the same rungs of FLOPs per token for every arm."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from modexp.analysis.points import LOOSEST
from modexp.config.model import ModelConfig
from modexp.config.root import Config
from modexp.config.study import GridConfig
from modexp.errors import UserError
from modexp.flops.transformer import dense_twin
from modexp.kinds import ledger
from modexp.plan.ladder import Shape, ladder, with_shape
from modexp.plan.run import RunPlan, optimal_shape, plan_run
from modexp.wording import budget_text

Arms = dict[str, Callable[[float], Config]]  # each arm's configuration at a budget

APART = 1.25  # ratio of two arms' central FLOPs per token from which on they are not centred alike


@dataclass(frozen=True)
class Dropped:
    """A run that the grid asked for and the plan refuses."""

    arm: str
    budget: float
    seed: int
    reason: str


@dataclass(frozen=True)
class Branch:
    """Where a run leaves another, its trunk (modexp/plan/trunk.py): after ``step`` steps, ``sequences`` in all."""

    trunk: str
    step: int
    sequences: int


@dataclass(frozen=True)
class PlannedRun:
    plan: RunPlan
    config: Config
    branch: Branch | None = None  # None: trained from its beginning

    @property
    def flops_shared(self) -> int:
        """Of the plan's FLOPs those that its trunk trains."""
        return self.branch.sequences * self.plan.training_flops_per_sequence if self.branch else 0


@dataclass(frozen=True)
class StudyPlan:
    runs: tuple[PlannedRun, ...]
    dropped: tuple[Dropped, ...]


def targets(centre: float, grid: GridConfig) -> list[float]:
    """Forward FLOPs per token of the rungs, evenly spaced in their logarithm."""
    if grid.points == 1:
        return [centre]
    step = 2 * math.log(grid.span) / (grid.points - 1)
    return [centre * math.exp(-math.log(grid.span) + i * step) for i in range(grid.points)]


def rungs_of(config: Config) -> dict[Shape, float]:
    """Forward FLOPs per token of every rung that this model can take."""
    flops: dict[Shape, float] = {}
    for shape in ladder(config.depth):
        with suppress(UserError):  # a rung this model cannot take: no routed block among its layers, say
            books = ledger(with_shape(config.model, shape), config.data)
            flops[shape] = books.forward(config.budget.convention) / books.sequence_length
    return flops


def rungs_near(config: Config, wanted: list[float]) -> list[Shape]:
    """For each target the nearest rung not taken yet, by this arm's own forward FLOPs per token."""
    flops = rungs_of(config)
    chosen: list[Shape] = []
    for target in wanted:
        free = [shape for shape in flops if shape not in chosen]
        if not free:
            raise UserError(
                f"grid.points={len(wanted)} is more than the {len(flops)} sizes of the ladder", "ask for fewer"
            )
        chosen.append(min(free, key=lambda shape: abs(math.log(flops[shape] / target))))
    return chosen


def plan_study(arms: Arms, budgets: list[float], seeds: list[int], grid: GridConfig) -> StudyPlan:
    """Plans of all runs, budget by budget, arm by arm, small to large.

    ``arms`` maps a name to its configuration at a budget. A shape given in the configuration, or ``size``,
    takes the place of the grid.
    """
    return joined([plan_budget(arms, budget, seeds, grid) for budget in sorted(set(budgets))])


def plan_budget(
    arms: Arms, budget: float, seeds: list[int], grid: GridConfig, centre: float | None = None
) -> StudyPlan:
    """Plans of one budget, around ``centre`` in forward FLOPs per token where it is given."""
    return plan_sizes({arm: sized(at(budget), grid, centre) for arm, at in arms.items()}, budget, seeds)


def plan_sizes(sizes: Mapping[str, Sequence[Config]], budget: float, seeds: Sequence[int]) -> StudyPlan:
    """Plans of one budget, at the sizes of each arm."""
    runs: list[PlannedRun] = []
    dropped: list[Dropped] = []
    for arm, configs in sizes.items():
        for seed in seeds:
            for config in configs:
                config = replace(config, seed=seed)
                try:
                    plan = plan_run(config, arm)
                except UserError as error:
                    dropped.append(Dropped(arm, budget, seed, error.sentence))
                    continue
                if reason := too_few_sequences(plan):
                    dropped.append(Dropped(arm, budget, seed, reason))
                else:
                    runs.append(PlannedRun(plan, config))
    return StudyPlan(tuple(runs), tuple(dropped))


def too_few_sequences(plan: RunPlan) -> str:
    """Why whole sequences come no nearer to the budget than a fit accepts; empty where they do."""
    if abs(plan.achieved - 1) <= LOOSEST:
        return ""
    return (
        f"{plan.size}: {plan.sequences} whole sequences miss {budget_text(plan.budget)} FLOPs by"
        f" {plan.achieved - 1:+.1%}, more than the {LOOSEST:.0%} that a fit accepts; raise the budget or shorten the"
        " sequences"
    )


def joined(plans: Sequence[StudyPlan]) -> StudyPlan:
    """All of them as one. UserError where two runs would share a name, and so a directory."""
    runs = tuple(run for plan in plans for run in plan.runs)
    names = Counter(run.plan.name for run in runs)
    doubled = next((name for name, count in names.items() if count > 1), None)
    if doubled:
        raise UserError(f"two runs of the study are named {doubled}", "set grid.points or sizes further apart")
    return StudyPlan(runs, tuple(dropped for plan in plans for dropped in plan.dropped))


def unequal_centres(plans: list[RunPlan]) -> list[str]:
    """Budgets at which the arms' grids lie apart in FLOPs per token, each with a sentence: the ladder ends there, or
    the arms pin their sizes. Parabolas of unequal grids are biased unequally."""
    sentences = []
    for budget in sorted({plan.budget for plan in plans}):
        centres: dict[str, float] = {}
        for arm in {plan.arm for plan in plans}:
            logs = [math.log(p.flops_per_token) for p in plans if (p.arm, p.budget) == (arm, budget)]
            if logs:
                centres[arm] = math.exp(sum(logs) / len(logs))
        low, high = min(centres, key=lambda a: centres[a]), max(centres, key=lambda a: centres[a])
        if centres[high] / centres[low] > APART:
            sentences.append(
                f"at {budget_text(budget)} {high} is centred on {centres[high]:.3g} FLOPs per token and {low} on"
                f" {centres[low]:.3g}: their optima do not compare"
            )
    return sentences


def sized(config: Config, grid: GridConfig, centre: float | None = None) -> list[Config]:
    """The configuration at every size of the grid."""
    if config.size != "auto" or config.model.d_model is not None:
        from modexp.plan.run import resolve_shape

        return [resolve_shape(config)]
    # at whatever depth: every arm is centred on the same FLOPs per token
    centre = centre or optimal_shape(config.model, config, grid.tokens_per_param)[0]
    config = grown(config, grid)
    shapes = sorted(
        rungs_near(config, targets(centre, grid)),
        key=lambda s: ledger(with_shape(config.model, s), config.data).forward(),
    )
    return [at_shape(config, shape) for shape in shapes]


def at_shape(config: Config, shape: Shape) -> Config:
    return replace(config, model=with_shape(config.model, shape), size="auto", depth=1.0)


def grown(config: Config, grid: GridConfig) -> Config:
    """Under ``grid.growth=depth`` a routed arm's ladder is as much deeper as its blocks are cheaper than dense ones:
    at equal FLOPs per token it keeps the dense width and spends what routing saves on layers (Raposo et al. 2024,
    sec. 4.1: such models were best made deeper). An arm with a ``depth`` of its own keeps that."""
    if grid.growth == "even" or not config.model.has_routing or config.depth != 1:
        return config
    shape = optimal_shape(config.model, config, grid.tokens_per_param)[1]

    def blocks(model: ModelConfig) -> int:
        books = ledger(with_shape(model, shape), config.data)
        return books.forward(config.budget.convention) - books.forward(config.budget.convention, "head")

    try:
        saved = blocks(dense_twin(config.model)) / blocks(config.model)
    except UserError:  # routed layers are listed, and the middle size does not have them
        return config
    return replace(config, depth=min(4.0, max(1.0, round(saved, 2))))
