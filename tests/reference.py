"""A slow transformer block that shares no code with modexp: every token computed, masks for those not there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * gain


def rotated(x: Tensor, theta: float) -> Tensor:
    """(T, 2P) with the true position of every row: pairs of neighbours, each turned by its own angle."""
    T, width = x.shape
    angle = torch.arange(T)[:, None] * theta ** (-torch.arange(0, width, 2) / width)
    first, second = x[:, 0::2], x[:, 1::2]
    out = torch.empty_like(x)
    out[:, 0::2] = first * angle.cos() - second * angle.sin()
    out[:, 1::2] = second * angle.cos() + first * angle.sin()
    return out


def dense_mlp(mlp: Any, x: Tensor) -> Tensor:
    hidden = x @ mlp.inner.weight.T if hasattr(mlp, "inner") else x @ mlp.up.weight.T
    hidden = F.silu(x @ mlp.gate.weight.T) * hidden if hasattr(mlp, "gate") else F.gelu(hidden)
    return hidden @ mlp.out.weight.T


def block_delta(
    block: Any, x: Tensor, member: Tensor, theta: float, mlp: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """f of one row (T, D) in which only the tokens marked in ``member`` (T,) exist; the others' rows mean nothing."""
    T, D = x.shape
    heads = block.attention.heads
    q, k, v = (rms_norm(x, block.attention_norm.weight) @ block.attention.qkv.weight.T).split(D, dim=-1)
    outputs = []
    for h in range(heads):
        columns = slice(h * D // heads, (h + 1) * D // heads)
        scores = rotated(q[:, columns], theta) @ rotated(k[:, columns], theta).T / math.sqrt(D // heads)
        visible = torch.tril(torch.ones(T, T, dtype=torch.bool)) & member[None, :]
        scores = scores.masked_fill(~visible, -1e30)
        outputs.append(scores.softmax(-1) @ v[:, columns])
    attended = torch.cat(outputs, -1) @ block.attention.out.weight.T
    inner = rms_norm(x + attended, block.mlp_norm.weight)
    return attended + (mlp(inner) if mlp else dense_mlp(block.mlp, inner))
