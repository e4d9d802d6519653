"""Every kind of routing against a slow, obvious reference, and what every kind must do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from modexp.config.data import DataConfig
from modexp.config.experts import IntegratedConfig, MoEConfig, StagedConfig
from modexp.config.model import BaselineConfig, ModelConfig
from modexp.config.routing import MoDConfig, StochasticConfig, ThresholdConfig, TokenChoiceConfig
from modexp.kinds import KINDS
from modexp.models import stochastic
from modexp.models.build import build
from modexp.models.loss import training_loss
from modexp.models.routed import first
from modexp.models.token_choice import balance_loss
from modexp.models.transformer import Transformer
from tests.reference import ROUNDING, fixed_noise, reference

SHAPE: dict[str, Any] = {"n_layers": 4, "d_model": 32, "n_heads": 4}
T = 48
DATA = DataConfig(vocab_size=256, sequence_length=T)
CHOOSERS = ("expert_choice", "token_choice")

MODELS = {
    "stochastic": StochasticConfig(**SHAPE),
    "token_choice": TokenChoiceConfig(**SHAPE, capacity=0.25),
    "token_choice_half": TokenChoiceConfig(**SHAPE, capacity=0.5, gate="none", every=1),
    "threshold": ThresholdConfig(**SHAPE, capacity=0.25),
    "auxiliary": MoDConfig(**SHAPE, causal="auxiliary"),
    "listed": MoDConfig(**SHAPE, layers=[0, 3], capacity=[0.125, 0.5]),
    "offset": MoDConfig(**SHAPE, offset=0),
    **{f"moe_{c}": MoEConfig(**SHAPE, experts=4, expert_routing=c) for c in CHOOSERS},
    **{f"moe_dropping_{c}": MoEConfig(**SHAPE, experts=4, expert_capacity=0.5, expert_routing=c) for c in CHOOSERS},
    "moe_swiglu": MoEConfig(**SHAPE, experts=4, mlp="swiglu", every=2),
    **{f"integrated_{c}": IntegratedConfig(**SHAPE, experts=4, noop_experts=2, expert_routing=c) for c in CHOOSERS},
    **{f"staged_{c}": StagedConfig(**SHAPE, capacity=0.25, experts=3, expert_routing=c) for c in CHOOSERS},
}


def tokens(batch: int = 3, length: int = T, seed: int = 0) -> Tensor:
    return torch.randint(256, (batch, length), generator=torch.Generator().manual_seed(seed))


def lively(config: ModelConfig) -> Transformer:
    """Weights large enough that routers and predictors differ between tokens; a threshold that some tokens pass."""
    model = build(config, DATA, 0)
    with torch.no_grad():
        model.head.weight.mul_(10)
        for name, parameter in model.named_parameters():
            if "router" in name or "predictor" in name:
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(len(name)))
        for name, buffer in model.named_buffers():
            if name.endswith(("threshold", "seen")):
                buffer.fill_(1.0)
    return model.eval()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_slow_reference(name: str, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MODELS[name]
    model, ids = lively(config), tokens(2)
    monkeypatch.setattr(stochastic, "noise", fixed_noise)
    output = model(ids, causal=causal)
    wanted = reference(model, config, ids, causal)
    assert all(0 < routing.taken.float().mean() < 1 for routing in output.routings), "the router decides something"
    torch.testing.assert_close(output.logits, wanted, rtol=1e-5, atol=1e-5)
    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)) / wanted.numel() ** 0.5
    parameters = [p for n, p in model.named_parameters() if "predictor" not in n]
    found = torch.autograd.grad((output.logits * weight).sum(), parameters, allow_unused=True, retain_graph=True)
    expected = torch.autograd.grad((wanted * weight).sum(), parameters, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


# ---- what every kind must do --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_rows_never_touch_each_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stochastic, "noise", fixed_noise)
    model, ids = lively(MODELS[name]), tokens(4)
    changed = ids.clone()
    changed[2] = tokens(1, seed=9)[0]
    for causal in (False, True):
        one, other = model(ids, causal=causal).logits, model(changed, causal=causal).logits
        for row in (0, 1, 3):
            torch.testing.assert_close(one[row], other[row], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", MODELS)
def test_causal_decisions_depend_on_the_past_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stochastic, "noise", fixed_noise)
    model, ids = lively(MODELS[name]), tokens(2)
    before = model(ids, causal=True).logits
    for position in (1, 20, 47):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % 256
        after = model(changed, causal=True).logits
        torch.testing.assert_close(after[:, :position], before[:, :position], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", [n for n, config in MODELS.items() if not config.sees_future])
def test_kinds_that_train_causally_decide_alike_everywhere(name: str) -> None:
    model, ids = lively(MODELS[name]), tokens(3)
    torch.testing.assert_close(model(ids).logits, model(ids, causal=True).logits, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("length", [1, 2, 5])
def test_short_sequences_work(name: str, length: int) -> None:
    model = lively(MODELS[name])
    for causal in (False, True):
        output = model(tokens(2, length), causal=causal)
        assert output.logits.isfinite().all()
        assert output.logits.shape == (2, length, 256)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_training_lowers_the_loss_of_every_kind(kind: str) -> None:
    config = KINDS[kind].config(**SHAPE)
    model = build(config, DATA, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    ids = tokens(4, T + 1)
    torch.manual_seed(0)
    first_loss = None
    for _ in range(30):
        total, loss = training_loss(model(ids[:, :-1], ids[:, 1:]))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        first_loss = first_loss or loss.item()
    assert loss.item() < first_loss - 1.0
    assert model.eval()(ids[:, :-1], ids[:, 1:], causal=True).loss.isfinite()


# ---- parts --------------------------------------------------------------------------------------------------------


def test_overflow_is_dropped_in_order_of_position() -> None:
    wanted = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 1]], dtype=torch.bool)
    assert first(wanted, 2).int().tolist() == [[1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]]
    used = torch.tensor([[1], [2]])
    assert first(wanted, 2, used).int().tolist() == [[1, 0, 0, 0, 0, 0], [0] * 6]


def test_balance_loss_is_least_when_the_share_is_met() -> None:
    share, rows = 0.25, 4000

    def loss(p: float) -> float:
        wanted = torch.arange(rows)[None] < p * rows
        return balance_loss(torch.full((1, rows), p), wanted, share).item()

    assert loss(0.25) == pytest.approx(1.0)
    assert loss(0.1) > 1.0 < loss(0.5)


@pytest.mark.parametrize("kind", ["mod_token_choice", "moe", "mode_integrated"])
def test_balance_is_of_each_sequence_and_then_averaged(kind: str) -> None:
    more = {} if kind == "mod_token_choice" else {"expert_routing": "token_choice"}
    model, ids = lively(KINDS[kind].config(**SHAPE, **more)), tokens(4)
    alone = torch.stack([torch.stack([r.auxiliary for r in model(row[None]).routings]) for row in ids])
    together = torch.stack([r.auxiliary for r in model(ids).routings])
    torch.testing.assert_close(together, alone.mean(0), rtol=1e-5, atol=1e-7)
    assert alone.std(0).min() > 1e-5


def test_experts_balance_and_z_loss_are_the_papers() -> None:
    """Fedus et al. 2022, eq. 4-6, and Zoph et al. 2022, eq. 5, in loops; the no-ops are paths like the experts."""
    config = IntegratedConfig(**SHAPE, experts=3, noop_experts=2, expert_routing="token_choice")
    mlp, x = lively(config).blocks[1].mlp, torch.randn(1, T, 32)
    logits = mlp.router(x)[0].double()
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    balance = sum(5 * sum(int(row.argmax() == e) for row in p) / T * sum(row[e] for row in p) / T for e in range(5))
    z = sum(row.exp().sum().log() ** 2 for row in logits) / T
    wanted = config.balance_weight * balance + config.z_weight * z
    assert mlp(x, False)[1].auxiliary.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_threshold_finds_the_quantile_of_its_weights() -> None:
    config = ThresholdConfig(**SHAPE, capacity=0.25, ema=0.9)
    model = build(config, DATA, 0)
    for seed in range(60):
        model(tokens(8, seed=seed))
    share = torch.stack([r.taken.float().mean() for r in model.eval()(tokens(16, seed=99)).routings])
    assert (share - 0.25).abs().max() < 0.05
    evaluated = model.blocks[1].threshold.clone()
    model(tokens(4))
    assert torch.equal(model.blocks[1].threshold, evaluated), "evaluation must not move the threshold"


def test_stochastic_control_learns_nothing_and_meets_its_capacity() -> None:
    model = build(StochasticConfig(**SHAPE, capacity=0.25), DATA, 0)
    assert not [name for name, _ in model.named_parameters() if "router" in name]
    torch.manual_seed(0)
    output = model(tokens(64), causal=True)
    for routing in output.routings:
        assert routing.taken.float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_auxiliary_loss_reaches_the_router_and_predictors_stay_out() -> None:
    model, ids = lively(MODELS["auxiliary"]), tokens()
    assert not [name for name, _ in model.named_parameters() if "predictor" in name]
    output = model(ids)
    sum(r.auxiliary for r in output.routings).backward()  # type: ignore[union-attr]
    assert model.blocks[1].router.weight.grad.abs().max() > 0


def test_no_causal_rule_is_an_error_and_not_a_guess() -> None:
    model = build(MoDConfig(**SHAPE, causal="none"), DATA, 0)
    with pytest.raises(ValueError, match="no causal decision"):
        model(tokens(), causal=True)


@pytest.mark.parametrize("chooser", CHOOSERS)
def test_dropping_leaves_tokens_without_an_expert(chooser: str) -> None:
    config = MoEConfig(**SHAPE, experts=4, expert_capacity=0.25, expert_routing=chooser)
    for routing in lively(config)(tokens()).routings:
        assert routing.taken.sum(1).max() <= config.expert_slots(T) == 3
        assert (~routing.taken.any(-1)).float().mean() > 0.7


@pytest.mark.parametrize("name", MODELS)
def test_swapping_the_kind_keeps_the_shared_weights(name: str) -> None:
    config = MODELS[name]
    dense = dict(build(replace(BaselineConfig(**SHAPE), mlp=config.mlp), DATA, 7).named_parameters())
    special = dict(build(config, DATA, 7).named_parameters())
    shared = [n for n in dense if n in special]
    assert len(shared) >= 4 * SHAPE["n_layers"] + 3
    assert all(torch.equal(dense[n], special[n]) for n in shared)
