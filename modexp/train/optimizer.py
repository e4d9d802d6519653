"""AdamW over two families of parameters that must not disturb each other: the model's and the predictors'."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modexp.config.train import OptimConfig
from modexp.train.parallel import whole


def is_predictor(name: str) -> bool:
    return ".predictor." in name


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Weight decay on matrices only."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for _, p in named if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for _, p in named if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def clip_gradients(model: nn.Module, largest: float) -> Tensor:
    """Scale gradients to norm ``largest``; returns the model's norm before, on its device.

    The predictors are clipped on their own: one common norm would let them slow the language model down, and the
    paper finds that they do not touch it (sec. 3.5).
    """
    families: dict[bool, list[Tensor]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        families[is_predictor(name)].append(parameter)
    norm = nn.utils.clip_grad_norm_(families[False], largest)
    if families[True]:
        nn.utils.clip_grad_norm_(families[True], largest)
    return whole(norm)
