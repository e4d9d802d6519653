"""The least time of a decoding step, against sums by hand."""

from __future__ import annotations

import pytest

from modexp.config.data import DataConfig
from modexp.config.experts import MoEConfig
from modexp.config.model import BaselineConfig
from modexp.config.routing import MoDConfig
from modexp.sampling.roofline import Machine, rows, step_seconds

D, L, V, T = 64, 4, 256, 96
DATA = DataConfig(vocab_size=V, sequence_length=T)
SHAPE = {"n_layers": L, "d_model": D, "n_heads": 4, "mlp": "gelu"}
BLOCK = 12 * D * D  # weights
NEVER = 1e30


@pytest.mark.parametrize(("item", "batch"), [(4, 1), (4, 16), (2, 16)])
def test_where_reading_is_slow_a_dense_step_is_its_weights_and_its_cache(item: int, batch: int) -> None:
    machine = Machine(NEVER, 1e9, item)
    expected = item * (L * BLOCK + V * D + batch * L * 2 * 40 * D) / 1e9
    assert step_seconds(BaselineConfig(**SHAPE), DATA, batch, 40, machine) == pytest.approx(expected)


def test_a_tied_head_reads_the_embedding() -> None:
    machine = Machine(NEVER, 1e9, 4)
    own, tied = (BaselineConfig(**SHAPE, tie_embeddings=tied) for tied in (False, True))
    assert step_seconds(tied, DATA, 4, 40, machine) == pytest.approx(step_seconds(own, DATA, 4, 40, machine))


@pytest.mark.parametrize("share", [0.125, 0.5, 1.0])
@pytest.mark.parametrize("batch", [1, 16, 5000])
def test_rows_that_take_part_are_as_many_as_their_share(batch: int, share: float) -> None:
    found = rows(batch, share)
    assert sum(chance for _, chance in found) == pytest.approx(1)
    assert sum(n * chance for n, chance in found) == pytest.approx(share * batch)


def test_where_computing_is_slow_it_is_the_flops() -> None:
    machine = Machine(1e9, NEVER, 4)
    expected = 16 * 2 * (L * BLOCK + V * D + L * 2 * 40 * D) / 1e9
    assert step_seconds(BaselineConfig(**SHAPE), DATA, 16, 40, machine) == pytest.approx(expected)


@pytest.mark.parametrize("batch", [1, 16])
def test_a_routed_block_is_read_if_any_row_goes_through(batch: int) -> None:
    machine = Machine(NEVER, 1e9, 4)
    model = MoDConfig(**SHAPE, capacity=0.125, every=2, causal="auxiliary")
    slots = model.slots(0.125, T)
    any_row = 1 - (1 - slots / T) ** batch
    read = L / 2 * BLOCK * (1 + any_row) + L / 2 * D + V * D  # a router of D weights beside each routed block
    cached = batch * L / 2 * (2 * 40 * D + slots / T * 2 * 40 * slots / T * D)
    assert step_seconds(model, DATA, batch, 40, machine) == pytest.approx(4 * (read + cached) / 1e9)


def test_each_expert_is_read_if_a_row_meets_it() -> None:
    machine = Machine(NEVER, 1e9, 4)
    model = MoEConfig(**SHAPE, experts=8, expert_routing="token_choice", every=2)
    dense = step_seconds(BaselineConfig(**SHAPE), DATA, 4, 40, machine)
    some = 1 - (1 - 1 / 8) ** 4
    more = L / 2 * (8 * some * 8 * D * D + 8 * D - 8 * D * D)  # experts and a router in place of an MLP
    assert step_seconds(model, DATA, 4, 40, machine) == pytest.approx(dense + 4 * more / 1e9)
