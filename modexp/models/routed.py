"""What all blocks that let tokens pass by have in common: packing, the delta times its gate, capacity in order.

B sequences, T tokens, k slots, D width; while decoding, n tokens just met and R rows in which one goes through.

A block chooses in one of two ways. While it trains it fills k static slots (:meth:`RoutedBlock.train_choice`). Where
the future must not be seen, each token is judged on its own (:meth:`RoutedBlock.choose`), and at most
``limit`` tokens of a sequence go through, the first ones: so a decoder that meets tokens one by one decides alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modexp.config.routing import RoutedConfig
from modexp.models.cache import State, in_every_row, one_each, packed
from modexp.models.transformer import Block, Fresh, Rope, Routing

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "raw": lambda r: r,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "none": torch.ones_like,
}


class Choice(NamedTuple):
    """What a router makes of each token on its own."""

    weights: Tensor  # (B, T) router weights r
    wanted: Tensor  # (B, T) bool: would go through, were there room
    predicted: Tensor | None = None  # (B, T) logits of membership in the top-k, where one is predicted


class Router(nn.Linear):
    """r = w . x for every token (eq. 1), in fp32: sixteen bits would tie the weights that top-k must order."""

    def __init__(self, width: int, paths: int = 1) -> None:
        super().__init__(width, paths, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # autocast does not know the meta device, on which ledgers are checked; entering it takes longer than a token
        if x.is_meta or not torch.is_autocast_enabled(x.device.type):
            return F.linear(x, self.weight)  # (B, T, paths)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(self.weight.dtype), self.weight)


class Predictor(nn.Module):
    """Logits of membership in each top-k, from the router's input behind a stop-gradient (sec. 3.5)."""

    def __init__(self, width: int, hidden: int, outputs: int = 1) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.inner(x.detach())))  # (B, T, outputs)


def top_k(weights: Tensor, k: int) -> Tensor:
    """Positions (B, k) of each row's k largest weights, in order of position, so that causality survives."""
    return weights.topk(k, dim=-1, sorted=False).indices.sort(dim=-1).values


def members(index: Tensor, T: int) -> Tensor:
    """(B, T) bool: the positions in ``index`` (B, k)."""
    return torch.zeros(*index.shape[:-1], T, dtype=torch.bool, device=index.device).scatter(-1, index, True)


def pack(taken: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Positions (B, k) of the tokens marked in ``taken`` (B, T), in order; and which slots hold one.

    Rows with fewer than k are filled up at their end, where the causal mask hides the filling.
    """
    index = taken.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)[..., :k]
    return index, taken.gather(-1, index)


def first(taken: Tensor, limit: int, used: Tensor | int = 0) -> Tensor:
    """The first ``limit`` tokens marked in each row of ``taken``, ``used`` of them spent before; later ones drop."""
    return taken & (taken.long().cumsum(dim=-1) + used <= limit)


SIZES = 16  # of a buffer for some of the tokens: were each batch's its own, an allocator could reuse little


def most(taken: Tensor) -> int:
    """Slots for the fullest row, to the next of ``SIZES`` parts of its tokens. Of several tokens a row this waits for
    the device: evaluation only."""
    T = taken.shape[-1]
    if T == 1:
        return 1
    part = math.ceil(T / SIZES)
    return min(T, part * math.ceil(max(1, int(taken.sum(dim=-1).max())) / part))


def flat_index(index: Tensor, T: int) -> Tensor:
    """(B k): places of ``index`` (B, k) in the batch laid out as one row, so that no row reaches into another."""
    rows = torch.arange(index.shape[0], device=index.device)[:, None] * T
    return (index + rows).flatten()


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Tokens of ``x`` (B, T, D) at ``index`` (B, k): (B, k, D)."""
    B, T, D = x.shape
    return x.flatten(0, 1).index_select(0, flat_index(index, T)).view(B, -1, D)


def scatter_add(x: Tensor, index: Tensor, delta: Tensor) -> Tensor:
    """``x`` (B, T, D) with ``delta`` (B, k, D) added at ``index`` (B, k)."""
    B, T, D = x.shape
    flat = x.flatten(0, 1).index_add(0, flat_index(index, T), delta.flatten(0, 1).to(x.dtype))
    return flat.view(B, T, D)


class RoutedBlock(Block):
    """x_i + g(r_i) f_i(X~) for tokens i that go through, x_i for the rest; X~ holds the former only (sec. 3.4)."""

    def __init__(
        self, config: RoutedConfig, capacity: float, sequence_length: int, mlp: nn.Module | None = None
    ) -> None:
        super().__init__(config, mlp)
        self.config = config
        self.capacity = capacity
        self.limit = self.slots(sequence_length)
        self.gate = GATES[config.gate]

    @property
    def share(self) -> float:
        return self.capacity

    def slots(self, T: int) -> int:
        return self.config.slots(self.capacity, T)

    def choose(self, x: Tensor) -> Choice:
        """Judge each token of ``x`` (B, T, D) on its own."""
        raise NotImplementedError

    def train_choice(self, x: Tensor) -> tuple[Tensor, Tensor, Routing]:
        """While training: positions (B, k), gates (B, k) and what is to be known of it. Here: as :meth:`choose`."""
        return self.fill(self.choose(x), self.slots(x.shape[1]))

    def fill(self, choice: Choice, k: int) -> tuple[Tensor, Tensor, Routing]:
        """The first k tokens of each row that want to go through."""
        taken = first(choice.wanted, k)
        index, filled = pack(taken, k)
        gate = self.gate(choice.weights.gather(1, index)) * filled
        return index, gate, Routing(choice.weights, taken, choice.predicted)

    def select(self, x: Tensor, causal: bool) -> tuple[Tensor, Tensor, Routing]:
        """Positions (B, k), gates (B, k) and what is to be known of the choice."""
        if not causal:
            return self.train_choice(x)
        choice = self.choose(x)
        choice = choice._replace(wanted=first(choice.wanted, self.limit))
        return self.fill(choice, most(choice.wanted))

    def forward(self, x: Tensor, rope: Rope, causal: bool) -> tuple[Tensor, tuple[Routing, ...]]:
        index, gate, routing = self.select(x, causal)
        return self.route(x, rope, index, gate), (routing,)

    def route(self, x: Tensor, rope: Rope, index: Tensor, gate: Tensor) -> Tensor:
        """Send the tokens at ``index`` (B, k) through the block and add its delta, times ``gate`` (B, k)."""
        return scatter_add(x, index, self.delta(gather(x, index), rope.at(index)) * gate.unsqueeze(-1))

    def cache_room(self, length: int) -> int:
        mean = self.capacity * length
        # a causal rule is free to take more than its share, so four deviations of a count with that mean
        return min(self.limit, length, math.ceil(mean + 4 * math.sqrt(mean)))

    def admit(self, x: Tensor, fresh: Fresh, state: State) -> tuple[Tensor, Tensor]:
        """Of tokens just met, x (B, n, D): which go through, (B, n) bool, and the router weights of all."""
        choice = self.choose(x)
        taken = choice.wanted & fresh.tokens.filled
        if self.limit < state.cache.length:
            taken = first(taken, self.limit, state.cache.used[:, None])
        return taken, choice.weights

    def extend_taken(self, x: Tensor, taken: Tensor, weights: Tensor, rope: Rope, state: State) -> Tensor:
        """What :meth:`extend` adds to x (B, 1, D) for what :meth:`admit` found, in shapes that no decision changes:
        rows that bypass are computed too, and get zeros."""
        tokens = in_every_row(taken, state.cache.used, state.cache.room)
        delta = self.extend_delta(x, rope, tokens, state)
        return (delta * (self.gate(weights) * taken).unsqueeze(-1)).to(x.dtype)

    def extend(self, x: Tensor, fresh: Fresh, state: State) -> Tensor:
        """As ``forward(causal=True)``, token by token: the cache holds the tokens that went through, and so counts
        them. Rows in which none does cost the choice alone. Waits for the device, to know which rows those are."""
        taken, weights = self.admit(x, fresh, state)
        if x.shape[1] == 1:
            return self.extend_one(x, taken, weights, fresh.rope, state)
        rows = taken.any(dim=1).nonzero().squeeze(1)  # (R,)
        if not len(rows):
            return x
        taken = taken[rows]
        index, filled = pack(taken, most(taken))  # (R, k)
        at = (rows[:, None], index)
        gate = self.gate(weights[at]) * filled
        rope = Rope(fresh.rope.turns[at])  # (R, k, 1, P, 2)
        chosen = x[at]  # (R, k, D)
        delta = self.extend_delta(chosen, rope, packed(rows, filled, state.cache.used), state) * gate.unsqueeze(-1)
        return x.index_put(at, chosen + delta.to(x.dtype))

    def extend_one(self, x: Tensor, taken: Tensor, weights: Tensor, rope: Rope, state: State) -> Tensor:
        """:meth:`extend` of a token a row, x (B, 1, D): there is nothing to pack, and nothing to move where all rows
        take part."""
        rows = taken.squeeze(1).nonzero().squeeze(1)  # (R,)
        if not len(rows):
            return x
        everyone = len(rows) == len(x)
        some: Tensor | slice = slice(None) if everyone else rows
        delta = self.extend_delta(x[some], Rope(rope.turns[some]), one_each(some, state.cache.used), state)
        delta = (delta * self.gate(weights[some]).unsqueeze(-1)).to(x.dtype)
        return x + delta if everyone else x.index_add(0, rows, delta)
