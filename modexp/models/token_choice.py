"""Token-choice routing (sec. 3.3): a softmax over {block, bypass}, the likelier path, overflow dropped in order."""

from __future__ import annotations

from torch import Tensor

from modexp.config.routing import TokenChoiceConfig
from modexp.models.routed import Choice, RoutedBlock, Router
from modexp.models.transformer import Routing


class TokenChoiceBlock(RoutedBlock):
    config: TokenChoiceConfig

    def __init__(self, config: TokenChoiceConfig, capacity: float, sequence_length: int) -> None:
        super().__init__(config, capacity, sequence_length)
        _, width, _ = config.shape
        self.router = Router(width, paths=2)

    def choose(self, x: Tensor) -> Choice:
        block = self.router(x).softmax(dim=-1)[..., 0]  # (B, T): probability of the block
        return Choice(block, block > 0.5)

    def train_choice(self, x: Tensor) -> tuple[Tensor, Tensor, Routing]:
        choice = self.choose(x)
        index, gate, routing = self.fill(choice, self.slots(x.shape[1]))
        loss = self.config.balance_weight * balance_loss(choice.weights, choice.wanted, self.capacity)
        return index, gate, routing._replace(auxiliary=loss)


def balance_loss(probability: Tensor, wanted: Tensor, share: float) -> Tensor:
    """Fedus et al. 2022, eq. 4, for two paths that deserve ``share`` and 1 - ``share`` of the tokens: the sum over
    paths of (fraction sent) x (mean probability) / (share deserved), at its least, 1, when both meet their shares.

    A sequence at a time, then averaged: so several processes agree with one. At share 1 there is nothing to balance.
    """
    if share >= 1:
        return 0.0 * probability.mean()
    sent, mean = wanted.to(probability.dtype).mean(dim=1), probability.mean(dim=1)  # (B,)
    return (sent * mean / share + (1 - sent) * (1 - mean) / (1 - share)).mean()
