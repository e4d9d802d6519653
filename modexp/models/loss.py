"""What training minimises: the language model's cross-entropy, what the routers add to it, and the predictors' own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from modexp.models.transformer import Output


def language_loss(output: Output, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats a token; ``targets`` (B, T)."""
    return F.cross_entropy(output.logits.flatten(0, 1).float(), targets.flatten())


def training_loss(output: Output, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What is minimised, and the language model's part of it, which is what is reported.

    The predictors' loss needs no weight against the rest: its gradient ends at the predictors.
    """
    language = language_loss(output, targets)
    total = language
    for routing in output.routings:
        for term in (routing.auxiliary, routing.separate):
            if term is not None:
                total = total + term
    return total, language
