"""What a study will take on this machine: a few micro-batches of one size, extrapolated by the ledger."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from modexp.config.root import Config
from modexp.models.build import build
from modexp.models.loss import training_loss
from modexp.plan.grid import PlannedRun
from modexp.plan.run import RunPlan
from modexp.train.hardware import autocast, choose_device, memory_free, wait
from modexp.plan.memory import micro_batch

AFFORDABLE = 3e11  # FLOPs of the micro-batch that is timed, where a size this small exists
REPEATS = 4
ENOUGH_SECONDS = 4.0


def run_flops(plan: RunPlan, config: Config) -> float:
    """Training and validation FLOPs of a run; validation passes are extra to the budget."""
    passes = 2 if plan.routed else 1
    tokens = config.trainer.eval_sequences * plan.sequence_length * passes
    return plan.flops + config.trainer.num_evals * tokens * plan.flops_per_token


def flops_per_second(runs: Sequence[PlannedRun], precision: str) -> float:
    """Training FLOP/s of the median size whose micro-batch is affordable, else of the smallest."""
    ordered = sorted(runs, key=lambda r: r.plan.training_flops_per_sequence)
    affordable = [r for r in ordered if r.plan.training_flops_per_sequence * sequences(r) <= AFFORDABLE]
    chosen = affordable[len(affordable) // 2] if affordable else ordered[0]
    plan, config = chosen.plan, chosen.config
    device = choose_device(config.trainer.device)
    if device.type == "cpu":
        torch.set_num_threads(config.trainer.threads)
    model = build(config.model, config.data, 0).to(device)
    tokens = torch.randint(config.data.vocab_size, (sequences(chosen), plan.sequence_length + 1), device=device)
    times = []
    begin = time.perf_counter()
    for _ in range(REPEATS):
        start = time.perf_counter()
        with autocast(device, precision):
            output = model(tokens[:, :-1])
        training_loss(output, tokens[:, 1:])[0].backward()
        wait(device)
        times.append(time.perf_counter() - start)
        if time.perf_counter() - begin > ENOUGH_SECONDS:
            break
    return len(tokens) * plan.training_flops_per_sequence / min(times)


def sequences(run: PlannedRun) -> int:
    """Of the micro-batch that this run would use here."""
    config, plan = run.config, run.plan
    device = choose_device(config.trainer.device)
    return config.trainer.micro_batch or micro_batch(
        config.model, config.data, plan.batch_size, plan.params_total, memory_free(device)
    )
