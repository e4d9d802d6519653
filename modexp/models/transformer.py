"""The baseline: a pre-norm decoder-only transformer with RMSNorm, RoPE and SDPA, no biases.

B sequences, T tokens, k tokens inside a block (k = T in a dense one), D width, H heads, P half a head's width,
V vocabulary. While decoding: n tokens just met, R rows that take part (cache.py says how blocks are decoded).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modexp.config.model import ModelConfig
from modexp.models.cache import KVCache, Packed, State
from modexp.models.fused import Linear, RMSNorm, by_hand, rotated, turns_of_all
from modexp.models.head import head_loss


class Routing(NamedTuple):
    """What one routed block decided. With experts the first three have a last dimension E."""

    weights: Tensor  # (B, T) router weights
    taken: Tensor  # (B, T) bool: tokens that went through in this pass
    predicted: Tensor | None = None  # (B, T) logits of membership in the top-k
    auxiliary: Tensor | None = None  # what the router adds to the loss: balance and the like, weighted
    separate: Tensor | None = None  # loss of parameters that share no gradient with the rest: the predictors'
    real: Tensor | None = None  # (B, T) bool: tokens there are, where others only fill a row up; None: all


class Output(NamedTuple):
    routings: tuple[Routing, ...]  # of the routed blocks, in order of depth
    logits: Tensor  # (B, T, V); empty where a loss was asked for
    loss: Tensor  # nats a token, of the targets that were given; else empty


class Rope(NamedTuple):
    """Cosines and sines of the true positions."""

    turns: Tensor  # (B or 1, k, 1, P, 2), the same for all heads
    all_heads: tuple[Tensor, Tensor] | None = None  # see turns_of_all

    def at(self, index: Tensor) -> Rope:
        """For tokens that left their places: ``index`` (B, k) holds their positions in a table of one sequence."""
        return Rope(self.turns[0, index])


class Fresh(NamedTuple):
    """Tokens that a decoder has just met, n a row, right-padded."""

    tokens: Packed  # (B, n) of them, as a block that lets none pass by packs them
    rope: Rope  # of their true positions


def rope_table(length: int, head_width: int, theta: float) -> Tensor:
    """(1, length, 1, P, 2): cosines and sines of position x frequency."""
    frequency = theta ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return torch.stack((angle.cos(), angle.sin()), dim=-1).float()[None, :, None]


class Attention(nn.Module):
    """Causal self-attention among the tokens it is given, which stand in order of position."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def project(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        B, k, D = x.shape
        qkv = self.qkv(x).view(B, k, 3 * self.heads, D // self.heads)
        q, key, v = rotated(qkv, rope.turns, self.heads, rope.all_heads)
        return q.transpose(1, 2), key.transpose(1, 2), v.transpose(1, 2)  # (B, H, k, 2P)

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        q, key, v = self.project(x, rope)
        y = F.scaled_dot_product_attention(q, key, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(x.shape))

    def extend(self, x: Tensor, rope: Rope, tokens: Packed, cache: KVCache) -> Tensor:
        """Attention of ``tokens``, x (R, k, D), to themselves and to what the cache holds of their rows."""
        q, key, v = self.project(x, rope)
        keys, values = cache.extend(key, v, tokens)
        y = F.scaled_dot_product_attention(q, keys, values, attn_mask=tokens.visible, is_causal=tokens.begins)
        return self.out(y.transpose(1, 2).reshape(x.shape))


class GeluMLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = Linear(width, hidden)
        self.out = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.inner(x)))


class SwigluMLP(nn.Module):
    """Shazeer 2020."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = Linear(width, hidden)
        self.up = Linear(width, hidden)
        self.out = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention, then MLP, each behind a norm."""

    def __init__(self, config: ModelConfig, mlp: nn.Module | None = None) -> None:
        super().__init__()
        _, width, heads = config.shape
        self.attention_norm = RMSNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.mlp_norm = RMSNorm(width, eps=1e-6)
        self.mlp = mlp or {"gelu": GeluMLP, "swiglu": SwigluMLP}[config.mlp](width, config.mlp_hidden)

    @property
    def share(self) -> float:
        """Of the tokens, that go through."""
        return 1.0

    def delta(self, x: Tensor, rope: Rope) -> Tensor:
        """What the block adds to the residual stream: f(x) = block(x) - x. (B, k, D)"""
        attended = self.attention(self.attention_norm(x), rope)
        return attended + self.mlp(self.mlp_norm(x + attended))

    def forward(self, x: Tensor, rope: Rope, causal: bool) -> tuple[Tensor, tuple[Routing, ...]]:
        """The stream after the block, and each decision that was taken in it."""
        x = x + self.attention(self.attention_norm(x), rope)  # not x + delta: a pass over the stream less
        return x + self.mlp(self.mlp_norm(x)), ()

    def new_state(self, batch: int, length: int) -> State:
        """What the block keeps of ``batch`` sequences of up to ``length`` tokens while they are decoded."""
        weight = self.attention.qkv.weight
        heads = self.attention.heads
        room = self.cache_room(length)
        return State(KVCache(batch, heads, weight.shape[1] // heads, room, length, weight.detach()))

    def cache_room(self, length: int) -> int:
        """Tokens of a sequence for which the cache is allocated."""
        return length

    def extend(self, x: Tensor, fresh: Fresh, state: State) -> Tensor:
        """The block on tokens just met, x (B, n, D), after those that ``state`` knows."""
        return x + self.extend_delta(x, fresh.rope, fresh.tokens, state)

    def extend_delta(self, x: Tensor, rope: Rope, tokens: Packed, state: State) -> Tensor:
        """:meth:`delta` of ``tokens``, x (R, k, D); empty slots hold anything."""
        attended = self.attention.extend(self.attention_norm(x), rope, tokens, state.cache)
        return attended + self.extend_mlp(self.mlp_norm(x + attended), tokens, state)

    def extend_mlp(self, x: Tensor, tokens: Packed, state: State) -> Tensor:
        return self.mlp(x)


class Transformer(nn.Module):
    """Embedding, blocks, norm, head."""

    def __init__(self, config: ModelConfig, blocks: Sequence[Block], vocab_size: int, sequence_length: int) -> None:
        super().__init__()
        _, width, heads = config.shape
        self.heads = heads
        self.embedding = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(blocks)
        self.norm = RMSNorm(width, eps=1e-6)
        self.head = Linear(width, vocab_size)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.rope: Tensor
        self.register_buffer("rope", rope_table(sequence_length, width // heads, config.rope_theta), persistent=False)

    def forward(self, tokens: Tensor, targets: Tensor | None = None, causal: bool = False) -> Output:
        """Logits for ``tokens`` (B, T), or the mean loss of ``targets`` (B, T), whose logits are never there at once.

        ``causal`` replaces the top-k, which sees the future, by decisions that depend on the past alone;
        a model without routing is causal either way.
        """
        x = self.embedding(tokens)  # (B, T, D)
        turns = self.rope[:, : tokens.shape[1]]
        rope = Rope(turns, turns_of_all(turns, self.heads) if by_hand(x) and torch.is_grad_enabled() else None)
        routings: list[Routing] = []
        for block in self.blocks:
            x, decisions = block(x, rope, causal)
            routings += decisions
        x, nothing = self.norm(x), x.new_empty(0)
        if targets is None:
            return Output(tuple(routings), self.head(x), nothing)
        return Output(tuple(routings), nothing, head_loss(x, self.head.weight, targets))
