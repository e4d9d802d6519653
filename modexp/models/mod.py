"""Mixture-of-Depths (Raposo et al. 2024, sec. 3): k tokens of each sequence go through the block, the rest past it.

B sequences, T tokens, k routed tokens, D width.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modexp.config.model import MoDConfig
from modexp.models.transformer import Block, Rope, Routing

GATES = {"raw": lambda r: r, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "none": torch.ones_like}


class Router(nn.Linear):
    """r = w . x for every token (eq. 1), in fp32: sixteen bits would tie the weights that top-k must order."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # autocast does not know the meta device, on which ledgers are checked
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(self.weight.dtype), self.weight).squeeze(-1)  # (B, T)


class Predictor(nn.Module):
    """Logit that a token is in the top-k, from the router's input behind a stop-gradient (sec. 3.5)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.inner(x.detach()))).squeeze(-1)  # (B, T)


def top_k(weights: Tensor, k: int) -> Tensor:
    """Positions (B, k) of each row's k largest weights, in order of position, so that causality survives."""
    return weights.topk(k, dim=-1, sorted=False).indices.sort(dim=-1).values


def pack(taken: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (B, k) of the tokens marked in ``taken`` (B, T), in order, k the most of any row; and which
    slots hold one. Rows with fewer are filled up at their end, where the causal mask hides the filling."""
    k = max(1, int(taken.sum(dim=-1).max()))  # waits for the device: evaluation only
    index = taken.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)[:, :k]
    return index, taken.gather(1, index)


class MoDBlock(Block):
    """x_i + g(r_i) f_i(X~) for routed tokens i, x_i for the rest; X~ holds the routed tokens only."""

    def __init__(self, config: MoDConfig) -> None:
        super().__init__(config)
        _, width, _ = config.shape
        self.router = Router(width)
        self.predictor = Predictor(width, config.predictor_hidden)
        self.capacity = config.routed_tokens
        self.gate = GATES[config.gate]

    def forward(self, x: Tensor, rope: Rope, causal: bool) -> tuple[Tensor, Routing]:
        weights = self.router(x)  # (B, T)
        predicted = self.predictor(x)  # (B, T)
        index = top_k(weights, self.capacity(x.shape[1]))  # (B, k)
        topk = torch.zeros_like(weights, dtype=torch.bool).scatter(1, index, True)
        taken = topk
        gate = self.gate(weights.gather(1, index))  # (B, k)
        if causal:
            taken = predicted > 0
            index, filled = pack(taken)
            gate = self.gate(weights.gather(1, index)) * filled
        return self.route(x, rope, index, gate), Routing(weights, predicted, topk, taken)

    def route(self, x: Tensor, rope: Rope, index: Tensor, gate: Tensor) -> Tensor:
        """Send the tokens at ``index`` (B, k) through the block and add its delta, times ``gate`` (B, k)."""
        B, T, D = x.shape
        rows = torch.arange(B, device=x.device)[:, None] * T
        flat = (index + rows).flatten()  # (B k): a row never reaches into another
        chosen = x.flatten(0, 1).index_select(0, flat).view(B, -1, D)  # (B, k, D)
        delta = self.delta(chosen, rope.at(index)) * gate.unsqueeze(-1)
        return x.flatten(0, 1).index_add(0, flat, delta.flatten(0, 1).to(x.dtype)).view(B, T, D)
