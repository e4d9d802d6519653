"""Decoding steps in static shapes, as a GPU records them; here their stages are computed. test_sampling.py holds them
against the whole forward pass, test_gpu.py records them."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modexp.config.data import DataConfig
from modexp.config.routing import MoDConfig, ThresholdConfig, TokenChoiceConfig
from modexp.kinds import KINDS
from modexp.models.build import assemble
from modexp.models.routed import RoutedBlock
from modexp.sampling.decode import Decoder
from modexp.sampling.steps import Steps, can_be_static
from tests.test_kinds import lively
from tests.test_sampling import LENGTHS, SHAPE, VARIANTS, T, any_model, decoded, ids, noise_of_the_token  # noqa: F401


def steps_of(decoder: Decoder) -> Steps:
    assert decoder.steps is not None
    return decoder.steps


def all_or_none(block: RoutedBlock, through: bool) -> None:
    """Every token wants to go through, or none does."""
    judge = type(block).choose
    block.choose = lambda x: judge(block, x)._replace(wanted=torch.full(x.shape[:2], through))  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_step_of_many_rows_is_one_stage_in_which_nothing_is_waited_for(kind: str) -> None:
    """Where there are no values, what has to look at one raises."""
    name, values = VARIANTS[kind]
    with torch.device("meta"):
        model = assemble(KINDS[name].config(kind=name, **SHAPE, **values), DataConfig(sequence_length=T)).eval()
    steps = steps_of(Decoder(model, 64, T, static=True))
    (stage,) = steps.plan()
    with torch.inference_mode():
        stage.run(steps)
    assert steps.found.shape == (64, 256)


def test_of_few_rows_the_host_asks_for_each_routed_block_whether_to_run_it() -> None:
    model, tokens = any_model("mod"), ids(1)
    routed = [block for block in model.blocks if isinstance(block, RoutedBlock)]
    router, predictor = 2 * 32, 2 * 32 * 32 + 2 * 32
    block_flops = 2 * (4 * 32 * 32 + 2 * 32 * 128)  # qkv, out, MLP of one token; the fused attention counts as 0
    decoder = Decoder(model, 1, T, static=True)
    decoder.logits(tokens[:, :8])
    for through in (False, True):
        for block in routed:
            all_or_none(block, through)
        with FlopCounterMode(display=False) as counter:
            decoder.logits(tokens[:, 8:9])
        head = 2 * 32 * 256
        assert counter.get_total_flops() == (2 + 2 * through) * block_flops + 2 * (router + predictor) + head
    conditions = [stage.condition is not None for stage in steps_of(decoder).stages]
    assert conditions == [False, True, False, True, False]


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("bias", [-50.0, 50.0])
def test_caches_grow_before_a_step_could_overflow_them(batch: int, bias: float) -> None:
    model, tokens = lively(MoDConfig(**SHAPE, capacity=0.1)).eval(), ids(batch)
    with torch.no_grad():
        model.blocks[1].predictor.out.bias.fill_(bias)
        whole = model(tokens, causal=True).logits
    decoder = Decoder(model, batch, T, static=True)
    foreseen = decoder.states[1].cache.room
    assert foreseen < T // 2
    logits, _ = decoded(model, tokens, [3] * batch, decoder=decoder)
    torch.testing.assert_close(logits, whole, atol=1e-5, rtol=0)
    cache = decoder.states[1].cache
    assert cache.used.tolist() == [0 if bias < 0 else T] * batch
    assert cache.room == (foreseen if bias < 0 else T + 1), "the last place is for what is not kept"


@pytest.mark.parametrize("config", [TokenChoiceConfig(**SHAPE), ThresholdConfig(**SHAPE)])
def test_capacity_holds_and_full_caches_stay_as_they_are(config: Any) -> None:
    model, tokens = lively(config).eval(), ids(3)
    routed = model.blocks[1]
    all_or_none(routed, True)
    limit = routed.limit
    assert 3 < limit < T - 3
    decoder = Decoder(model, 3, T, static=True)
    room = decoder.states[1].cache.room
    logits, _ = decoded(model, tokens, [limit + 3, 2, limit - 1], decoder=decoder)
    assert decoder.states[1].cache.used.tolist() == [limit] * 3
    assert decoder.states[1].cache.room == room
    with torch.no_grad():
        torch.testing.assert_close(logits, model(tokens, causal=True).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_that_begins_anew_decodes_alike(kind: str) -> None:
    model, tokens = any_model(kind), ids(5)
    decoder = Decoder(model, 5, T, static=True)
    first, _ = decoded(model, tokens, LENGTHS, decoder=decoder)
    stages = steps_of(decoder).stages
    decoder.clear()
    again, _ = decoded(model, tokens, LENGTHS, decoder=decoder)
    torch.testing.assert_close(again, first, atol=1e-5, rtol=0)  # more places may be looked at than the first time
    assert steps_of(decoder).stages is stages, "what is recorded stays"


def test_a_block_that_is_decoded_otherwise_is_not_recorded() -> None:
    class Other(RoutedBlock):
        def extend(self, *args: Any) -> Any:
            return super().extend(*args)

    model = any_model("mod")
    blocks = list(model.blocks)
    assert can_be_static(blocks)
    blocks[1].__class__ = type("Other", (Other, type(blocks[1])), {})
    assert not can_be_static(blocks)
    with pytest.raises(AssertionError):
        Decoder(model, 1, T, static=True)
    assert Decoder(model, 1, T).steps is None


def test_what_is_recorded_goes_with_its_decoder() -> None:
    """Not when garbage happens to be collected, which may be in the middle of another recording."""
    decoder = Decoder(any_model("mod"), 1, T, static=True)
    decoder.logits(ids(1)[:, :1])
    stage = weakref.ref(steps_of(decoder).stages[0])
    gc.disable()
    try:
        del decoder
        assert stage() is None
    finally:
        gc.enable()


def test_more_tokens_than_a_decoder_was_made_for_are_refused() -> None:
    tokens = ids(1)
    decoder = Decoder(any_model("baseline"), 1, 8, static=True)
    decoder.logits(tokens[:, :8])
    decoder.logits(tokens[:, 8:9], torch.zeros(1, 1, dtype=torch.bool))  # padding may hang over
    decoder.logits(tokens[:, 8:9])
    with pytest.raises(AssertionError, match="more tokens"):
        decoder.logits(tokens[:, 9:10])


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_step_in_which_no_row_takes_part_counts_for_nothing(kind: str) -> None:
    """As recording needs it: what it takes as its example must not be decoded."""
    model, tokens = any_model(kind), ids(5)
    expected, _ = decoded(model, tokens, LENGTHS, static=True)
    decoder = Decoder(model, 5, T, static=True)
    steps = steps_of(decoder)
    step = steps.logits

    def twice(token: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        step(torch.zeros_like(token), torch.zeros_like(token, dtype=torch.bool))
        return step(token, valid)

    steps.logits = twice  # type: ignore[method-assign]
    found, _ = decoded(model, tokens, LENGTHS, decoder=decoder)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
