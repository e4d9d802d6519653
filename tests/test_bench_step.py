"""The benchmark of a training step: it runs the step that training runs, pairs models, and tells what it saw."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modexp.config.data import PythonData
from modexp.config.model import BaselineConfig, ModelConfig
from modexp.config.root import Config
from modexp.config.routing import MoDConfig
from modexp.flops.transformer import dense_twin
from modexp.kinds import ledger
from modexp.plan.cost import from_measurement
from modexp.train import bench
from modexp.train.bench import Bench, Subject, efficiency, interleaved, line, spread, twin_of, with_twins
from modexp.train.hardware import process_began
from modexp.train.load import Load, load
from modexp.train.loop import Training
from modexp.train.step import Stepper

Cli = Callable[..., int]
Captured = pytest.CaptureFixture[str]

CPU = torch.device("cpu")
SHAPE = {"n_layers": 2, "d_model": 16, "n_heads": 1}


def subject(model: ModelConfig, batch: int = 4, arm: str = "a") -> Subject:
    return Subject(arm, Config(model=model, data=PythonData(sequence_length=32)), batch)


def test_the_benchmark_times_the_step_of_the_loop() -> None:
    """Both call Stepper.step, and neither has another way to train."""
    for user in (Training.fitting_step, Bench.step):
        assert "stepper" in user.__code__.co_names
        assert "backward" not in user.__code__.co_names


def test_micro_batches_take_the_same_step_as_one_batch() -> None:
    config = subject(BaselineConfig(**SHAPE)).config
    tokens = torch.randint(256, (6, 33), generator=torch.Generator().manual_seed(0))
    whole, split = (Stepper(config, CPU, "fp32") for _ in range(2))
    results = [stepper.step(tokens, micro, 1e-2, 0) for stepper, micro in ((whole, 6), (split, 4))]
    torch.testing.assert_close(results[0], results[1])
    moved = [(a - b).abs().max() for a, b in zip(whole.model.parameters(), split.model.parameters(), strict=True)]
    assert max(moved) < 1e-4
    fresh = Stepper(config, CPU, "fp32").model
    assert any((a - b).abs().max() > 5e-3 for a, b in zip(whole.model.parameters(), fresh.parameters(), strict=True))


def test_a_line_gives_overhead_and_seconds_a_sequence() -> None:
    assert line((2, 1.0), (4, 1.4)) == pytest.approx((0.6, 0.2))
    assert line((4, 1.4), (2, 1.0)) == pytest.approx((0.6, 0.2))
    assert line((2, 1.0), (4, 2.2)) == pytest.approx((0.0, 0.6)), "no overhead below zero"
    overhead, slope = line((2, 1.4), (4, 1.4))  # noise: twice the work in the same time
    assert slope > 0
    assert overhead + 4 * slope == pytest.approx(1.4)


def test_models_take_turns() -> None:
    order: list[str] = []
    calls = {(i, "step"): lambda name=name: order.append(name) for i, name in enumerate("ab")}
    found = interleaved(calls, 3, CPU, sample=0.0)  # type: ignore[arg-type]
    assert "".join(order[4:]) == "ababab", "after a warm-up and a first look"
    assert [len(times) for times in found.values()] == [3, 3]


def test_every_routed_model_meets_its_dense_twin_once() -> None:
    mod, half, dense = MoDConfig(**SHAPE), MoDConfig(**SHAPE, capacity=0.5), BaselineConfig(**SHAPE)
    assert [s.arm for s in with_twins([subject(mod, arm="mod"), subject(half, arm="half")])] == [
        "dense twin", "mod", "half",
    ]  # fmt: skip
    assert [s.arm for s in with_twins([subject(mod, arm="mod"), subject(dense, arm="base")])] == ["base", "mod"]
    others = with_twins([subject(mod, 4, "mod"), subject(mod, 8, "mod")])
    assert [(s.arm, s.batch) for s in others] == [("dense twin", 4), ("mod", 4), ("dense twin", 8), ("mod", 8)]
    benches = [Bench(s, CPU, "fp32") for s in others]
    assert [twin_of(benches, i) for i in range(4)] == [None, 0, None, 2]


@pytest.mark.parametrize(("name", "count"), [("forward", "forward"), ("step", "training")])
def test_efficiency_is_one_where_every_saved_flop_is_a_saved_second(name: str, count: str) -> None:
    mod = MoDConfig(**SHAPE)
    dense, routed = (Bench(subject(m), CPU, "fp32") for m in (dense_twin(mod), mod))
    flops = [getattr(b.books, count)("causal") for b in (dense, routed)]
    times = [1.0 * flops[1], 3.0 * flops[1], 2.0 * flops[1]]  # the machine slows down and both feel it
    twin_times = [1.0 * flops[0], 3.0 * flops[0], 2.0 * flops[0]]
    assert efficiency(routed, times, dense, twin_times, name) == pytest.approx(1)
    assert efficiency(routed, [2 * t for t in times], dense, twin_times, name) == pytest.approx(0.5)
    assert flops[1] == getattr(ledger(mod, PythonData(sequence_length=32)), count)("causal")


def test_spread_is_of_the_quartiles() -> None:
    assert spread([1.0]) == 0
    assert spread([1.0, 2.0, 3.0, 4.0, 100.0]) == pytest.approx(2 / 3)


def test_a_busy_machine_is_told() -> None:
    assert Load(0.1, 4, 0.05, 0.0).sentence == ""
    assert Load(0.1, 4, None, None).sentence == "", "a system that does not tell"
    assert "2.0 of 4 cores at work" in Load(3.0, 4, 2.0, 0.0).sentence
    assert "10% stolen" in Load(3.0, 4, 0.0, 0.1).sentence
    assert load().cores >= 1


def test_this_process_began_before_now() -> None:
    import time

    assert 0 < time.monotonic() - process_began() < 86_400


WORDS = ["bench", "step", "--repeats", "1", "model.n_layers=2", "model.d_model=16", "model.n_heads=1"]
MORE = ["data.sequence_length=32", "optim.batch_size=4", "trainer.device=cpu"]


def test_bench_step_from_the_command_line(
    modexp_cli: Cli, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes that measure memory and start-up are replaced; the test below starts one."""
    taken = {"start_seconds": 3.0, "base_bytes": 3e8}
    monkeypatch.setattr(bench, "start_of", lambda config: taken)
    monkeypatch.setattr(bench, "probe", lambda config, batch, micro, precision: {**taken, "peak_bytes": 3e8 + batch})
    threads = torch.get_num_threads()
    files = ["--csv", "b.csv", "--profile", "trace.json"]
    assert modexp_cli(*WORDS, *MORE, "--json", *files) == 0
    torch.set_num_threads(threads)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [row["arm"] for row in found["rows"]] == ["dense twin", "mod"]
    assert found["precision"] == "fp32", "auto, as training resolves it at this width"
    for row in found["rows"]:
        for name, per_token in (("forward", row["flops_per_token"]), ("step", None)):
            timing = row[name]
            assert timing["tokens_per_second"] == pytest.approx(4 * 32 / (timing["milliseconds"] / 1e3))
            if per_token:
                assert timing["flops_per_second"] == pytest.approx(per_token * timing["tokens_per_second"])
            assert timing["mfu"] == pytest.approx(timing["flops_per_second"] / found["matmul_flops_per_second"])
            assert ("efficiency" in timing) == (row["arm"] == "mod")
        assert row["step"]["milliseconds"] > row["forward"]["milliseconds"]
        assert row["peak_memory_bytes"] == 4, "libraries left out"
    assert from_measurement(found).of("mod", "mod")[0].rate == found["rows"][1]["pass_flops_per_second"]
    with open("b.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["step.milliseconds"]) for row in rows] == [r["step"]["milliseconds"] for r in found["rows"]]
    names = {event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert {"mod L2 d16, step 0", "dense twin L2 d16, step 2", "aten::mm"} <= names


def test_memory_is_measured_in_a_process_of_its_own() -> None:
    from modexp.train.probe import probe

    config = replace(subject(BaselineConfig(n_layers=2, d_model=64, n_heads=2)).config, data=PythonData())
    found = probe(config, 64, 64, "fp32")
    assert found["start_seconds"] > 0.5
    assert found["base_bytes"] > 1e8
    taken = found["peak_bytes"] - found["base_bytes"]
    logits = 64 * 256 * 256 * 4
    assert 2 * logits < taken < 40 * logits


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--arms", "mod", "model=moe"], "both name arms"),
        (["demo", "--arms", "mod"], "two lists of arms"),
        (["--repeats", "0"], "--repeats 0 is below 1"),
        (["nowhere"], "there is no sweep file nowhere"),
        (["--sizes", "big"], "size=big is not a number of parameters"),
        (["model=nothing"], "not in conf/"),
    ],
)
def test_what_cannot_be_timed_is_a_sentence(words: list[str], said: str, modexp_cli: Cli, capsys: Captured) -> None:
    assert modexp_cli("bench", "step", *words) == 2
    assert said in capsys.readouterr().err


def test_a_sweep_is_measured_at_its_smallest_middle_and_largest() -> None:
    from modexp.cli.bench_step import subjects_of

    found = subjects_of(["demo", "grid.points=5"], None, None)
    assert [s.arm for s in found] == ["baseline"] * 3 + ["mod"] * 3
    widths = [s.config.model.shape[1] for s in found[:3]]
    assert widths == sorted(widths)
    assert widths[0] < widths[2]
    assert {s.config.size for s in subjects_of(["demo"], None, "26.2k,65.8k")} == {"auto"}
    assert len(subjects_of(["demo"], None, "26.2k,65.8k")) == 4
