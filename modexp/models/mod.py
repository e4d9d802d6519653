"""Mixture-of-Depths (Raposo et al. 2024, sec. 3): the k largest router weights of each sequence go through the block.

B sequences, T tokens, k slots, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modexp.config.routing import MoDConfig
from modexp.models.routed import Choice, Predictor, RoutedBlock, Router, members, top_k
from modexp.models.transformer import Routing


class MoDBlock(RoutedBlock):
    """Expert-choice routing; a predictor, or the router's own sign, stands in for the top-k where it must be causal."""

    config: MoDConfig

    def __init__(self, config: MoDConfig, capacity: float, sequence_length: int, mlp: nn.Module | None = None) -> None:
        super().__init__(config, capacity, sequence_length, mlp)
        _, width, _ = config.shape
        self.limit = sequence_length  # a causal stand-in may take more tokens than the top-k, and it is measured
        self.router = Router(width)
        self.predictor = Predictor(width, config.predictor_hidden) if config.causal == "predictor" else None

    def choose(self, x: Tensor) -> Choice:
        weights = self.router(x).squeeze(-1)  # (B, T)
        if self.config.causal == "auxiliary":
            predicted = weights
        elif self.predictor is not None:
            predicted = self.predictor(x).squeeze(-1)
        else:
            raise ValueError("model.causal=none leaves no causal decision")
        return Choice(weights, predicted > 0, predicted)

    def train_choice(self, x: Tensor) -> tuple[Tensor, Tensor, Routing]:
        weights = self.router(x).squeeze(-1)  # (B, T)
        index = top_k(weights, self.slots(x.shape[1]))  # (B, k)
        taken = members(index, x.shape[1])
        gate = self.gate(weights.gather(1, index))
        predicted, auxiliary, separate = None, None, None
        if self.predictor is not None:
            predicted = self.predictor(x).squeeze(-1)
            separate = membership_loss(predicted, taken)
        elif self.config.causal == "auxiliary":
            # eq. of sec. 3.5: cross-entropy on the router's own outputs, which centres sigmoid(r) around 0.5
            predicted = weights
            auxiliary = self.config.auxiliary_weight * membership_loss(weights, taken)
        return index, gate, Routing(weights, taken, predicted, auxiliary, separate)


def membership_loss(predicted: Tensor, taken: Tensor) -> Tensor:
    """Binary cross-entropy of membership in the top-k (sec. 3.5), mean over tokens (and experts)."""
    return F.binary_cross_entropy_with_logits(predicted.float(), taken.to(torch.float32))
