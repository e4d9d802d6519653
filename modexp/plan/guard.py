"""Guard runs: the two ends of each curve again at half and at twice the learning rate.

A rule that is wrong at one end of a curve tilts the parabola and moves its minimum. A guard run has a name of its own,
``...-lr0.5`` or ``...-lr2``, spends its budget like any other, and is no point of a fit (modexp/analysis/guard.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from modexp.plan.grid import PlannedRun, StudyPlan
from modexp.plan.run import plan_run

RATES = (0.5, 2.0)  # over the rule's


def guard_runs(runs: Sequence[PlannedRun]) -> StudyPlan:
    """For each arm and budget of ``runs`` the guards of its smallest and largest size, at the first seed."""
    curves: dict[tuple[str, float], list[PlannedRun]] = {}
    for run in runs:
        curves.setdefault((run.plan.arm, run.plan.budget), []).append(run)
    guards: list[PlannedRun] = []
    for (arm, _), curve in curves.items():
        seed = curve[0].plan.seed
        sizes = sorted((run for run in curve if run.plan.seed == seed), key=lambda run: run.plan.flops_per_token)
        for end in {id(run): run for run in (sizes[0], sizes[-1])}.values():
            for rate in RATES:
                optim = replace(end.config.optim, lr_scale=rate)
                config = replace(end.config, optim=optim)
                guards.append(PlannedRun(plan_run(config, arm), config))
    return StudyPlan(tuple(guards), ())
