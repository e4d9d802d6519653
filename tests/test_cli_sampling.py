"""modexp eval, modexp generate, modexp bench decode."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modexp.sampling.forced import force_decisions
from modexp.train.loop import train
from tests.test_sampling import T, any_model
from tests.test_train import planned

Cli = Callable[..., int]
Captured = pytest.CaptureFixture[str]


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


def test_what_nothing_predicts_has_no_precision(
    modexp_cli: Cli, capsys: Captured, tmp_path: Path, tiny: list[str]
) -> None:
    """Staged MoDE whose experts are chosen by tokens: the predictor foresees the first of two decisions alone."""
    words = ["model=mode_staged", "model.expert_routing=token_choice", "model.n_layers=2", "model.d_model=16"]
    run = planned(tmp_path / "r", [*tiny, *words, "model.n_heads=2", "budget=2e8"])
    measured = train(run.path)["validation"]
    assert modexp_cli("eval", str(run.path), "--json") == 0
    depth, experts = json.loads(capsys.readouterr().out)["layers"]
    assert (depth["layer"], experts["layer"]) == ("1", "1.experts")
    assert "precision" not in experts
    found = depth["precision"], depth["recall"]
    assert found == pytest.approx((measured["predictor_precision"], measured["predictor_recall"]))
    assert modexp_cli("eval", str(run.path)) == 0
    (line,) = [line.split() for line in capsys.readouterr().out.splitlines() if "1.experts" in line]
    assert line[2:] == ["-", "-"]


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
    assert modexp_cli("generate", str(run), "--temperature", "0", "--precision", "bf16", "--json") == 0
    capsys.readouterr()
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


# ---- the benchmark --------------------------------------------------------------------------------------------------


def test_forced_decisions_meet_the_capacity_and_follow_the_seed() -> None:
    model = any_model("mod")
    all_draws, counts = force_decisions(model), []
    assert len(all_draws) == 2
    for seed in (0, 0, 1):
        for draws in all_draws:
            draws.begin(seed)
        choice = model.blocks[1].choose(torch.randn(40, T, 32))
        assert choice.wanted.float().mean().item() == pytest.approx(0.125, abs=0.03)
        counts.append(choice.wanted)
    assert torch.equal(counts[0], counts[1])
    assert not torch.equal(counts[0], counts[2])


def test_experts_are_forced_too() -> None:
    model, x = any_model("mode_staged"), torch.randn(40, T, 32)
    experts = model.blocks[1].mlp
    all_draws, counts = force_decisions(model), []
    assert len(all_draws) == 4
    for seed in (0, 0, 1):
        for draws in all_draws:
            draws.begin(seed)
        real = torch.rand(40, T) < 0.5
        taken, _ = experts.choose(x, experts.router(x), real, 0)
        assert not taken[~real].any()
        assert taken[real].float().mean().item() == pytest.approx(1 / 8, abs=0.01)  # expert_capacity=1 of 8 experts
        counts.append(experts.choose(x, experts.router(x), None, 0)[0])
    assert torch.equal(counts[0], counts[1])
    assert not torch.equal(counts[0], counts[2])


def test_bench_decode_reports_speed_beside_flops(modexp_cli: Cli, capsys: Captured, tmp_path: Path) -> None:
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
    exact = found["batches"][0]["dense"]["cache_bytes_held"]
    assert modexp_cli("bench", "decode", *words, "--batch", "1", "--repeats", "1", "--precision", "bf16", "--json",
                      "--profile", str(tmp_path / "trace.json")) == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    names = {event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert {"dense twin, batch 1, prompt", "mod, batch 1, step 6", "aten::mm"} <= names
    assert found["precision"] == "bf16"
    assert found["batches"][0]["dense"]["cache_bytes_held"] == exact / 2
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
