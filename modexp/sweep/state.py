"""An adaptive study at one moment: what was asked, what was decided, what the runs found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from modexp.analysis.isoflop import StudyFit, fit_study
from modexp.config.study import SweepConfig
from modexp.plan.grid import Arms, PlannedRun, plan_budget
from modexp.sweep.decisions import Added, Decision, plan_of_log

Record = Mapping[str, Any]


@dataclass(frozen=True)
class State:
    """A study at one moment; ``records`` holds one record for each run of ``log``, all of them finished."""

    sweep: SweepConfig
    arms: Arms
    log: Sequence[Decision]
    records: Sequence[Record]

    @cached_property
    def planned(self) -> dict[str, PlannedRun]:
        return {run.plan.name: run for run in plan_of_log(self.log, self.arms).runs}

    @cached_property
    def done(self) -> dict[tuple[str, float], list[PlannedRun]]:
        """By arm and budget the runs that reached their end, small to large."""
        curves = defaultdict(list)
        for row in self.records:
            if row["status"] == "done":
                run = self.planned[row["run"]]
                curves[run.plan.arm, run.plan.budget].append(run)
        return {key: sorted(runs, key=lambda run: run.plan.flops_per_token) for key, runs in curves.items()}

    @cached_property
    def fit(self) -> StudyFit:
        """On planned FLOPs per token, arms in the order of the sweep."""
        order = list(self.arms)
        rows = [{**row, "flops_per_token_causal": None} for row in self.records]
        return fit_study(sorted(rows, key=lambda r: (order.index(r["arm"]), r["budget"], r["run"])), "flops_per_token")

    @cached_property
    def plain(self) -> dict[float, int]:
        """FLOPs of each budget's runs in the same sweep without adapt."""
        sweep, costs = self.sweep, {}
        for budget in sweep.budgets:
            runs = plan_budget(self.arms, budget, sweep.seeds, sweep.grid).runs
            costs[budget] = sum(run.plan.flops for run in runs)
        return costs

    @property
    def limit(self) -> float:
        return self.sweep.adapt.spend * sum(self.plain.values())

    @cached_property
    def room(self) -> float:
        """FLOPs left for additions once every budget that has no grid yet is given one."""
        gridded = {d.budget for d in self.log if d.kind == "grid"}
        reserved = sum(cost for budget, cost in self.plain.items() if budget not in gridded)
        return self.limit - reserved - sum(run.plan.flops for run in self.planned.values())

    def decision(
        self, kind: str, budget: float | None, arm: str, runs: Sequence[Added], reason: str, **numbers: Any
    ) -> Decision:
        adapt = self.sweep.adapt
        asked = {"budgets": list(self.sweep.budgets), "interval": adapt.interval, "spend": adapt.spend}
        last = self.log[-1].round if self.log else 0
        return Decision(last + 1, kind, budget, arm, tuple(runs), reason, numbers, asked)
