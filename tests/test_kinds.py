"""Every kind of routing against a slow, obvious reference, and against the simpler model that it contains."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modexp.config.data import DataConfig
from modexp.config.experts import IntegratedConfig, MoEConfig, StagedConfig
from modexp.config.model import BaselineConfig, ModelConfig
from modexp.config.routing import MoDConfig, StochasticConfig, ThresholdConfig, TokenChoiceConfig
from modexp.kinds import KINDS
from modexp.models import stochastic
from modexp.models.build import build
from modexp.models.experts import Experts
from modexp.models.loss import training_loss
from modexp.models.routed import first
from modexp.models.token_choice import balance_loss
from modexp.models.transformer import Transformer
from tests.reference import block_delta, rms_norm

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


def fixed_noise(x: Tensor) -> Tensor:
    """The same draws for the model and its reference, layer after layer."""
    return torch.randn(x.shape[:2], generator=torch.Generator().manual_seed(3))


# ---- the reference: one row, one token, one expert at a time ------------------------------------------------------


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


def experts_of(mlp: Experts, x: Tensor, causal: bool, alive: list[int], slots: int) -> Tensor:
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
                hidden = mlp.inner[e] @ x[i]
                hidden = F.gelu(hidden) if mlp.gate is None else F.silu(mlp.gate[e] @ x[i]) * hidden
                total = total + probability[i, e] * (mlp.out[e] @ hidden)
        rows.append(total)
    return torch.stack(rows)


def reference(model: Transformer, config: Any, ids: Tensor, causal: bool) -> Tensor:
    gates = {"raw": lambda r: r, "none": torch.ones_like}
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
            if isinstance(block.mlp, Experts):
                room = config.slots(block.capacity, len(x)) if hasattr(config, "gate") else len(x)
                slots = config.expert_slots(room)

                def mlp(h: Tensor, block: Any = block, alive: list[int] = alive, slots: int = slots) -> Tensor:
                    return experts_of(block.mlp, h, causal, alive, slots)

            x = x + scale[:, None] * block_delta(block, x, member, config.rope_theta, mlp)
        rows.append(rms_norm(x, model.norm.weight) @ model.head.weight.T)
    return torch.stack(rows)


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
            torch.testing.assert_close(one[row], other[row], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", MODELS)
def test_causal_decisions_depend_on_the_past_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stochastic, "noise", fixed_noise)
    model, ids = lively(MODELS[name]), tokens(2)
    before = model(ids, causal=True).logits
    for position in (1, 20, 47):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % 256
        after = model(changed, causal=True).logits
        torch.testing.assert_close(after[:, :position], before[:, :position], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", [n for n, config in MODELS.items() if not config.sees_future])
def test_kinds_that_train_causally_decide_alike_everywhere(name: str) -> None:
    model, ids = lively(MODELS[name]), tokens(3)
    torch.testing.assert_close(model(ids).logits, model(ids, causal=True).logits, rtol=0, atol=2e-6)


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


# ---- degenerate cases ---------------------------------------------------------------------------------------------


def copied(source: Transformer, target: Transformer, expert: bool) -> Transformer:
    """``target`` with the weights of ``source``; a dense MLP becomes expert 0."""
    own = dict(target.named_parameters())
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if expert and ".mlp." in name and "router" not in name:
                own[name.removesuffix(".weight").replace("mlp.up", "mlp.inner")][0].copy_(parameter)
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
    with torch.no_grad():
        for block in model.blocks:
            if hasattr(block, "router"):
                block.router.weight[1].copy_(block.router.weight[0])
        # equal probabilities choose nobody; a threshold below them chooses all
    ids = tokens()
    everyone = copy.deepcopy(model)
    for block in everyone.blocks:
        if hasattr(block, "router"):
            block.choose = lambda x, choose=block.choose: choose(x)._replace(
                wanted=torch.ones(x.shape[:2], dtype=torch.bool)
            )
    torch.testing.assert_close(everyone(ids).logits, baseline(ids).logits, rtol=1e-6, atol=1e-6)


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
