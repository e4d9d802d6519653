"""What tests/test_distributed.py runs in two processes, and in one to compare.

    python -m tests.spread FOLDER     with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment

Every kind of model takes a few steps under DDP and FSDP2; then the run planned in FOLDER/run goes on under one and the
other, each stopped by a signal that one process gets.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from modexp.config import root
from modexp.config.data import DataConfig
from modexp.config.experts import IntegratedConfig, MoEConfig, StagedConfig
from modexp.config.model import BaselineConfig
from modexp.config.root import Config
from modexp.config.routing import MoDConfig, StochasticConfig, ThresholdConfig, TokenChoiceConfig
from modexp.config.train import OptimConfig, TrainerConfig
from modexp.errors import Interrupted
from modexp.runs import RunDir
from modexp.train.checkpoint import gathered, stored
from modexp.train.evaluate import evaluate
from modexp.train.loop import Training
from modexp.train.signals import Stop
from modexp.train.step import Stepper
from modexp.train.world import World

SHAPE: dict[str, Any] = {"n_layers": 2, "d_model": 16, "n_heads": 2}
T = 32
BATCHES = (6, 5, 7, 1)  # two processes: even shares and others, a different number of passes, none at all
MICRO = 2
CPU = torch.device("cpu")
CHOOSERS = ("expert_choice", "token_choice")

MODELS = {
    "baseline": BaselineConfig(**SHAPE),
    "tied": BaselineConfig(**SHAPE, tie_embeddings=True),
    "mod": MoDConfig(**SHAPE, capacity=0.25),
    "mod_auxiliary": MoDConfig(**SHAPE, capacity=0.25, causal="auxiliary"),
    "mod_no_gate": MoDConfig(**SHAPE, capacity=0.25, gate="none"),  # no gradient reaches its router
    "mod_stochastic": StochasticConfig(**SHAPE, capacity=0.25),
    "mod_token_choice": TokenChoiceConfig(**SHAPE, capacity=0.25),
    "mod_threshold": ThresholdConfig(**SHAPE, capacity=0.25, ema=0.5),
    **{f"moe_{c}": MoEConfig(**SHAPE, experts=3, expert_routing=c) for c in CHOOSERS},
    **{
        f"mode_integrated_{c}": IntegratedConfig(**SHAPE, experts=3, noop_experts=2, expert_routing=c) for c in CHOOSERS
    },
    **{f"mode_staged_{c}": StagedConfig(**SHAPE, capacity=0.25, experts=3, expert_routing=c) for c in CHOOSERS},
}


def trained(name: str, parallel: str, world: World) -> dict[str, Tensor]:
    """Losses, gradient norms, held-out rows and final weights of a few steps."""
    config = Config(
        model=MODELS[name],
        data=DataConfig(vocab_size=256, sequence_length=T),
        optim=OptimConfig(eps=1e-4),
        trainer=TrainerConfig(parallel=parallel),
    )
    stepper = Stepper(config, CPU, "fp32", world)
    random = torch.Generator().manual_seed(0)
    rows = []
    for step, B in enumerate(BATCHES):
        batch = torch.randint(256, (B, T + 1), generator=random)
        rows.append(torch.stack(stepper.step(batch, MICRO, 1e-2, seed=step)))
    held_out = torch.randint(256, (3, T + 1), generator=random)
    stepper.model.eval()
    found = evaluate(stepper.model, config.model, held_out, CPU, "fp32", 1.0, world)
    return {
        "losses_and_norms": torch.stack(rows),
        "held_out": torch.tensor(list(found.values())),
        **gathered(stored(stepper.model), world),
    }


def stopped(run: RunDir, parallel: str, world: World, rank: int, steps: int) -> None:
    """Train ``run`` until process ``rank`` gets a SIGTERM in the last of ``steps`` more steps."""
    config = run.config()
    if world.leads:
        root.save(replace(config, trainer=replace(config.trainer, parallel=parallel)), run.config_path)
    world.barrier()
    with Stop() as stop:
        training = Training(run, stop, world=world)
        done = training.state.step
        step = training.stepper.step

        def with_signal(*arguments: Any) -> Any:
            if training.state.step == done + steps - 1 and world.rank == rank:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(*arguments)

        training.stepper.step = with_signal  # type: ignore[method-assign]
        try:
            training.to_the_end()
        except Interrupted as told:
            assert f"at step {done + steps} of" in str(told)  # noqa: PT017
            return
    raise AssertionError("no process was stopped")


def main(folder: Path) -> None:
    from modexp.train.distributed import join

    torch.set_num_threads(1)
    world = join()
    for parallel in ("ddp", "fsdp"):
        for name in MODELS:
            found = trained(name, parallel, world)
            if world.leads:
                save_file(found, folder / f"{parallel}-{name}.safetensors")
    stopped(RunDir(folder / "run"), "ddp", world, rank=1, steps=3)
    stopped(RunDir(folder / "run"), "fsdp", world, rank=0, steps=4)
    raise SystemExit(world.end(0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
