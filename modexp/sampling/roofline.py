"""The least time of a decoding step: each matmul takes its FLOPs at the machine's rate or its bytes at its bandwidth.

A block's weights are read if any row of the batch goes through it, so with many rows the ratio of FLOPs alone is no
limit: this one is. B rows, c tokens of context, each row through a block or expert with probability p.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, lgamma, log, log1p

import torch

from modexp.config.data import DataConfig
from modexp.config.model import ModelConfig
from modexp.flops.ledger import Term
from modexp.kinds import ledger
from modexp.train.hardware import least_seconds, matmul_limit

ITEM = {"fp32": 4, "bf16": 2}  # bytes of a weight and of a cached value


@dataclass(frozen=True)
class Machine:
    flops_per_second: float  # of a large matmul
    bytes_per_second: float  # of reading as much as the weights take, from wherever so much lies: a cache, or memory
    item: int  # bytes of a weight


def measured(device: torch.device, weights: int, precision: str) -> Machine:
    """Both limits, the best of a few, on the threads that torch has, for so many ``weights``."""
    n, item = 1024, ITEM[precision]
    # in fp32 whatever the precision, and along the longer side: nothing reads faster
    read = torch.ones(n, max(1, weights * item // (ITEM["fp32"] * n)), device=device)
    seconds = least_seconds(lambda: read @ read[0], device)
    return Machine(matmul_limit(device, precision), read.nbytes / seconds, item)


def step_seconds(model: ModelConfig, data: DataConfig, batch: int, context: float, machine: Machine) -> float:
    """Expected least time of one step of ``batch`` rows that hold ``context`` tokens each."""
    _, width, _ = model.shape
    terms = [term for term in ledger(model, data).terms if term.is_matmul]
    # a tied head has no parameters of its own, and reads the embedding's
    terms = [replace(t, params=width * data.vocab_size) if t.name == "head" else t for t in terms]
    return sum(term.count * seconds(term, model, width, batch, context, machine) for term in terms)


def seconds(term: Term, model: ModelConfig, width: int, batch: int, context: float, machine: Machine) -> float:
    """Of one block's term, over how many rows there are in it."""
    if term.params:
        # of experts each has weights of its own, read if a row meets it
        copies = getattr(model, "experts", 1) if term.name in EXPERTS else 1
        of_row, weights = 2 * term.params / copies, machine.item * term.params / copies
        return copies * sum(
            chance * max(n * of_row / machine.flops_per_second, weights / machine.bytes_per_second)
            for n, chance in rows(batch, term.share)
            if n
        )
    held = context * term.share  # scores or values: each row reads its own keys or values
    row = max(2 * held * width / machine.flops_per_second, machine.item * held * width / machine.bytes_per_second)
    return batch * term.share * row


EXPERTS = ("experts.in", "experts.gate", "experts.up", "experts.down", "experts.out")


def rows(batch: int, share: float) -> list[tuple[int, float]]:
    """How many of ``batch`` rows take part, each with probability ``share``, and how likely that is."""
    if share >= 1:
        return [(batch, 1.0)]
    orders = [lgamma(batch + 1) - lgamma(n + 1) - lgamma(batch - n + 1) for n in range(batch + 1)]
    return [(n, exp(orders[n] + n * log(share) + (batch - n) * log1p(-share))) for n in range(batch + 1)]
