"""What a study will take on this machine: a few passes of a few of its runs, and the rest by the model of cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from modexp.plan.grid import PlannedRun
from modexp.train.bench import Subject, measure
from modexp.train.hardware import choose_device

AFFORDABLE = {"cpu": 3e11, "cuda": 3e14}  # FLOPs of a pass that is timed: seconds where nothing was optimised
REPEATS = 3


def measured_here(runs: Sequence[PlannedRun], precision: str) -> dict[str, Any]:
    """A measurement (modexp.train.bench) of the smallest and the largest run of each arm that can be timed in seconds,
    on batches cut to what is affordable; of the smallest run of all where none can."""
    device = choose_device(runs[0].config.trainer.device)
    budget = AFFORDABLE[device.type]
    ordered = sorted(runs, key=lambda run: run.plan.training_flops_per_sequence)
    affordable = [run for run in ordered if 2 * run.plan.training_flops_per_sequence <= budget] or ordered[:1]
    subjects = []
    for arm in dict.fromkeys(run.plan.arm for run in affordable):
        mine = [run for run in affordable if run.plan.arm == arm]
        for run in [mine[0], mine[-1]][: len(mine)]:
            batch = max(1, min(run.plan.batch_size, int(budget / run.plan.training_flops_per_sequence)))
            trainer = replace(run.config.trainer, micro_batch=batch)
            subjects.append(Subject(arm, replace(run.config, trainer=trainer), batch))
    return measure(subjects, device, precision, REPEATS, ("step", "other pass", "evaluate"), with_memory=False)
