"""A slow transformer that shares no code with modexp: one row, one token, one expert at a time; a block computes every
token, with masks for those not there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Kernels round by the shapes they are given, and causal decisions change shapes: fp32 logits of about 10 differ by some
# 1e-6, more on some CPUs than on others. A leak routes some token otherwise, which moves them by about 1.
ROUNDING = 1e-5


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


def fixed_noise(x: Tensor) -> Tensor:
    """The same draws for the model and its reference, layer after layer."""
    return torch.randn(x.shape[:2], generator=torch.Generator().manual_seed(3))


def depth_choice(block: Any, config: Any, x: Tensor, row: int, causal: bool) -> tuple[list[int], Tensor]:
    """Positions of the row's tokens that go through, and every token's router weight."""
    length = len(x)
    k = config.slots(block.capacity, length)
    if config.kind == "mod_stochastic":
        r = fixed_noise(torch.empty(8, length, 1))[row]
        if causal:
            return [i for i in range(length) if r[i] > block.quantile], r
        return sorted(sorted(range(length), key=lambda i: -r[i])[:k]), r
    if config.kind == "mod_token_choice":
        r = (x @ block.router.weight.T).softmax(-1)[:, 0]
        return [i for i in range(length) if r[i] > 0.5][:k], r
    r = x @ block.router.weight[0]
    if config.kind == "mod_threshold":
        return [i for i in range(length) if r[i] > block.threshold / block.seen][:k], r
    if causal:
        logits = r if config.causal == "auxiliary" else block.predictor(x)[:, 0]
        return [i for i in range(length) if logits[i] > 0], r
    return sorted(sorted(range(length), key=lambda i: -r[i].item())[:k]), r


def experts_of(mlp: Any, x: Tensor, causal: bool, alive: list[int], slots: int) -> Tensor:
    """Sum over experts for the tokens of one row (T, D); only those ``alive`` take part."""
    config = mlp.config
    E = config.experts
    probability = (x @ mlp.router.weight.T).softmax(-1)
    chosen: list[list[int]] = [[] for _ in range(E)]
    if config.expert_routing == "token_choice":
        for i in alive:
            e = int(probability[i].argmax())
            if e < E and len(chosen[e]) < slots:
                chosen[e].append(i)
    elif causal:
        chosen = [[i for i in alive if mlp.predictor(x[i])[e] > 0] for e in range(E)]
    else:
        chosen = [sorted(alive, key=lambda i: -probability[i, e].item())[:slots] for e in range(E)]
    rows = []
    for i in range(len(x)):
        total = torch.zeros(x.shape[1])
        for e in range(E):
            if i in chosen[e]:
                hidden = x[i] @ mlp.inner[e]
                hidden = F.gelu(hidden) if mlp.gate is None else F.silu(x[i] @ mlp.gate[e]) * hidden
                total = total + probability[i, e] * (hidden @ mlp.out[e])
        rows.append(total)
    return torch.stack(rows)


def reference(model: Any, config: Any, ids: Tensor, causal: bool) -> Tensor:
    """Logits (B, T, V); with stochastic routing, of :func:`fixed_noise`."""
    gates = {"raw": lambda r: r, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "none": torch.ones_like}
    rows = []
    for row, sequence in enumerate(ids):
        x = model.embedding.weight[sequence]
        for layer, block in enumerate(model.blocks):
            alive, scale = list(range(len(x))), torch.ones(len(x))
            if layer in config.routed_layers() and hasattr(config, "gate"):
                alive, r = depth_choice(block, config, x, row, causal)
                scale = gates[config.gate](r) * F.one_hot(torch.tensor(alive), len(x)).sum(0) if alive else 0 * r
            member = torch.zeros(len(x), dtype=torch.bool)
            member[alive] = True
            mlp = None
            if hasattr(block.mlp, "router"):
                room = config.slots(block.capacity, len(x)) if hasattr(config, "gate") else len(x)
                slots = config.expert_slots(room)

                def mlp(h: Tensor, block: Any = block, alive: list[int] = alive, slots: int = slots) -> Tensor:
                    return experts_of(block.mlp, h, causal, alive, slots)

            x = x + scale[:, None] * block_delta(block, x, member, config.rope_theta, mlp)
        rows.append(rms_norm(x, model.norm.weight) @ model.head.weight.T)
    return torch.stack(rows)
