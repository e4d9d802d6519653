"""What PyTorch itself counts of a model: the independent check of a ledger."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from modexp.config.data import DataConfig
from modexp.config.model import ModelConfig
from modexp.models.build import assemble
from modexp.models.loss import training_loss


class Counted(NamedTuple):
    forward: int  # FLOPs
    backward: int  # FLOPs
    parameters: int


def counted(model: ModelConfig, data: DataConfig, batch: int = 1) -> Counted:
    """A training step on ``batch`` sequences as FlopCounterMode sees it. On the meta device: shapes without numbers,
    so that a model of any size takes a second and no memory."""
    with torch.device("meta"):
        network = assemble(model, data)
        tokens = torch.zeros(batch, data.sequence_length, dtype=torch.long)
    with FlopCounterMode(display=False) as forward:
        network(tokens)
    with FlopCounterMode(display=False) as training:
        training_loss(network(tokens, tokens))[0].backward()
    parameters = sum(p.numel() for p in network.parameters())
    whole = forward.get_total_flops()
    return Counted(whole, training.get_total_flops() - whole, parameters)
