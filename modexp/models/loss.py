"""What training minimises: the language model's cross-entropy, what the routers add to it, and the predictors' own."""

from __future__ import annotations

from torch import Tensor

from modexp.models.transformer import Output


def training_loss(output: Output) -> tuple[Tensor, Tensor]:
    """What is minimised, and the language model's part of it, which is what is reported.

    The predictors' loss needs no weight against the rest: its gradient ends at the predictors.
    """
    total = output.loss
    for routing in output.routings:
        for term in (routing.auxiliary, routing.separate):
            if term is not None:
                total = total + term
    return total, output.loss
