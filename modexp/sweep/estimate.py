"""What a study will take on this machine: a few passes of a few of its runs, and the rest by the model of cost."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from modexp.errors import UserError
from modexp.files import read_json
from modexp.kinds import ledger
from modexp.plan.cost import from_measurement
from modexp.plan.grid import PlannedRun
from modexp.train.bench import Subject, measure
from modexp.train.hardware import choose_compile, choose_device, describe
from modexp.train.load import load

AFFORDABLE = {"cpu": 3e11, "cuda": 3e14}  # FLOPs of a pass that is timed: seconds where nothing was optimised
REPEATS = 3


def measured_here(runs: Sequence[PlannedRun], precision: str, kept: Path) -> dict[str, Any]:
    """A measurement (modexp.train.bench) of the smallest, a middle and the largest run of each arm that can be timed in
    seconds, on batches cut to what is affordable; of the smallest run of all where none can.

    What ``kept`` holds from an earlier sweep is taken where it is of this machine and spans these runs: a study that
    goes on need not measure again, beside runs that are still at work. A busy machine's gives way to a quiet one's.
    """
    device = choose_device(runs[0].config.trainer.device)
    if device.type == "cpu":
        torch.set_num_threads(runs[0].config.trainer.threads)  # which the device's name tells
    budget = AFFORDABLE[device.type]
    ordered = sorted(runs, key=lambda run: run.plan.training_flops_per_sequence)
    affordable = [run for run in ordered if 2 * run.plan.training_flops_per_sequence <= budget] or ordered[:1]
    chosen = []
    for arm in dict.fromkeys(run.plan.arm for run in affordable):
        sizes = {run.plan.training_flops_per_sequence: run for run in affordable if run.plan.arm == arm}
        mine = list(sizes.values())  # each size once, whatever its budgets and seeds
        chosen += [mine[i] for i in sorted({0, len(mine) // 2, len(mine) - 1})]
    found = read_kept(kept)
    first = chosen[0].config
    compiled = choose_compile(first.trainer.compile, device, first.budget.flops)
    here = {"host": platform.node(), "device": describe(device), "precision": precision, "compile": compiled}
    here["activation_checkpointing"] = first.trainer.activation_checkpointing
    if here.items() <= found.items() and spans(found, chosen) and not (found["busy"] and not load().sentence):
        return found
    subjects = []
    for run in chosen:
        batch = max(1, min(run.plan.batch_size, int(budget / run.plan.training_flops_per_sequence)))
        trainer = replace(run.config.trainer, micro_batch=batch)
        subjects.append(Subject(run.plan.arm, replace(run.config, trainer=trainer), batch))
    new = measure(subjects, device, precision, REPEATS, ("step", "other pass", "evaluate"), with_memory=False)
    return {**new, "host": platform.node()}


def read_kept(path: Path) -> dict[str, Any]:
    """Empty where nothing was kept, or nothing that can be read: it is measured anew."""
    try:
        found = read_json(path, "host", "compile")
        from_measurement(found)
    except UserError:
        return {}
    return found


def spans(found: dict[str, Any], runs: Sequence[PlannedRun]) -> bool:
    """Whether each run's size lies between two that were measured of its arm."""
    for run in runs:
        size = ledger(run.config.model, run.config.data).forward() / run.plan.sequence_length
        sizes = [row["flops_per_token"] for row in found["rows"] if row["arm"] == run.plan.arm]
        if not sizes or not min(sizes) <= size <= max(sizes):
            return False
    return True
