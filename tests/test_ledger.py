"""The ledger against PyTorch's counter, to the last FLOP, and against the parameters of the model."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from modexp.config.data import DataConfig
from modexp.config.experts import EXPERT_ROUTINGS, StagedConfig
from modexp.config.model import BaselineConfig, ModelConfig
from modexp.config.routing import CAUSAL_RULES, GATES, MoDConfig
from modexp.flops.transformer import dense_twin
from modexp.kinds import KINDS, ledger, realised_forward
from modexp.models.build import build
from modexp.models.count import counted
from modexp.models.loss import training_loss


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, object]:
    heads = draw(st.integers(1, 4))
    return {
        "n_layers": draw(st.integers(1, 5)),
        "n_heads": heads,
        "d_model": 2 * heads * draw(st.integers(1, 12)),
        "mlp": draw(st.sampled_from(["gelu", "swiglu"])),
        "mlp_ratio": draw(st.sampled_from([8 / 3, 4.0])),
        "tie_embeddings": draw(st.booleans()),
    }


@st.composite
def models(draw: st.DrawFn, kinds: tuple[str, ...] = tuple(KINDS)) -> ModelConfig:
    """Models of these kinds, with whatever they can be given."""
    shape: dict[str, object] = draw(shapes())
    name = draw(st.sampled_from(kinds))
    config = KINDS[name].config
    fields = {f.name for f in dataclasses.fields(config)}
    capacities = st.sampled_from([0.01, 0.125, 0.5, 0.95, 1.0])
    choices = {
        "every": st.integers(1, shape["n_layers"]),  # type: ignore[arg-type]
        "capacity": capacities,
        "gate": st.sampled_from(["raw", "none"] if name == "mod_token_choice" else GATES),
        "causal": st.sampled_from(CAUSAL_RULES),
        "predictor_hidden": st.integers(1, 40),
        "headroom": st.sampled_from([1.0, 1.25, 3.0]),
        "experts": st.integers(1, 5),
        "noop_experts": st.integers(0, 3),
        "expert_routing": st.sampled_from(EXPERT_ROUTINGS),
        "expert_capacity": st.sampled_from([0.1, 0.5, 1.0, 1.25]),
    }
    values = {key: draw(choice) for key, choice in choices.items() if key in fields}
    if values.get("causal") != "predictor" and values.get("expert_routing") != "expert_choice":
        values.pop("predictor_hidden", None)  # nothing would read it
    model = config(**shape, **values)  # type: ignore[arg-type]
    if "capacity" in values and draw(st.booleans()):
        each = [draw(capacities) for _ in model.routed_layers()]
        model = dataclasses.replace(model, capacity=each)  # type: ignore[call-arg]
    return model


def check(model: ModelConfig, T: int, vocab: int, batch: int) -> None:
    data = DataConfig(tokenizer="other", vocab_size=vocab, sequence_length=T)
    books = ledger(model, data)
    forward, backward, parameters = counted(model, data, batch)
    assert batch * books.forward() == forward
    assert batch * books.backward() == backward
    assert batch * books.training() == forward + backward
    assert books.params_total == parameters


RANDOM = {"T": st.integers(2, 70), "vocab": st.integers(2, 300), "batch": st.integers(1, 3)}
PROPERTY = {"deadline": None, "derandomize": True, "suppress_health_check": [HealthCheck.too_slow]}


@settings(max_examples=200, **PROPERTY)
@given(model=models(("baseline", "mod")), **RANDOM)
def test_ledger_of_both_main_arms_is_what_pytorch_counts(model: ModelConfig, T: int, vocab: int, batch: int) -> None:
    check(model, T, vocab, batch)


@settings(max_examples=300, **PROPERTY)
@given(model=models(), **RANDOM)
def test_ledger_of_every_kind_is_what_pytorch_counts(model: ModelConfig, T: int, vocab: int, batch: int) -> None:
    check(model, T, vocab, batch)


def test_ledger_on_cpu_with_the_math_attention() -> None:
    """The same numbers where tensors are real, so that meta kernels hide nothing."""
    model = MoDConfig(n_layers=4, d_model=32, n_heads=2)
    data = DataConfig(sequence_length=64)
    network = build(model, data, seed=0)
    tokens = torch.randint(256, (2, 64))
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        training_loss(network(tokens, tokens))[0].backward()
    assert counter.get_total_flops() == 2 * ledger(model, data).training()


def test_routed_blocks_cost_what_the_paper_says() -> None:
    """Sec. 3.2: at half capacity the attention square costs a quarter, at an eighth one sixty-fourth."""
    data = DataConfig(sequence_length=256)
    shape = {"n_layers": 1, "d_model": 64, "n_heads": 2}
    dense = ledger(BaselineConfig(**shape), data).forward(term="attention.scores")
    for capacity, share in ((0.5, 4), (0.125, 64)):
        routed = ledger(MoDConfig(**shape, every=1, capacity=capacity), data)
        assert routed.forward(term="attention.scores") * share == dense


def test_causal_convention_halves_the_square_and_nothing_else() -> None:
    data = DataConfig(sequence_length=100)
    books = ledger(BaselineConfig(n_layers=3, d_model=32, n_heads=2), data)
    for name in ("scores", "values"):
        full = books.forward("matmul", f"attention.{name}")
        assert books.forward("causal", f"attention.{name}") * 200 == full * 101
    assert books.forward("causal", "mlp") == books.forward("matmul", "mlp")


def test_terms_left_out_of_the_sum_are_kept() -> None:
    books = ledger(BaselineConfig(n_layers=2, d_model=32, n_heads=2), DataConfig())
    kept = {term.name for term in books.terms if not term.is_matmul}
    assert kept == {"attention.softmax", "elementwise", "embedding.lookup"}
    assert books.forward(term="embedding") == 0


def test_parameters_four_ways() -> None:
    model = MoDConfig(n_layers=4, d_model=32, n_heads=2, capacity=0.25)
    data = DataConfig(sequence_length=64)
    books, twin = ledger(model, data), ledger(dense_twin(model), data)
    embedding_and_head = 2 * 256 * 32
    assert books.params_total - books.params_non_embedding == embedding_and_head
    block = 12 * 32 * 32 + 2 * 32
    routing = books.params_total - twin.params_total
    assert books.params_active == twin.params_total + routing - 2 * block * 3 // 4


def test_realised_experts_work_as_much_as_the_tokens_that_reach_them() -> None:
    """Experts of a block that most tokens bypass weigh little, however many of the rest they take."""
    shape = {"n_layers": 4, "d_model": 32, "n_heads": 2, "mlp": "gelu", "mlp_ratio": 4.0, "experts": 2, "every": 2}
    model, T = StagedConfig(**shape, capacity=0.5), 1000
    for depth, shares in (([0.9, 0.1], [0.1, 0.9]), ([0.9, 0.1], [0.9, 0.1]), ([0.5, 0.0], [0.5, 0.0])):
        capacities = [value for pair in zip(depth, shares, strict=True) for value in pair]
        terms = ledger(model.realised(capacities), DataConfig(sequence_length=T)).terms
        found = sum(term.count * term.forward for term in terms if term.name in ("experts.in", "experts.out"))
        through = sum(2 * d * T * share for d, share in zip(depth, shares, strict=True))  # of two experts each
        assert found == pytest.approx(through * 2 * (2 * 32 * 128), rel=0.02)


def test_realised_forward_meets_the_plan_at_the_planned_capacity() -> None:
    model = MoDConfig(n_layers=4, d_model=32, n_heads=2, capacity=0.25)
    data = DataConfig(sequence_length=64)
    planned = ledger(model, data).forward() / 64
    assert realised_forward(model, data, [0.25, 0.25], "matmul") == planned
    assert realised_forward(model, data, [0.5, 0.25], "matmul") > planned


@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
def test_dense_twin_has_the_same_shape(mlp: str) -> None:
    model = MoDConfig(n_layers=4, d_model=32, n_heads=2, mlp=mlp, tie_embeddings=True)
    twin = dense_twin(model)
    assert twin.kind == "baseline"
    assert (twin.shape, twin.mlp, twin.tie_embeddings) == (model.shape, mlp, True)
