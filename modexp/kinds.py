"""Kinds of models: what ``model.kind`` names. A package of your own adds one through the entry point ``modexp.kinds``.

A kind is its configuration, its ledger and its blocks. Blocks are named, not imported, so that planning needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from modexp.config.data import DataConfig
from modexp.config.experts import IntegratedConfig, MoEConfig, StagedConfig
from modexp.config.model import BaselineConfig, ModelConfig
from modexp.config.routing import LayersConfig, MoDConfig, StochasticConfig, ThresholdConfig, TokenChoiceConfig
from modexp.errors import UserError
from modexp.flops import experts, routed, transformer
from modexp.flops.ledger import Ledger


@dataclass(frozen=True)
class Kind:
    """``ledger(config, vocabulary, T)`` counts; ``blocks``, "module:function", makes a list of blocks from a config."""

    config: type[ModelConfig]
    ledger: Callable[[Any, int, int], Ledger]
    blocks: str

    def make_blocks(self, config: ModelConfig, sequence_length: int) -> Any:
        module, _, name = self.blocks.partition(":")
        return getattr(import_module(module), name)(config, sequence_length)


KINDS: dict[str, Kind] = {
    "baseline": Kind(BaselineConfig, transformer.baseline_ledger, "modexp.models.build:baseline_blocks"),
    "mod": Kind(MoDConfig, routed.mod_ledger, "modexp.models.build:mod_blocks"),
    "mod_stochastic": Kind(StochasticConfig, routed.stochastic_ledger, "modexp.models.build:stochastic_blocks"),
    "mod_token_choice": Kind(TokenChoiceConfig, routed.token_choice_ledger, "modexp.models.build:token_choice_blocks"),
    "mod_threshold": Kind(ThresholdConfig, routed.threshold_ledger, "modexp.models.build:threshold_blocks"),
    "moe": Kind(MoEConfig, experts.moe_ledger, "modexp.models.build:moe_blocks"),
    "mode_integrated": Kind(IntegratedConfig, experts.moe_ledger, "modexp.models.build:moe_blocks"),
    "mode_staged": Kind(StagedConfig, experts.staged_ledger, "modexp.models.build:staged_blocks"),
}


def kind(name: str) -> Kind:
    """The kind of that name, ours or an installed package's. UserError if there is none."""
    if name not in KINDS:
        from importlib.metadata import entry_points

        for point in entry_points(group="modexp.kinds", name=name):
            KINDS[name] = point.load()
    if name not in KINDS:
        raise UserError(f"model.kind={name} is not known", f"choose one of: {', '.join(KINDS)}")
    return KINDS[name]


def ledger(model: ModelConfig, data: DataConfig) -> Ledger:
    """The ledger of a model whose shape is filled, on the data's vocabulary and sequence length."""
    return kind(model.kind).ledger(model, data.vocab_size, data.sequence_length)


def realised_forward(model: LayersConfig, data: DataConfig, capacities: list[float], convention: str) -> float:
    """Forward FLOPs per token when routed block i takes the share ``capacities[i]`` of the tokens, as a causal
    rule does that is free to take more or fewer than the plan's."""
    return ledger(model.realised(capacities), data).forward(convention) / data.sequence_length
