"""What training minimises: the language model's cross-entropy, and the predictors' on their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from modexp.models.transformer import Output


def language_loss(output: Output, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats a token; ``targets`` (B, T)."""
    return F.cross_entropy(output.logits.flatten(0, 1).float(), targets.flatten())


def predictor_loss(output: Output) -> Tensor:
    """Binary cross-entropy of membership in the top-k (sec. 3.5), mean over tokens, summed over routed blocks.

    Its gradient ends at the predictors, so it needs no weight against the language model's loss.
    """
    losses = [
        F.binary_cross_entropy_with_logits(routing.predicted.float(), routing.topk.float())
        for routing in output.routings
    ]
    return torch.stack(losses).sum() if losses else output.logits.new_zeros(())
