"""Threshold routing: a token goes through when its weight exceeds a running estimate of the capacity's quantile.

The estimate is a moving average over training steps, so one token's fate depends on no other token of its sequence:
what trains is what decodes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modexp.config.routing import ThresholdConfig
from modexp.models.routed import Choice, RoutedBlock, Router
from modexp.models.transformer import Routing


class ThresholdBlock(RoutedBlock):
    config: ThresholdConfig
    threshold: Tensor
    seen: Tensor

    def __init__(self, config: ThresholdConfig, capacity: float, sequence_length: int) -> None:
        super().__init__(config, capacity, sequence_length)
        _, width, _ = config.shape
        self.router = Router(width)
        self.tokens = max(1, round(capacity * sequence_length))  # of a sequence that should exceed the threshold
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))  # weight of the average so far: 1 - ema^steps

    def choose(self, x: Tensor) -> Choice:
        weights = self.router(x).squeeze(-1)  # (B, T)
        if self.capacity == 1:  # there is no quantile that all exceed
            return Choice(weights, torch.ones_like(weights, dtype=torch.bool))
        return Choice(weights, weights > self.threshold / self.seen.clamp(min=1e-9))

    def train_choice(self, x: Tensor) -> tuple[Tensor, Tensor, Routing]:
        choice = self.choose(x)
        if self.training:
            self.follow(choice.weights.detach())
        return self.fill(choice, self.slots(x.shape[1]))

    def follow(self, weights: Tensor) -> None:
        """Move the average towards this batch's quantile: between the k-th largest weight and the next."""
        k = min(self.tokens, weights.shape[1] - 1)
        quantile = weights.topk(k + 1, dim=-1).values[:, -2:].mean()
        self.threshold.lerp_(quantile, 1 - self.config.ema)
        self.seen.lerp_(torch.ones_like(self.seen), 1 - self.config.ema)
