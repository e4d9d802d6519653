"""Decoding with caches against the whole sequence at once, and what is generated so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from modexp.config.routing import MoDConfig, ThresholdConfig, TokenChoiceConfig
from modexp.kinds import KINDS
from modexp.models import stochastic
from modexp.models.cache import KVCache, one_each, packed
from modexp.models.routed import RoutedBlock
from modexp.models.transformer import Fresh, Rope, Transformer
from modexp.sampling import forced
from modexp.sampling.decode import Decoder, in_bf16, padded
from modexp.sampling.filters import Sampling
from modexp.sampling.generate import generate
from tests.test_kinds import lively

T = 48
SHAPE = {"n_layers": 4, "d_model": 32, "n_heads": 4}
LENGTHS = [17, 1, 24, 9, 23]  # of the prompts, mixed
Cli = Callable[..., int]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def noise_of_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where decisions are drawn, the draw is a function of the token, so that two ways to compute can be compared."""
    monkeypatch.setattr(
        stochastic, "noise", lambda x: 20 * (x * torch.linspace(-1, 1, x.shape[-1], device=x.device)).mean(-1)
    )


def ids(batch: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (batch, T), generator=torch.Generator().manual_seed(seed))


TOKEN_CHOICE = {"expert_routing": "token_choice", "experts": 4, "expert_capacity": 0.75}
VARIANTS = {
    **{kind: (kind, {}) for kind in KINDS},
    **{f"{kind}, token choice": (kind, TOKEN_CHOICE) for kind in ("moe", "mode_integrated", "mode_staged")},
    "mod, auxiliary": ("mod", {"causal": "auxiliary"}),
    "mod, swiglu": ("mod", {"mlp": "swiglu", "every": 1, "capacity": 0.5}),
}


def any_model(variant: str) -> Transformer:
    kind, values = VARIANTS[variant]
    return lively(KINDS[kind].config(kind=kind, **SHAPE, **values)).eval()


def decoded(
    model: Transformer, tokens: Tensor, lengths: list[int], static: bool = False, decoder: Decoder | None = None
) -> tuple[Tensor, Decoder]:
    """Logits (B, T, V) of ``tokens`` (B, T): prompts of those lengths at once, what follows one by one. Rows whose
    end is reached go on as padding."""
    B = len(tokens)
    decoder = decoder or Decoder(model, B, T, static)
    logits = torch.zeros(B, T, 256)
    prompts, valid = padded([row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)])
    with torch.inference_mode():
        first = model.head(decoder.extend(prompts, valid)).float()
    logits[:, : valid.shape[1]][valid] = first[valid]
    at = torch.tensor(lengths)
    while (at < T).any():
        rows = torch.arange(B)
        step = decoder.logits(tokens[rows, at.clamp(max=T - 1)][:, None], (at < T)[:, None])
        logits[rows[at < T], at[at < T]] = step[at < T]
        at = at + 1
    return logits, decoder


# ---- cached = uncached -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("kind", VARIANTS)
def test_cached_decode_is_the_whole_forward_token_for_token(
    kind: str, batch: int, static: bool, record_property: Callable[[str, Any], None]
) -> None:
    model, tokens = any_model(kind), ids(batch)
    with torch.no_grad():
        whole = model(tokens, causal=True)
    logits, decoder = decoded(model, tokens, LENGTHS[:batch], static)
    difference = (logits - whole.logits).abs().max().item()
    record_property("max_difference", difference)
    print(f"{kind:<30} batch {batch}: {difference:.1e} of {whole.logits.abs().max():.1f}")
    assert difference <= 1e-5
    assert decoder.lengths.tolist() == [T] * batch
    for routing in whole.routings:
        assert 0 < routing.taken.float().mean() < 1, "nothing is decided: the test would show nothing"


ROUTED = ("mod", "mod_stochastic", "mod_token_choice", "mod_threshold")


@pytest.mark.parametrize("kind", ROUTED)
def test_routed_caches_hold_the_routed_tokens_and_no_other(kind: str) -> None:
    model, tokens = any_model(kind), ids(5)
    with torch.no_grad():
        whole = model(tokens, causal=True)
    _, decoder = decoded(model, tokens, LENGTHS)
    for layer, (block, state) in enumerate(zip(model.blocks, decoder.states, strict=True)):
        taken = torch.ones(5, T, dtype=torch.bool)
        if isinstance(block, RoutedBlock):
            taken = whole.routings[layer // 2].taken
            assert state.cache.keys.shape[2] <= T
        assert state.cache.used.tolist() == taken.sum(-1).tolist()
        per_token = 2 * 32 * 4  # keys and values, fp32
        assert state.cache.bytes_held == taken.sum() * per_token


def test_routed_keys_are_those_of_the_routed_tokens_at_their_true_positions() -> None:
    """Taken from the whole forward pass, out of the block's own projection."""
    model, tokens = any_model("mod"), ids(2)
    block = model.blocks[1]
    seen: dict[str, Tensor] = {}
    handle = block.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    with torch.no_grad():
        taken = model(tokens, causal=True).routings[0].taken
        handle.remove()
        _, decoder = decoded(model, tokens, [7, 30])
        _, keys, _ = block.attention.project(block.attention_norm(seen["x"]), Rope(model.rope))  # (B, H, T, 2P)
    for row in range(2):
        n = int(taken[row].sum())
        torch.testing.assert_close(
            decoder.states[1].cache.keys[row, :, :n], keys[row][:, taken[row]], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("kind", KINDS)
def test_padding_influences_nothing(kind: str) -> None:
    model, tokens = any_model(kind), ids(5)
    prompts, valid = padded([row[:n].tolist() for row, n in zip(tokens, LENGTHS, strict=True)])
    outcomes = []
    for filling in (0, 201):
        decoder = Decoder(model, 5, T)
        first = decoder.logits(prompts.masked_fill(~valid, filling), valid)
        alive = torch.tensor([True, False, True, False, True])[:, None]
        steps = []
        for step in range(8):  # rows that have ended are padding too
            token = tokens[:, 30 + step, None].masked_fill(~alive, filling)
            steps.append(decoder.logits(token, alive)[alive[:, 0]])
        outcomes.append((first, *steps, *(state.cache.used for state in decoder.states)))
    for one, other in zip(*outcomes, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_influence_each_other(kind: str) -> None:
    model, tokens = any_model(kind), ids(5)
    together, _ = decoded(model, tokens, LENGTHS)
    changed = tokens.clone()
    changed[2] = ids(1, seed=9)[0]
    other, _ = decoded(model, changed, LENGTHS)
    for row in (0, 1, 3, 4):
        torch.testing.assert_close(other[row], together[row], rtol=0, atol=1e-5)
        alone, _ = decoded(model, tokens[row : row + 1], LENGTHS[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)
    assert not torch.allclose(other[2], together[2])


@pytest.mark.parametrize("config", [TokenChoiceConfig(**SHAPE), ThresholdConfig(**SHAPE)])
def test_capacity_is_carried_from_step_to_step(config: Any) -> None:
    model, tokens = lively(config).eval(), ids(3)
    for block in model.blocks:
        if isinstance(block, RoutedBlock):  # every token wants to go through
            block.choose = (
                lambda x, b=block: (
                    type(b)
                    .choose(b, x)
                    ._replace(  # type: ignore[method-assign]
                        wanted=torch.ones(x.shape[:2], dtype=torch.bool)
                    )
                )
            )
    limit = model.blocks[1].limit
    assert 3 < limit < T - 3
    decoder = Decoder(model, 3, T)
    lengths = [limit + 3, 2, limit - 1]
    prompts, valid = padded([row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)])
    decoder.logits(prompts, valid)
    assert decoder.states[1].cache.used.tolist() == [limit, 2, limit - 1]
    for step in range(3):
        decoder.logits(tokens[:, 40 + step, None])
        assert decoder.states[1].cache.used.tolist() == [limit, min(limit, 3 + step), limit]


def test_a_cache_grows_only_beyond_what_was_foreseen() -> None:
    model, tokens = lively(MoDConfig(**SHAPE, capacity=0.1)), ids(1)
    with torch.no_grad():
        for bias in (-50.0, 50.0):  # none, then every token
            model.blocks[1].predictor.out.bias.fill_(bias)
            decoder = Decoder(model, 1, T)
            room = decoder.states[1].cache.keys.shape[2]
            assert room < T // 2
            for n in range(T):
                decoder.logits(tokens[:, n : n + 1])
            cache = decoder.states[1].cache
            assert cache.keys.shape[2] == (room if bias < 0 else T)
            assert cache.used.item() == (0 if bias < 0 else T)
            torch.testing.assert_close(
                decoded(model, tokens, [3])[0], model(tokens, causal=True).logits, atol=1e-5, rtol=0
            )


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kind", VARIANTS)
def test_matrices_in_bf16_decode_alike_from_caches_half_as_large(kind: str, static: bool) -> None:
    model, tokens = any_model(kind), ids(5)
    exact = model(tokens, causal=True).logits.detach()
    _, decoder = decoded(model, tokens, LENGTHS, static)
    allocated = decoder.cache_bytes()[0]
    assert in_bf16(model) is model
    with torch.no_grad():
        whole = model(tokens, causal=True).logits
    logits, decoder = decoded(model, tokens, LENGTHS, static)
    # single logits differ more where rounding moved a token to another expert
    assert 0 < (whole - exact).abs().median() < 0.01
    assert (logits - whole).abs().median() < 0.01
    assert (logits - whole).abs().quantile(0.99) < 0.1
    assert decoder.cache_bytes()[0] == pytest.approx(allocated / 2, rel=0.2)  # more or fewer may have gone through


@pytest.mark.parametrize("tied", [False, True])
def test_what_decides_and_the_embedding_stay_in_fp32(tied: bool) -> None:
    model = in_bf16(lively(KINDS["mode_staged"].config(kind="mode_staged", **SHAPE, tie_embeddings=tied)))
    for name, parameter in model.named_parameters():
        exact = "router" in name or "predictor" in name or "norm" in name or name == "embedding.weight"
        assert parameter.dtype is (torch.float32 if exact else torch.bfloat16), name
    assert model.head.weight.dtype is torch.bfloat16


# ---- what it costs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [[0, 0, 0, 0], [5, 5, 5, 5], [5, 2, 0, 7]])
@pytest.mark.parametrize("rows", [slice(None), torch.tensor([0, 3])])
def test_one_token_each_is_packed_as_by_packed(rows: slice | torch.Tensor, used: list[int]) -> None:
    held = torch.tensor(used)
    fresh = torch.randn(2, len(held[rows]), 3, 1, 8)  # keys and values of a token
    seen = []
    for tokens in (one_each(rows, held), packed(rows, torch.ones(len(held[rows]), 1, dtype=torch.bool), held)):
        cache = KVCache(4, 3, 8, 9, 9, torch.zeros(1))
        cache.keys += torch.arange(9.0)[:, None]
        cache.used += held
        keys, _ = cache.extend(*fresh, tokens)
        attended = F.scaled_dot_product_attention(fresh[0], keys, keys, attn_mask=tokens.visible)
        seen.append((tokens.filled, tokens.held, attended, cache.keys, cache.values, cache.used))
        assert (tokens.longest, tokens.begins) == (max(held[rows]) + 1, not any(held[rows]))
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one, other)


def test_a_bypassing_row_costs_the_decision_alone() -> None:
    model, tokens = any_model("mod"), ids(4)
    decoder = Decoder(model, 4, T)
    decoder.logits(tokens[:, :8])
    block, state = model.blocks[1], decoder.states[1]
    router, predictor = 2 * 32, 2 * 32 * 32 + 2 * 32
    block_flops = 2 * (4 * 32 * 32 + 2 * 32 * 128)  # qkv, out, MLP of one token; the fused attention counts as 0
    choose = block.choose
    for through in (0, 1, 3, 4):
        wanted = (torch.arange(4) < through)[:, None]
        block.choose = lambda x, w=wanted: choose(x)._replace(wanted=w)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            rope = Rope(model.rope).at(decoder.lengths[:, None])
            fresh = Fresh(packed(slice(None), torch.ones(4, 1, dtype=torch.bool), decoder.lengths), rope)
            block.extend(torch.randn(4, 1, 32), fresh, state)
        assert counter.get_total_flops() == 4 * (router + predictor) + through * block_flops


# ---- generating -----------------------------------------------------------------------------------------------------


def test_greedy_generation_repeats_the_argmax_of_the_whole_forward() -> None:
    model = any_model("mod")
    prompts = [ids(1)[0, :n].tolist() for n in (3, 11)]
    columns = list(generate(model, prompts, 10, Sampling(temperature=0)))
    for row, prompt in enumerate(prompts):
        text = list(prompt)
        for column in columns:
            with torch.no_grad():
                text.append(int(model(torch.tensor([text]), causal=True).logits[0, -1].argmax()))
            assert column[row] == text[-1]


def test_a_seed_fixes_a_sample_whatever_stands_beside_it() -> None:
    model, prompt = any_model("mod"), ids(1)[0, :5].tolist()

    def sample(prompts: list[list[int]], seed: int) -> list[list[int | None]]:
        return [list(row) for row in zip(*generate(model, prompts, 12, Sampling(), seed), strict=True)]

    one, two = sample([prompt, prompt], 0)
    assert one != two
    assert sample([prompt], 0) == [one]
    assert sample([prompt, prompt[:2], prompt], 0)[0] == one
    assert sample([prompt], 1) != [one]


def test_a_row_ends_at_the_separator_and_unknown_ids_are_never_drawn() -> None:
    model, prompt = any_model("baseline"), ids(1)[0, :5].tolist()
    free = [column[0] for column in generate(model, [prompt], 20, Sampling(temperature=0))]
    end = free[6]
    assert end not in free[:6]
    stopped = list(generate(model, [prompt, prompt], 20, Sampling(temperature=0), separator=end))
    assert [column[0] for column in stopped] == [*free[:6], None]
    known = list(generate(model, [prompt], 30, Sampling(temperature=5.0), vocabulary=10))
    assert max(column[0] for column in known) < 10


@pytest.mark.parametrize("tied", [False, True])
def test_a_decoder_lays_weights_out_and_leaves_their_values(tied: bool) -> None:
    model = lively(KINDS["mod"].config(kind="mod", **SHAPE, tie_embeddings=tied)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dense, routed = model.blocks[0].mlp.inner.weight, model.blocks[1].mlp.inner.weight
    strides = []
    for batch in (1, 8, 64):  # of 8 rows one is expected in a routed block, of 64 eight
        Decoder(model, batch, T)
        strides.append([weight.stride(0) > 1 for weight in (dense, routed)])
        assert model.embedding.weight.is_contiguous()
        assert model.blocks[0].mlp.out.weight.is_contiguous(), "wider than tall: it lies right"
    assert strides == [[False, False], [True, False], [True, True]]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_decoder_refuses_more_tokens_than_it_was_made_for() -> None:
    decoder = Decoder(any_model("mod"), 2, 8, static=False)
    decoder.extend(ids(2)[:, :8])
    with pytest.raises(AssertionError, match="more tokens than the decoder was made for"):
        decoder.extend(ids(2)[:, :1])


def test_more_decisions_at_once_than_were_drawn_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forced, "DRAWS", 32)
    draws = forced.Draws("block", 0.5, torch.device("cpu"))
    draws.begin(0)
    with torch.inference_mode():
        first = [draws.like(torch.zeros(4, 4)) for _ in range(3)]
        many = draws.like(torch.zeros(5, 16)).flatten()
    assert torch.equal(torch.cat(first[:2]).flatten(), many[:32])
    assert torch.equal(first[2], first[0])
    assert torch.equal(many[32:64], many[:32])
    assert torch.equal(draws.like(torch.zeros(4, 4)), first[1]), "outside of inference too"
