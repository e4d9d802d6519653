"""From logits to the next token: temperature, top-k, top-p, and a draw. B rows, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modexp.config.base import require


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Filters apply in the order of the fields; temperature 0 takes the likeliest token."""

    temperature: float = 1.0
    top_k: int | None = None  # only the k likeliest
    top_p: float | None = None  # only the fewest that together reach this probability (Holtzman et al. 2020)

    def __post_init__(self) -> None:
        require(self.temperature >= 0, "--temperature", self.temperature, "is negative")
        require(self.top_k is None or self.top_k >= 1, "--top-k", self.top_k, "is not positive")
        ok = self.top_p is None or 0 < self.top_p <= 1
        require(ok, "--top-p", self.top_p, "is not a probability in (0, 1]")


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """(B, V) in double precision, each row summing to 1. Ties at an edge of a filter fall as the sort has them."""
    logits = logits.double()
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    logits, order = (logits / sampling.temperature).sort(dim=-1, descending=True, stable=True)
    if sampling.top_k is not None:
        logits[..., sampling.top_k :] = -torch.inf
    p = logits.softmax(dim=-1)
    if sampling.top_p is not None:
        # a token stays while those before it fall short of top_p: so the likeliest always does
        p = p.masked_fill(p.cumsum(dim=-1) - p >= sampling.top_p, 0.0)
        p = p / p.sum(dim=-1, keepdim=True)
    return torch.zeros_like(p).scatter(-1, order, p)


def draw(p: Tensor, uniform: Tensor) -> Tensor:
    """The token (B,) at which each row's cumulated ``p`` (B, V) first exceeds ``uniform`` (B,) in [0, 1)."""
    total = p.cumsum(dim=-1)
    found = torch.searchsorted(total, (uniform * total[..., -1]).unsqueeze(-1), right=True)
    return found.squeeze(-1)
