"""Ways to count: each against its source's formula, written out here from shapes alone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modexp.config.data import DataConfig
from modexp.config.model import BaselineConfig
from modexp.config.root import Config
from modexp.config.routing import MoDConfig
from modexp.config.study import BudgetConfig
from modexp.errors import UserError
from modexp.flops.ledger import CONVENTIONS, Ledger
from modexp.flops.transformer import baseline_ledger
from modexp.kinds import KINDS, ledger, realised_forward
from modexp.plan.run import plan_run, resolve_shape

FORMULAS = ("chinchilla", "palm", "kaplan", "6n")  # backward is twice forward, whatever the block
SHAPE = {"n_layers": 4, "d_model": 32, "n_heads": 2}
DATA = DataConfig(sequence_length=64)
ALL_KINDS = [kind.config(**SHAPE) for kind in KINDS.values()]

shapes = st.fixed_dictionaries(
    {
        "layers": st.integers(1, 40),
        "heads": st.integers(1, 32),
        "key": st.integers(1, 64).map(lambda half: 2 * half),
        "ratio": st.sampled_from([1, 2, 4]),
        "s": st.integers(2, 4096),
        "V": st.integers(2, 100_000),
        "tied": st.booleans(),
    }
)


def dense(layers: int, heads: int, key: int, ratio: int, s: int, V: int, tied: bool) -> tuple[Ledger, int, int]:
    """The ledger of a dense model, its width, and the hidden width of its MLP."""
    d = heads * key
    model = BaselineConfig(n_layers=layers, d_model=d, n_heads=heads, mlp_ratio=float(ratio), tie_embeddings=tied)
    return baseline_ledger(model, V, s), d, model.mlp_hidden


@settings(max_examples=200, deadline=None, derandomize=True)
@given(shapes)
def test_chinchilla_is_appendix_f(shape: dict[str, int]) -> None:
    books, d, ff = dense(**shape)  # type: ignore[arg-type]
    s, V, key, heads = shape["s"], shape["V"], shape["key"], shape["heads"]
    attention = (
        2 * 3 * s * d * (key * heads)  # key, query and value projections
        + 2 * s * s * (key * heads)  # key @ query
        + 3 * heads * s * s  # softmax
        + 2 * s * s * (key * heads)  # softmax @ value reductions
        + 2 * s * (key * heads) * d  # final linear
    )
    dense_block = 2 * s * (d * ff + d * ff)
    forward = 2 * s * V * d + shape["layers"] * (attention + dense_block) + 2 * s * d * V
    assert books.forward("chinchilla") == forward
    assert books.backward("chinchilla") == 2 * forward


@settings(max_examples=200, deadline=None, derandomize=True)
@given(shapes)
def test_formulas_in_n_of_dense_models(shape: dict[str, int]) -> None:
    books, d, ff = dense(**shape)  # type: ignore[arg-type]
    L, s, V = shape["layers"], shape["s"], shape["V"]
    weights = L * (4 * d * d + 2 * d * ff)
    norms = L * 2 * d + d
    tables = V * d if shape["tied"] else 2 * V * d
    assert books.training("palm") == s * (6 * (weights + d * V) + 12 * L * d * s)
    assert books.training("kaplan") == s * 6 * (weights + norms)
    assert books.training("6n") == s * 6 * (weights + norms + tables)


def test_palm_and_matmul_agree_on_dense_models() -> None:
    books = ledger(BaselineConfig(**SHAPE), DATA)
    assert books.training("palm") == books.training("matmul")


def test_formulas_of_a_routed_model() -> None:
    """Two dense blocks and two that take k = 16 of T = 64 tokens; a router each, and a predictor with biases."""
    T, k, d, V = 64, 16, 32, 256
    books = ledger(MoDConfig(**SHAPE, capacity=0.25), DATA)
    block, predictor = 12 * d * d, 32 * d + 32
    every_token = 2 * block + 2 * (d + predictor)
    assert books.training("palm") == (
        6 * (T * (every_token + d * V) + k * 2 * block)  # 6 N, N active
        + 12 * 2 * d * T * T  # 12 L d T on each of T tokens
        + 12 * 2 * d * k * k  # and 12 L d k on each of k tokens
    )
    biases = 2 * (32 + 1)
    norms = T * (2 * 2 * d + d) + k * 2 * 2 * d
    assert books.training("kaplan") == 6 * (T * (every_token + biases) + k * 2 * block + norms)
    total = 4 * block + 2 * (d + predictor) + biases + 4 * 2 * d + d + 2 * V * d
    assert books.training("6n") == 6 * total * T == 6 * books.params_total * T


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_what_is_not_computed_counts_only_under_6n(convention: str) -> None:
    full, eighth = (ledger(MoDConfig(**SHAPE, capacity=c), DATA).training(convention) for c in (1.0, 0.125))
    assert (full == eighth) if convention == "6n" else (0.3 * full < eighth < 0.9 * full)


@pytest.mark.parametrize(
    ("layers", "width", "heads", "sixn", "kaplan"), [(4, 256, 8, 1.69, 0.18), (12, 768, 12, 1.22, 0.64)]
)
def test_conventions_move_the_count_as_far_as_is_said(
    layers: int, width: int, heads: int, sixn: float, kaplan: float
) -> None:
    """Training FLOPs over the causal count at V = 50257, untied, T = 1024."""
    books, _, _ = dense(layers, heads, width // heads, 4, 1024, 50257, tied=False)
    causal = books.training("causal")
    assert round(books.training("6n") / causal, 2) == sixn
    assert round(books.training("kaplan") / causal, 2) == kaplan


@pytest.mark.parametrize("model", ALL_KINDS, ids=KINDS)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_kind_has_a_whole_count_under_every_convention(convention: str, model: BaselineConfig) -> None:
    books = ledger(model, DATA)
    forward, backward = books.forward(convention), books.backward(convention)
    assert isinstance(forward, int)
    assert isinstance(backward, int)
    assert forward > 0
    assert books.training(convention) == forward + backward
    assert backward == 2 * forward if convention in FORMULAS else forward < backward <= 2 * forward
    by_term = {term.name for term in books.terms}
    assert sum(books.training(convention, name) for name in top_level(by_term)) == books.training(convention)


def top_level(names: set[str]) -> set[str]:
    """Prefixes that no other name of the set shares."""
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_budgets_are_planned_under_every_convention(convention: str) -> None:
    config = Config(model=MoDConfig(), budget=BudgetConfig(1e13, convention))
    config = resolve_shape(replace(config, size="100k"))
    plan = plan_run(config)
    assert plan.steps > 1000
    assert abs(plan.achieved - 1) <= 1e-3
    assert plan.convention == convention
    assert plan.flops == plan.sequences * ledger(config.model, config.data).training(convention)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_realised_capacities_are_counted_under_every_convention(convention: str) -> None:
    model = MoDConfig(**SHAPE, capacity=0.25)
    planned = ledger(model, DATA).forward(convention) / 64
    assert realised_forward(model, DATA, [0.25, 0.25], convention) == planned
    assert (realised_forward(model, DATA, [0.5, 0.5], convention) > planned) == (convention != "6n")


@pytest.mark.parametrize("model", ALL_KINDS, ids=KINDS)
def test_a_stored_ledger_is_the_ledger(model: BaselineConfig) -> None:
    books = ledger(model, DATA)
    stored = json.loads(json.dumps(books.to_json()))
    assert Ledger.from_json(stored, 64) == books


def test_ledgers_of_older_runs_load() -> None:
    """A term as the first runs stored it: those without weights had no share of their own."""
    stored = {
        "name": "attention.scores", "block": "routed", "count": 2, "forward": 2 * 16 * 16 * 32, "backward": 2,
        "params": 0, "share": 1.0, "is_matmul": True, "causal_forward": 16 * 17 * 32,
    }  # fmt: skip
    books = Ledger.from_json([stored], 64)
    new = ledger(MoDConfig(**SHAPE, capacity=0.25), DATA)
    routed = Ledger(tuple(t for t in new.terms if (t.name, t.block) == ("attention.scores", "routed")), 64)
    for convention in CONVENTIONS:
        assert books.training(convention) == routed.training(convention)


@pytest.mark.parametrize("terms", [[{"name": "head"}], [{"name": "x", "block": "y", "count": 1, "forward": 1, "z": 2}]])
def test_ledgers_of_another_make_are_refused(terms: list[dict[str, object]]) -> None:
    with pytest.raises(UserError, match="stored ledger cannot be read"):
        Ledger.from_json(terms, 64)
