"""Activation checkpointing: a block keeps what enters it alone, and is computed again on the way back.

Applied from outside, to any kind of block. What is computed twice is reported beside the ledger, never inside a budget.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recompute(block: nn.Module) -> None:
    """From now on, while training. A block with running averages is computed again from what they were, and does not
    move them twice."""
    plain = block.forward
    # looked up in each pass: a block that moves to a device gets other buffers
    back = {"context_fn": lambda: (nullcontext(), going_back(averages_of(block)))}
    more: dict[str, Any] = back if averages_of(block) else {}

    def forward(*inputs: Any) -> Any:
        if block.training and torch.is_grad_enabled():
            return checkpoint(plain, *inputs, use_reentrant=False, **more)
        return plain(*inputs)

    block.forward = forward


def averages_of(module: nn.Module) -> list[Tensor]:
    """The running averages: buffers that are part of the state, which training moves and no optimizer does."""
    kept = module.state_dict().keys()
    return [buffer for name, buffer in module.named_buffers() if name in kept]


def going_back(averages: list[Tensor]) -> AbstractContextManager[None]:
    """A context in which ``averages`` are what they are now."""
    then = [average.clone() for average in averages]

    @contextmanager
    def back() -> Iterator[None]:
        now = [average.clone() for average in averages]
        put(averages, then)
        try:
            yield
        finally:
            put(averages, now)

    return back()


@torch.no_grad()
def put(averages: list[Tensor], values: list[Tensor]) -> None:
    for average, value in zip(averages, values, strict=True):
        average.copy_(value)
