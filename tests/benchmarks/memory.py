"""Memory that a process holds at most over steps and evaluations in turn, beside what is predicted of a run:
python tests/benchmarks/memory.py [--rounds 6].

Each model in a process of its own; MB above what a process holds that has trained a tiny model.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace

MODELS = {  # kind, layers, width, tokens, vocabulary
    "dense L2 d128 T256, V = 16384": ("baseline", 2, 128, 256, 16384),
    "MoD L2 d128 T256, V = 16384": ("mod", 2, 128, 256, 16384),
    "MoD L4 d64 T128": ("mod", 4, 64, 128, 256),
    "MoD L6 d256 T256": ("mod", 6, 256, 256, 256),
}
BATCH = 16


def measure(name: str, rounds: int) -> None:
    import torch

    from modexp.cli.compose import configuration
    from modexp.plan.memory import peak_bytes
    from modexp.train.evaluate import evaluate
    from modexp.train.hardware import prepare, resident
    from modexp.train.probe import TINY
    from modexp.train.step import Stepper

    kind, layers, width, T, vocab = MODELS[name]
    shape = [f"model={kind}", f"model.n_layers={layers}", f"model.d_model={width}", "model.n_heads=2"]
    config = configuration([*shape, f"data.sequence_length={T}"])
    config = replace(config, data=replace(config.data, vocab_size=vocab))
    device = torch.device("cpu")
    prepare(device, 1)
    Stepper(TINY, device, "fp32").step(torch.randint(256, (1, TINY.data.sequence_length + 1)), 1, 0.0, 0)
    base = resident("VmHWM")
    stepper = Stepper(config, device, "fp32")
    batch, held_out = (torch.randint(vocab, (n, T + 1)) for n in (BATCH, 32768 // T))
    most = []
    for _ in range(rounds):
        for _ in range(2):
            stepper.step(batch, BATCH, 1e-3, 0)
        evaluate(stepper.model, config.model, held_out, device, "fp32", 1.0)
        most.append((resident("VmHWM") - base) / 1e6)
    predicted = peak_bytes(config.model, config.data, BATCH, "fp32") / 1e6
    print(f"| {name} | {predicted:.0f} | {' | '.join(f'{mb:.0f}' for mb in most)} |", flush=True)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=6)
    p.add_argument("--only", choices=MODELS, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.only:
        measure(args.only, args.rounds)
        return
    rounds = " | ".join(f"round {n}" for n in range(1, args.rounds + 1))
    print(f"| model | predicted | {rounds} |\n|{'---|' * (args.rounds + 2)}", flush=True)
    for name in MODELS:
        subprocess.run([sys.executable, __file__, "--only", name, "--rounds", str(args.rounds)], check=True)


if __name__ == "__main__":
    main()
