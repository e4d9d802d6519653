"""Share of a training step that routing takes, one thread: python tests/benchmarks/routing_share.py [--precision bf16].

From profiles of whole steps of MoD 12.5 % every 2nd block: what runs in the parts below, and, found by autograd's
sequence numbers, their backward passes, sums of gradients included.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from nanogpt import SHAPES, VOCAB, our_step
from torch.profiler import ProfilerActivity, profile, record_function

from modexp.models import mod, routed
from modexp.train.hardware import prepare

PARTS = {  # where each is called; an operation belongs to the innermost
    "router": (routed.Router, "forward"),
    "predictor": (routed.Predictor, "forward"),
    "its loss": (mod, "membership_loss"),
    "top-k": (mod, "top_k"),
    "gather": (routed, "gather"),
    "scatter": (routed, "scatter_add"),
    "the rest of the choice": (mod.MoDBlock, "train_choice"),
}
MARK = "part: "


def named(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with record_function(MARK + name):
            return call(*args, **kwargs)

    return wrapped


def shares(step: Callable[[torch.Tensor], Any], batch: torch.Tensor) -> dict[str, float]:
    """Per cent of the time of all operators, by part."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step(batch)
    events = found.events()
    total = sum(event.self_cpu_time_total for event in events)
    spent: dict[str, float] = defaultdict(float)
    owner: dict[int, str] = {}

    def walk(event: Any, part: str | None) -> None:
        if event.name.startswith(MARK):
            part = event.name.removeprefix(MARK)
        if part is not None:
            spent[part] += event.self_cpu_time_total
            if event.name.startswith("aten::") and event.sequence_nr >= 0:
                owner[event.sequence_nr] = part
        for child in event.cpu_children:
            walk(child, part)

    for event in events:
        if event.cpu_parent is None:
            walk(event, None)
    for event in events:
        if event.name.startswith("autograd::engine::evaluate_function") and event.sequence_nr in owner:
            spent[owner[event.sequence_nr]] += event.cpu_time_total
    return {part: 100 * time / total for part, time in spent.items()}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--precision", choices=("fp32", "bf16"), action="append")
    p.add_argument("--shape", choices=SHAPES, action="append")
    p.add_argument("--repeats", type=int, default=7)
    args = p.parse_args()
    prepare(torch.device("cpu"), 1)
    for part, (place, name) in PARTS.items():
        setattr(place, name, named(part, getattr(place, name)))
    print(f"| shape | precision | {' | '.join(PARTS)} | together, % |\n|{'---|' * (len(PARTS) + 3)}")
    for shape in args.shape or SHAPES:
        for precision in args.precision or ("fp32", "bf16"):
            step = our_step(SHAPES[shape], precision, False, "model=mod", "model.capacity=0.125")
            batch = torch.randint(VOCAB, (SHAPES[shape][4], SHAPES[shape][3] + 1))
            found = [shares(step, batch) for _ in range(args.repeats + 2)][2:]
            of_part = [median(turn[part] for turn in found) for part in PARTS]
            together = median(sum(turn.values()) for turn in found)
            cells = " | ".join(f"{share:.2f}" for share in of_part)
            print(f"| {shape} | {precision} | {cells} | {together:.2f} |", flush=True)


if __name__ == "__main__":
    main()
