"""Decoding with caches against the whole sequence at once; filters against a slow reference; the commands."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from modexp.config.routing import MoDConfig, ThresholdConfig, TokenChoiceConfig
from modexp.data.tokenizers import ByteTokenizer, HFTokenizer
from modexp.errors import UserError
from modexp.kinds import KINDS
from modexp.models import stochastic
from modexp.models.cache import packed
from modexp.models.routed import RoutedBlock
from modexp.models.transformer import Fresh, Rope, Transformer
from modexp.sampling.bench import force_decisions
from modexp.sampling.decode import Decoder, padded
from modexp.sampling.filters import Sampling, draw, probabilities
from modexp.sampling.generate import generate
from modexp.sampling.text import TextStream
from modexp.train.loop import train
from tests.test_kinds import lively
from tests.test_train import planned

T = 48
SHAPE = {"n_layers": 4, "d_model": 32, "n_heads": 4}
LENGTHS = [17, 1, 24, 9, 23]  # of the prompts, mixed
Cli = Callable[..., int]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def noise_of_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where decisions are drawn, the draw is a function of the token, so that two ways to compute can be compared."""
    monkeypatch.setattr(stochastic, "noise", lambda x: 20 * (x * torch.linspace(-1, 1, x.shape[-1])).mean(-1))


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


def decoded(model: Transformer, tokens: Tensor, lengths: list[int]) -> tuple[Tensor, Decoder]:
    """Logits (B, T, V) of ``tokens`` (B, T): prompts of those lengths at once, what follows one by one. Rows whose
    end is reached go on as padding."""
    B = len(tokens)
    decoder = Decoder(model, B, T)
    logits = torch.zeros(B, T, 256)
    prompts, valid = padded([row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)])
    with torch.inference_mode():
        first = model.head(decoder.extend(prompts, valid))
    logits[:, : valid.shape[1]][valid] = first[valid]
    at = torch.tensor(lengths)
    while (at < T).any():
        rows = torch.arange(B)
        step = decoder.logits(tokens[rows, at.clamp(max=T - 1)][:, None], (at < T)[:, None])
        logits[rows[at < T], at[at < T]] = step[at < T]
        at = at + 1
    return logits, decoder


# ---- cached = uncached -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("kind", VARIANTS)
def test_cached_decode_is_the_whole_forward_token_for_token(
    kind: str, batch: int, record_property: Callable[[str, Any], None]
) -> None:
    model, tokens = any_model(kind), ids(batch)
    with torch.no_grad():
        whole = model(tokens, causal=True)
    logits, decoder = decoded(model, tokens, LENGTHS[:batch])
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


# ---- what it costs ---------------------------------------------------------------------------------------------


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


# ---- drawing tokens --------------------------------------------------------------------------------------------


def slow(logits: list[float], temperature: float, top_k: int | None, top_p: float | None) -> list[float]:
    weights = {i: math.exp(x / temperature) for i, x in enumerate(logits)}
    ranked = sorted(weights, key=lambda i: -weights[i])[: top_k or len(weights)]
    if top_p is not None:
        total, kept, reached = sum(weights[i] for i in ranked), [], 0.0
        for i in ranked:
            kept.append(i)
            reached += weights[i] / total
            if reached >= top_p:
                break
        ranked = kept
    total = sum(weights[i] for i in ranked)
    return [weights[i] / total if i in ranked else 0.0 for i in range(len(logits))]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 3, 100])
@pytest.mark.parametrize("top_p", [None, 1e-6, 0.3, 0.8, 1.0])
def test_filters_equal_a_slow_reference(temperature: float, top_k: int | None, top_p: float | None) -> None:
    logits = torch.randn(6, 17, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2
    found = probabilities(logits, Sampling(temperature, top_k, top_p))
    wanted = torch.tensor([slow(row.tolist(), temperature, top_k, top_p) for row in logits], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = torch.randn(6, 17, generator=torch.Generator().manual_seed(3))
    p = probabilities(logits, Sampling(temperature=0))
    assert torch.equal(p.argmax(-1), logits.argmax(-1))
    for u in (0.0, 0.5, 1 - 2**-53):
        assert torch.equal(draw(p, torch.full((6,), u, dtype=torch.float64)), logits.argmax(-1))


def test_draws_follow_the_probabilities_and_never_leave_them() -> None:
    p = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    uniform = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    counts = draw(p.expand(400, 6), uniform).bincount(minlength=6).tolist()
    assert counts == [0, 100, 0, 200, 100, 0]
    edges = torch.tensor([0.0, 0.25, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert draw(p.expand(4, 6), edges).tolist() == [1, 3, 4, 4]


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_impossible_filters_are_sentences(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--"):
        Sampling(**wrong)


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


# ---- text ------------------------------------------------------------------------------------------------------


def test_characters_wait_for_their_bytes() -> None:
    stream = TextStream(ByteTokenizer())
    said = [stream.push(byte) for byte in "aß€".encode()]
    assert said == ["a", "", "ß", "", "", "€"]
    assert stream.push("ß".encode()[0]) == ""
    assert stream.rest() == "�"
    assert stream.rest() == ""
    broken = TextStream(ByteTokenizer())
    assert broken.push(0xFF) + broken.push(ord("a")) == "�a"


def test_a_tokenizer_of_the_library_goes_there_and_back(tmp_path: Path) -> None:
    import tokenizers

    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(["the cat sat on the mat " * 20], trainer)
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = HFTokenizer(str(tmp_path / "tokenizer.json"))
    text = "the cat €uro\n  ß"
    tokens = tokenizer.encode([text.encode()])[0].tolist()
    assert tokens[-1] == tokenizer.separator
    assert tokenizer.decode(tokens) == text
    stream = TextStream(tokenizer)
    parts = [stream.push(token) for token in tokens]
    assert "".join(parts) + stream.rest() == text
    assert "" in parts[:-1], "half a character was said"
    assert "�" not in "".join(parts)


# ---- commands --------------------------------------------------------------------------------------------------

MOD = ["model=mod", "model.n_layers=4", "model.d_model=32", "model.n_heads=2", "optim.batch_size=4", "budget=3e9"]


@pytest.fixture(scope="module")
def run(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MoD run trained for a moment."""
    overrides = [
        "data=files", f"data.paths=[{documents}/*.py]", "data.sequence_length=64", "data.validation_share=0.1",
        "tracker=none", "trainer.eval_sequences=16", "trainer.num_evals=1", *MOD,
    ]  # fmt: skip
    trained = planned(tmp_path_factory.mktemp("runs") / "mod", overrides)
    train(trained.path)
    return trained.path


def test_eval_repeats_what_training_measured(run: Path, modexp_cli: Cli, capsys: Captured) -> None:
    assert modexp_cli("eval", str(run), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    result = json.loads((run / "result.json").read_text())
    assert found["loss"] == pytest.approx(result["loss"], abs=1e-6)
    assert found["loss_topk"] == pytest.approx(result["loss_topk"], abs=1e-6)
    assert found["tokens"] == 16 * 64
    assert found["flops_per_token"] == pytest.approx(result["flops_per_token_causal"])
    assert [layer["layer"] for layer in found["layers"]] == ["1", "3"]
    for layer in found["layers"]:
        assert layer["capacity"] == pytest.approx(result["validation"][f"capacity.layer{layer['layer']}"])
        assert 0 <= layer["precision"] <= 1
        assert 0 <= layer["recall"] <= 1
    assert found["flops_per_token"] != found["flops_per_token_topk"]


@pytest.mark.parametrize("kind", ["baseline", "mode_staged", "mode_integrated", "mod_token_choice"])
def test_eval_of_every_sort_of_decision(
    kind: str, modexp_cli: Cli, capsys: Captured, tmp_path: Path, tiny: list[str]
) -> None:
    words = [f"model={kind}", "model.n_layers=2", "model.d_model=16", "model.n_heads=2", "budget=2e8"]
    run = planned(tmp_path / "r", [*tiny, *words])
    result = train(run.path)
    assert modexp_cli("eval", str(run.path), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == pytest.approx(result["loss"], abs=1e-6)
    capacities = {k.removeprefix("capacity.layer"): v for k, v in result["validation"].items() if ".layer" in k}
    assert {layer["layer"]: layer["capacity"] for layer in found["layers"]} == pytest.approx(capacities)


def test_eval_takes_more_tokens_than_the_run_did_and_either_split(run: Path, modexp_cli: Cli, capsys: Captured) -> None:
    assert modexp_cli("eval", str(run), "--tokens", "20000", "--json") == 0
    more = json.loads(capsys.readouterr().out)
    assert more["tokens"] == round(20000 / 64) * 64
    assert modexp_cli("eval", str(run), "--split", "train", "--tokens", "640") == 0
    table = capsys.readouterr().out
    assert "640 tokens of the train split" in table
    assert "top-k" in table
    assert modexp_cli("eval", str(run), "--tokens", "1e9", "--json") == 0
    out, err = capsys.readouterr()
    assert f"holds {json.loads(out)['tokens']:,} tokens; all were used" in err


def test_generate_streams_one_and_lists_several(run: Path, modexp_cli: Cli, capsys: Captured) -> None:
    words = ["generate", str(run), "--prompt", "def ", "--max-tokens", "20", "--seed", "3"]
    assert modexp_cli(*words) == 0
    streamed = capsys.readouterr().out
    assert modexp_cli(*words, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert streamed == f"def {found['text']}\n"
    assert found["tokens"] == 20 or found["end"] == "separator"
    assert modexp_cli(*words, "--prompt", "import os", "--num-samples", "2") == 0
    several = capsys.readouterr().out
    assert several.startswith(f"--- 1 of 4: {found['tokens']} tokens\ndef {found['text']}\n")
    assert several.count("import os") == 2
    assert modexp_cli("generate", str(run), "--temperature", "0", "--json") == 0
    (empty,) = json.loads(capsys.readouterr().out)
    assert empty["end"] == "separator" or empty["tokens"] == 63


SENTENCES = [
    (["--prompt", "x" * 65], "the prompt has 65 tokens"),
    (["--prompt", "x" * 60, "--max-tokens", "5"], "use --max-tokens 4 or fewer"),
    (["--prompt", "a\0b"], "holds a NUL byte"),
    (["--top-p", "2"], "--top-p=2.0"),
    (["--temperature", "-1"], "--temperature=-1.0 is negative"),
    (["--num-samples", "0"], "--num-samples 0"),
    (["--max-tokens", "0"], "--max-tokens 0"),
]


@pytest.mark.parametrize(("words", "text"), SENTENCES, ids=[text for _, text in SENTENCES])
def test_what_cannot_be_generated_is_a_sentence(
    words: list[str], text: str, run: Path, modexp_cli: Cli, capsys: Captured
) -> None:
    assert modexp_cli("generate", str(run), *words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err


def test_no_run_is_a_sentence(modexp_cli: Cli, capsys: Captured, tmp_path: Path) -> None:
    for command in ("generate", "eval"):
        assert modexp_cli(command, "nowhere") == 2
        assert "does not exist" in capsys.readouterr().err


def test_a_run_that_cannot_be_causal_is_not_sampled(
    tiny: list[str], modexp_cli: Cli, capsys: Captured, tmp_path: Path
) -> None:
    made = planned(tmp_path / "none", [*tiny, *MOD, "model.causal=none"])
    assert modexp_cli("generate", str(made.path)) == 2
    assert "model.causal=none" in capsys.readouterr().err
    made = planned(tmp_path / "untrained", [*tiny, *MOD])
    assert modexp_cli("generate", str(made.path)) == 2
    assert "holds no readable checkpoint" in capsys.readouterr().err


# ---- the benchmark ---------------------------------------------------------------------------------------------


def test_forced_decisions_meet_the_capacity_and_follow_the_seed() -> None:
    model = any_model("mod")
    counts = []
    for seed in (0, 0, 1):
        force_decisions(model, seed)
        choice = model.blocks[1].choose(torch.randn(40, T, 32))
        assert choice.wanted.float().mean().item() == pytest.approx(0.125, abs=0.03)
        counts.append(choice.wanted)
    assert torch.equal(counts[0], counts[1])
    assert not torch.equal(counts[0], counts[2])


def test_bench_decode_reports_speed_beside_flops(modexp_cli: Cli, capsys: Captured) -> None:
    words = ["model.n_layers=2", "model.d_model=32", "model.n_heads=2", "--prompt-length", "16", "--new-tokens", "8"]
    threads = torch.get_num_threads()
    assert modexp_cli("bench", "decode", *words, "--batch", "1,3", "--repeats", "1", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    torch.set_num_threads(threads)
    assert [row["batch"] for row in found["batches"]] == [1, 3]
    assert "forced" in found["decisions"]
    for row in found["batches"]:
        assert row["dense"]["cache_bytes_held"] == 2 * 2 * 32 * 4 * 23 * row["batch"], "the last token is not fed back"
        assert row["model"]["cache_bytes_held"] < row["dense"]["cache_bytes_held"]
        assert row["model"]["cache_bytes_allocated"] <= row["dense"]["cache_bytes_allocated"]
        assert 0.5 < row["flops_ratio"] < 1
        assert row["speedup"] > 0
    assert modexp_cli("bench", "decode", *words, "--batch", "2", "--repeats", "1") == 0
    assert "dense twin" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["walk"], "bench walk is not a benchmark"),
        (["decode", "--batch", "none"], "--batch none is not a list"),
        (["decode", "--new-tokens", "1"], "--new-tokens 1 is below 2"),
        (["decode", "model=baseline", "model.n_layers=2", "model.d_model=32", "model.n_heads=2"], "routes nothing"),
        (["decode", "fast"], "fast is not a setting"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(words: list[str], text: str, modexp_cli: Cli, capsys: Captured) -> None:
    assert modexp_cli("bench", *words) == 2
    assert text in capsys.readouterr().err
