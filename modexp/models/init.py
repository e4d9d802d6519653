"""Initialisation, all of it. Each tensor draws from a stream of its own, seeded by (seed, name): models that share
a tensor's name and shape start with the same values, whatever else they hold."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn

from modexp.config.model import ModelConfig


def stream(seed: int, name: str) -> torch.Generator:
    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:7], "little"))


def std_of(name: str, shape: torch.Size, config: ModelConfig) -> float:
    """Standard deviation of a matrix: 1/sqrt(fan in); what writes to the residual stream shrinks with depth
    (Radford et al. 2019, sec. 2.3)."""
    layers, width, _ = config.shape
    fan_in = 1 / math.sqrt(shape[-1] if len(shape) < 3 else shape[-2])  # experts hold theirs as in x out
    if name == "embedding.weight":
        return 1 / math.sqrt(width) if config.tie_embeddings else 1.0
    if name == "head.weight":
        return 1 / width  # logits start near zero (Yang et al. 2022, table 3)
    if name.endswith("router.weight"):
        return getattr(config, "router_init_std", fan_in)
    if name.endswith(("attention.out.weight", "mlp.out.weight", "mlp.out")):
        return fan_in / math.sqrt(2 * layers)
    return fan_in


@torch.no_grad()
def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    for name, tensor in model.named_parameters():
        if tensor.ndim < 2:
            tensor.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            tensor.normal_(0.0, std_of(name, tensor.shape, config), generator=stream(seed, name))
