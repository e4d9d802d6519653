"""From a configuration to a model: one builder of blocks a kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modexp.config.data import DataConfig
from modexp.config.model import MoDConfig, ModelConfig
from modexp.models.init import initialise
from modexp.models.mod import MoDBlock
from modexp.models.transformer import Block, Transformer


def baseline_blocks(config: ModelConfig) -> list[Block]:
    return [Block(config) for _ in range(config.shape[0])]


def mod_blocks(config: MoDConfig) -> list[Block]:
    routed = config.routed_layers()
    return [MoDBlock(config) if layer in routed else Block(config) for layer in range(config.shape[0])]


BLOCKS: dict[str, Callable[[Any], list[Block]]] = {"baseline": baseline_blocks, "mod": mod_blocks}


def build(config: ModelConfig, data: DataConfig, seed: int) -> Transformer:
    """A model with freshly drawn weights, in fp32 on the current default device."""
    model = Transformer(config, BLOCKS[config.kind](config), data.vocab_size, data.sequence_length)
    initialise(model, config, seed)
    return model
