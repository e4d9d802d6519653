"""The paper's control (Fig. 3): the k largest of Gaussian noise go through; nothing about routing is learned."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import NormalDist

import torch
from torch import Tensor

from modexp.config.routing import StochasticConfig
from modexp.models.routed import Choice, RoutedBlock, members, top_k
from modexp.models.transformer import Routing


class StochasticBlock(RoutedBlock):
    def __init__(self, config: StochasticConfig, capacity: float, sequence_length: int) -> None:
        super().__init__(config, capacity, sequence_length)
        self.limit = sequence_length
        # one token alone goes through when its noise exceeds what a share `capacity` of all noise exceeds
        self.quantile = NormalDist().inv_cdf(1 - capacity) if capacity < 1 else -math.inf

    def choose(self, x: Tensor) -> Choice:
        weights = noise(x)
        return Choice(weights, weights > self.quantile)

    def train_choice(self, x: Tensor) -> tuple[Tensor, Tensor, Routing]:
        weights = noise(x)
        index = top_k(weights, self.slots(x.shape[1]))
        gate = self.gate(weights.gather(1, index))
        return index, gate, Routing(weights, members(index, x.shape[1]))


part: tuple[int, Tensor] | None = None  # of a batch that goes through in several passes: see part_of


@contextmanager
def part_of(total: int, first: int, device: torch.device) -> Iterator[None]:
    """A pass in here holds the sequences from ``first`` on of a batch of ``total``: seeded alike for each part, the
    parts draw what one pass would have drawn."""
    global part
    part = total, torch.full((), first, device=device)  # a tensor, or each part would be compiled anew
    try:
        yield
    finally:
        part = None


def noise(x: Tensor) -> Tensor:
    """(B, T) standard normal; the training loop seeds it step by step."""
    B, T = x.shape[:2]
    if part is None:
        return torch.randn((B, T), device=x.device)
    total, first = part
    rows = first + torch.arange(B, device=x.device)
    return torch.randn((total, T), device=x.device).index_select(0, rows)
