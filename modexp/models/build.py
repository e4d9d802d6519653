"""From a configuration to a model: the blocks of each kind that this package brings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modexp.config.data import DataConfig
from modexp.config.experts import MoEConfig, StagedConfig
from modexp.config.model import ModelConfig
from modexp.config.routing import MoDConfig, RoutedConfig, StochasticConfig, ThresholdConfig, TokenChoiceConfig
from modexp.kinds import kind
from modexp.models.experts import MoEBlock, StagedBlock
from modexp.models.init import initialise
from modexp.models.mod import MoDBlock
from modexp.models.routed import RoutedBlock
from modexp.models.stochastic import StochasticBlock
from modexp.models.threshold import ThresholdBlock
from modexp.models.token_choice import TokenChoiceBlock
from modexp.models.transformer import Block, Transformer


def baseline_blocks(config: ModelConfig, sequence_length: int) -> list[Block]:
    return [Block(config) for _ in range(config.shape[0])]


def routed_blocks(
    block: Callable[[Any, float, int], RoutedBlock], config: RoutedConfig, sequence_length: int
) -> list[Block]:
    """Dense blocks, with ``block`` in the places that route."""
    capacities = dict(zip(config.routed_layers(), config.capacities(), strict=True))
    return [
        block(config, capacities[layer], sequence_length) if layer in capacities else Block(config)
        for layer in range(config.shape[0])
    ]


def mod_blocks(config: MoDConfig, sequence_length: int) -> list[Block]:
    return routed_blocks(MoDBlock, config, sequence_length)


def stochastic_blocks(config: StochasticConfig, sequence_length: int) -> list[Block]:
    return routed_blocks(StochasticBlock, config, sequence_length)


def token_choice_blocks(config: TokenChoiceConfig, sequence_length: int) -> list[Block]:
    return routed_blocks(TokenChoiceBlock, config, sequence_length)


def threshold_blocks(config: ThresholdConfig, sequence_length: int) -> list[Block]:
    return routed_blocks(ThresholdBlock, config, sequence_length)


def moe_blocks(config: MoEConfig, sequence_length: int) -> list[Block]:
    special = config.routed_layers()
    return [
        MoEBlock(config, sequence_length) if layer in special else Block(config) for layer in range(config.shape[0])
    ]


def staged_blocks(config: StagedConfig, sequence_length: int) -> list[Block]:
    return routed_blocks(StagedBlock, config, sequence_length)


def assemble(config: ModelConfig, data: DataConfig) -> Transformer:
    """A model whose weights are whatever torch made of them; on the meta device, none at all."""
    blocks = kind(config.kind).make_blocks(config, data.sequence_length)
    return Transformer(config, blocks, data.vocab_size, data.sequence_length)


def build(config: ModelConfig, data: DataConfig, seed: int) -> Transformer:
    """A model with freshly drawn weights, in fp32 on the current default device."""
    model = assemble(config, data)
    initialise(model, config, seed)
    return model
