"""Degenerate cases of a kind equal the simpler model that it contains."""

from __future__ import annotations

import copy

import pytest
import torch

from modexp.config.experts import IntegratedConfig, MoEConfig, StagedConfig
from modexp.config.model import BaselineConfig
from modexp.config.routing import TokenChoiceConfig
from modexp.models.build import build
from modexp.models.transformer import Transformer
from tests.test_kinds import CHOOSERS, DATA, SHAPE, lively, tokens


def copied(source: Transformer, target: Transformer, expert: bool) -> Transformer:
    """``target`` with the weights of ``source``; a dense MLP becomes expert 0."""
    own = dict(target.named_parameters())
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if expert and ".mlp." in name and "router" not in name:
                own[name.removesuffix(".weight").replace("mlp.up", "mlp.inner")][0].copy_(parameter.T)
            else:
                own[name].copy_(parameter)
    return target


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
@pytest.mark.parametrize("chooser", CHOOSERS)
@pytest.mark.parametrize("causal", [False, True])
def test_one_expert_is_the_dense_mlp(mlp: str, chooser: str, causal: bool) -> None:
    baseline = build(BaselineConfig(**SHAPE, mlp=mlp), DATA, 1)
    moe = build(MoEConfig(**SHAPE, mlp=mlp, experts=1, expert_routing=chooser), DATA, 2)
    moe = copied(baseline, moe, expert=True)
    for block in moe.blocks:
        if block.mlp.predictor is not None:
            torch.nn.init.constant_(block.mlp.predictor.out.bias, 100.0)  # "yes" to every token
    ids = tokens()
    torch.testing.assert_close(moe(ids, causal=causal).logits, baseline(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chooser", CHOOSERS)
def test_staged_at_full_capacity_without_gate_is_moe(chooser: str) -> None:
    moe = lively(MoEConfig(**SHAPE, every=2, experts=3, expert_routing=chooser))
    staged = build(
        StagedConfig(**SHAPE, every=2, experts=3, expert_routing=chooser, capacity=1.0, gate="none"), DATA, 5
    )
    own, theirs = dict(staged.named_parameters()), dict(moe.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.items():
            own[name].copy_(parameter)
    ids = tokens()
    torch.testing.assert_close(staged(ids).logits, moe(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chooser", CHOOSERS)
def test_integrated_without_no_ops_is_moe(chooser: str) -> None:
    moe = build(MoEConfig(**SHAPE, experts=3, expert_routing=chooser), DATA, 4)
    integrated = build(IntegratedConfig(**SHAPE, experts=3, noop_experts=0, expert_routing=chooser), DATA, 4)
    ids = tokens()
    assert torch.equal(moe(ids).logits, integrated(ids).logits)


@pytest.mark.parametrize("config", [TokenChoiceConfig(**SHAPE, capacity=1.0, gate="none")])
def test_token_choice_of_everything_is_the_baseline(config: TokenChoiceConfig) -> None:
    baseline, model = build(BaselineConfig(**SHAPE), DATA, 3), build(config, DATA, 3)
    ids = tokens()
    everyone = copy.deepcopy(model)
    for block in everyone.blocks:
        if hasattr(block, "router"):
            block.choose = lambda x, choose=block.choose: choose(x)._replace(
                wanted=torch.ones(x.shape[:2], dtype=torch.bool)
            )
    torch.testing.assert_close(everyone(ids).logits, baseline(ids).logits, rtol=1e-6, atol=1e-6)
