"""Mixture-of-Depths against the baseline and against a slow reference that shares no code with it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from modexp.config.data import DataConfig
from modexp.config.model import BaselineConfig, ModelConfig
from modexp.config.routing import MoDConfig, RoutedConfig, StochasticConfig, ThresholdConfig
from modexp.kinds import KINDS
from modexp.models.build import assemble, build
from modexp.models.loss import training_loss
from modexp.models.mod import MoDBlock
from modexp.models.routed import SIZES, most, pack, top_k
from modexp.models.transformer import Rope, Transformer, rope_table
from tests.reference import ROUNDING, reference

SHAPE = {"n_layers": 4, "d_model": 32, "n_heads": 4}
DATA = DataConfig(vocab_size=256, sequence_length=48)


def tokens(batch: int = 3, length: int = 48, seed: int = 0) -> Tensor:
    """No token twice in a row: equal tokens that no block has taken yet tie, and rounding would order them."""
    draw = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(256, generator=draw)[:length] for _ in range(batch)])


def lively(config: ModelConfig, seed: int = 0) -> Transformer:
    """A model whose routers differ between tokens and whose head is not near zero."""
    model = build(config, DATA, seed)
    with torch.no_grad():
        model.head.weight.mul_(10)
        for name, parameter in model.named_parameters():
            if "predictor" in name or "router" in name:
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(7))
    return model


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("gate", ["raw", "sigmoid", "tanh", "none"])
@pytest.mark.parametrize(("capacity", "every"), [(0.125, 2), (0.5, 1)])
def test_mod_equals_the_masked_dense_reference(capacity: float, every: int, gate: str, causal: bool) -> None:
    config = MoDConfig(**SHAPE, capacity=capacity, every=every, gate=gate)
    model, ids = lively(config), tokens()
    found, wanted = model(ids, causal=causal).logits, reference(model, config, ids, causal)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)) / found.numel() ** 0.5
    parameters = [p for n, p in model.named_parameters() if "predictor" not in n]
    gradients = torch.autograd.grad((found * weight).sum(), parameters, allow_unused=True, retain_graph=True)
    expected = torch.autograd.grad((wanted * weight).sum(), parameters, allow_unused=True)
    for one, other in zip(gradients, expected, strict=True):
        if one is None or other is None:
            assert gate == "none", "only a router whose weights scale nothing has no gradient"
            continue
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [MoDConfig, StochasticConfig, ThresholdConfig])
def test_full_capacity_without_gate_is_the_baseline(config: type[RoutedConfig]) -> None:
    baseline = build(BaselineConfig(**SHAPE), DATA, seed=3)
    mod = build(config(**SHAPE, capacity=1.0, gate="none"), DATA, seed=3)
    ids = tokens()
    assert (baseline(ids).logits - mod(ids).logits).abs().max() <= 1e-6
    baseline(ids, ids).loss.backward()
    mod(ids, ids).loss.backward()
    theirs = dict(mod.named_parameters())
    for name, parameter in baseline.named_parameters():
        assert (parameter.grad - theirs[name].grad).abs().max() <= 1e-6, name


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("gate", ["raw", "sigmoid", "none"])
def test_a_block_that_adds_nothing_leaves_every_token_exactly_unchanged(gate: str, causal: bool) -> None:
    block = MoDBlock(MoDConfig(**SHAPE, every=1, gate=gate), 0.125, 48)
    with torch.no_grad():
        block.attention.out.weight.zero_()
        block.mlp.out.weight.zero_()
    x = torch.randn(2, 48, 32)
    after, _ = block(x, Rope(rope_table(48, 8, 1e4)), causal)
    assert torch.equal(after, x), "the block's own residual was counted too"


def test_bypassing_tokens_are_exactly_unchanged() -> None:
    block = lively(MoDConfig(**SHAPE)).blocks[1]
    x = torch.randn(2, 48, 32)
    after, (routing,) = block(x, Rope(rope_table(48, 8, 1e4)), False)
    assert torch.equal(after[~routing.taken], x[~routing.taken])
    assert not torch.isclose(after[routing.taken], x[routing.taken]).all(dim=-1).any()
    assert routing.taken.sum(-1).tolist() == [6, 6]


@pytest.mark.parametrize("causal", [False, True])
def test_rows_never_touch_each_other(causal: bool) -> None:
    model = lively(MoDConfig(**SHAPE))
    ids = tokens(4)
    changed = ids.clone()
    changed[2] = tokens(1, seed=9)[0]
    one, other = model(ids, causal=causal).logits, model(changed, causal=causal).logits
    for row in (0, 1, 3):
        torch.testing.assert_close(one[row], other[row], rtol=0, atol=ROUNDING)
    assert not torch.allclose(one[2], other[2])


def test_one_row_alone_is_the_same_row_in_a_batch() -> None:
    model, ids = lively(MoDConfig(**SHAPE)), tokens(4)
    together = model(ids, causal=True).logits
    for row in range(4):
        alone = model(ids[row : row + 1], causal=True).logits[0]
        torch.testing.assert_close(alone, together[row], rtol=1e-5, atol=1e-5)


def test_no_future_token_reaches_an_earlier_one_at_fixed_routing() -> None:
    block = lively(MoDConfig(**SHAPE)).blocks[1]
    rope = Rope(rope_table(48, 8, 1e4))
    x = torch.randn(1, 48, 32, requires_grad=True)
    index = torch.tensor([[0, 3, 11, 12, 30, 47]])
    out = block.route(x, rope, index, torch.ones(1, 6))
    for position in (11, 12, 29, 46):
        (grad,) = torch.autograd.grad(out[0, position].sum(), x, retain_graph=True)
        assert grad[0, position + 1 :].abs().max() == 0
        assert grad[0, position].abs().max() > 0


@pytest.mark.parametrize("config", [BaselineConfig(**SHAPE), MoDConfig(**SHAPE)])
def test_causal_decisions_make_the_whole_model_causal(config: ModelConfig) -> None:
    model, ids = lively(config), tokens(2)
    before = model(ids, causal=True).logits
    for position in (1, 20, 47):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % 256
        after = model(changed, causal=True).logits
        torch.testing.assert_close(after[:, :position], before[:, :position], rtol=0, atol=ROUNDING)


def test_top_k_does_see_the_future() -> None:
    """The reason for the causal router: were this to fail, the two losses would not differ at all."""
    model, ids = lively(MoDConfig(**SHAPE, capacity=0.125)), tokens(8)
    before = model(ids).logits
    changed = ids.clone()
    changed[:, 40:] = tokens(8, 8, seed=5)
    assert not torch.allclose(model(changed).logits[:, :40], before[:, :40], atol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("causal", [False, True])
def test_short_sequences_route_at_least_one_token(length: int, causal: bool) -> None:
    config = MoDConfig(**SHAPE, capacity=0.125)
    assert config.slots(0.125, length) == 1
    output = lively(config)(tokens(2, length), causal=causal)
    assert output.logits.shape == (2, length, 256)
    if not causal:
        assert all((routing.taken.sum(-1) == 1).all() for routing in output.routings)


def test_top_k_takes_exactly_k_in_order_even_when_all_weights_tie() -> None:
    assert top_k(torch.zeros(2, 10), 4).shape == (2, 4)
    index = top_k(torch.tensor([[0.1, 3.0, 2.0, 5.0, -1.0]]), 3)
    assert index.tolist() == [[1, 2, 3]]


def test_pack_keeps_order_and_marks_the_filling() -> None:
    taken = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    index, filled = pack(taken, 3)
    assert index[0].tolist() == [1, 3, 4]
    assert index[1, 0] == 0
    assert filled.tolist() == [[True] * 3, [True, False, False], [False] * 3]


def test_predictor_leaves_the_language_model_alone() -> None:
    model, ids = build(MoDConfig(**SHAPE), DATA, 0), tokens()
    output = model(ids)
    sum(routing.separate for routing in output.routings).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (".predictor." in name), name


def test_router_learns_through_the_gate_of_chosen_tokens_only() -> None:
    block = lively(MoDConfig(**SHAPE)).blocks[1]
    x = torch.randn(1, 48, 32)
    after, (routing,) = block(x, Rope(rope_table(48, 8, 1e4)), False)
    weight = block.router.weight
    (bypassed,) = torch.autograd.grad(after[~routing.taken].square().sum(), weight, retain_graph=True)
    (chosen,) = torch.autograd.grad(after[routing.taken].square().sum(), weight)
    assert bypassed.abs().max() == 0
    assert chosen.abs().max() > 0


def test_shared_tensors_start_equal_whatever_else_a_model_holds() -> None:
    baseline = dict(build(BaselineConfig(**SHAPE), DATA, 5).named_parameters())
    mod = dict(build(MoDConfig(**SHAPE), DATA, 5).named_parameters())
    assert baseline.keys() < mod.keys()
    assert all(torch.equal(tensor, mod[name]) for name, tensor in baseline.items())
    other = dict(build(BaselineConfig(**SHAPE), DATA, 6).named_parameters())
    assert not torch.equal(baseline["head.weight"], other["head.weight"])


def test_tied_head_shares_its_matrix() -> None:
    model = build(replace(BaselineConfig(**SHAPE), tie_embeddings=True), DATA, 0)
    assert model.head.weight is model.embedding.weight


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_loss_starts_near_that_of_a_uniform_guess(mlp: str) -> None:
    model, ids = build(MoDConfig(**SHAPE, mlp=mlp), DATA, 0), tokens(8)
    assert model(ids, tokens(8, seed=1)).loss.item() == pytest.approx(math.log(256), abs=0.1)


class CountOps(TorchDispatchMode):
    """How many operators run, whatever their sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_no_loop_over_the_batch(kind: str) -> None:
    model = build(KINDS[kind].config(**SHAPE), DATA, 0)
    counts = []
    for batch in (2, 5):
        model.zero_grad(set_to_none=True)  # adding to a gradient takes other operators than making one
        ids = tokens(batch)
        with CountOps() as counter:
            training_loss(model(ids, ids))[0].backward()
        counts.append(counter.ops)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("kind", KINDS)
def test_no_host_synchronisation_in_a_training_step(kind: str) -> None:
    """The meta device has no values, so anything that asks for one (.item(), .cpu(), an if) raises."""
    with torch.device("meta"):
        model = assemble(KINDS[kind].config(**SHAPE), DATA)
        ids = torch.zeros(2, 48, dtype=torch.long)
        training_loss(model(ids, ids))[0].backward()
    assert model.embedding.weight.grad is not None


def test_predictor_learns_each_rows_own_membership() -> None:
    """Its target is the top-k of the same row: the offset of a flat index must not leak into it."""
    model, ids = lively(MoDConfig(**SHAPE)), tokens(3)
    output = model(ids)
    for routing in output.routings:
        total = 0.0
        for row in range(3):
            best = sorted(range(48), key=lambda i: -routing.weights[row, i].item())[:6]
            for i in range(48):
                p = torch.sigmoid(routing.predicted[row, i].double()).item()
                total -= math.log(p if i in best else 1 - p)
        assert routing.separate.item() == pytest.approx(total / (3 * 48), rel=1e-4)


def test_predictor_decides_where_decisions_are_causal() -> None:
    model, ids = lively(MoDConfig(**SHAPE)), tokens()
    before = model(ids, causal=True)
    with torch.no_grad():
        model.blocks[1].predictor.out.bias.fill_(100.0)
    after = model(ids, causal=True)
    assert after.routings[0].taken.all()
    assert not before.routings[0].taken.all()


@pytest.mark.parametrize("T", [1, 5, 47, 256])
def test_slots_of_an_evaluation_hold_the_fullest_row_in_few_sizes(T: int) -> None:
    sizes = set()
    for count in range(T + 1):
        taken = torch.zeros(2, T, dtype=torch.bool)
        taken[1, :count] = True
        k = most(taken)
        assert max(1, count) <= k <= T
        sizes.add(k)
    assert len(sizes) <= SIZES
