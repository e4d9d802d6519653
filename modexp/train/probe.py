"""A process of its own that trains one model for a few steps and tells what that took.

Memory is only clean in a fresh process: what an allocator keeps of one model hides what the next one needs. Reads JSON
from stdin, writes JSON to stdout.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

from modexp.config.model import BaselineConfig
from modexp.config.root import Config, from_tree, to_tree
from modexp.errors import RunFailed

STEPS = 2  # the second one meets the optimizer's state
TINY = Config(model=BaselineConfig(n_layers=2, d_model=16, n_heads=1))


def probe(config: Config, batch: int, micro: int, precision: str) -> dict[str, float]:
    """Train ``config`` on ``batch`` sequences, ``micro`` a pass, in a process of its own.

    ``start_seconds``: until a tiny model had trained; ``base_bytes`` held by then; ``peak_bytes`` at most.
    RunFailed if it dies, of memory say.
    """
    request: dict[str, Any] = {"config": to_tree(config), "batch": batch, "micro": micro, "precision": precision}
    words = [sys.executable, "-m", "modexp.train.probe"]
    done = subprocess.run(words, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RunFailed(f"a step of {batch} sequences cannot be measured: {reason}", "try a smaller size or batch")
    return json.loads(done.stdout)


def start_of(config: Config) -> dict[str, float]:
    """What a process takes before its model: of :func:`probe`, the start and the base."""
    return probe(replace(TINY, trainer=config.trainer), 1, 1, "fp32")


def main() -> None:
    import torch

    import modexp.train.loop  # noqa: F401  what a run imports
    from modexp.train.hardware import choose_device, peak_memory, prepare, process_began
    from modexp.train.step import Stepper

    request = json.load(sys.stdin)
    config = from_tree(request["config"])
    device = choose_device(config.trainer.device)
    prepare(device, config.trainer.threads)

    def train(config: Config, batch: int, micro: int, precision: str) -> None:
        stepper = Stepper(config, device, precision)
        shape = (batch, config.data.sequence_length + 1)
        for _ in range(STEPS):
            stepper.step(torch.randint(config.data.vocab_size, shape, device=device), micro, 0.0, seed=0)

    train(TINY, 1, 1, "fp32")  # the first step of a process loads what later ones find
    found = {"start_seconds": time.monotonic() - process_began(), "base_bytes": peak_memory(device)}
    train(config, request["batch"], request["micro"], request["precision"])
    found["peak_bytes"] = peak_memory(device)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
