"""Time and memory of planned runs: the model of cost, its sources, and what plan and sweep make of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modexp.analysis.records import records
from modexp.cli.compose import arms_of, load_sweep
from modexp.config.data import PythonData
from modexp.config.experts import MoEConfig
from modexp.config.model import BaselineConfig, ModelConfig
from modexp.config.root import Config
from modexp.config.routing import MoDConfig
from modexp.config.study import BudgetConfig
from modexp.config.train import OptimConfig, TrainerConfig
from modexp.errors import UserError
from modexp.kinds import ledger
from modexp.plan import memory
from modexp.plan.cost import GPUS, Point, Speed, assumed, factor_for, from_measurement, measured, predict
from modexp.plan.grid import PlannedRun, plan_budget
from modexp.plan.memory import KEPT, micro_batch, peak_bytes, training_bytes_per_token
from modexp.plan.run import plan_run

Cli = Callable[..., int]
Captured = pytest.CaptureFixture[str]

SHAPE = {"n_layers": 4, "d_model": 64, "n_heads": 2}


def config_of(model: ModelConfig, **trainer: Any) -> Config:
    return Config(
        model=model,
        data=PythonData(sequence_length=64),
        optim=OptimConfig(batch_size=6),
        trainer=TrainerConfig(eval_sequences=10, num_evals=3, **trainer),
        budget=BudgetConfig(1e10),
    )


def speed(*points: Point, free: float = 1e9) -> Speed:
    return Speed("made up", "fp32", 5.0, 1e8, free, points)


@pytest.mark.parametrize("model", [BaselineConfig(**SHAPE), MoDConfig(**SHAPE)])
def test_seconds_are_start_passes_and_validations(model: ModelConfig) -> None:
    """Counted step by step, as training goes."""
    config = config_of(model, micro_batch=4)
    plan = plan_run(config, "a")
    point = Point("a", model.kind, 1e5, overhead=0.25, rate=2e8, eval_rate=5e8)
    books = ledger(model, config.data)
    seconds = 5.0
    for step in range(plan.steps):
        left = plan.last_batch_size if step == plan.steps - 1 else 6
        while left:
            taken = min(4, left)
            seconds += 0.25 + taken * (books.forward() + books.backward()) / 2e8
            left -= taken
    for _ in range(3):
        for _ in ["causal", "top-k"] if model.has_routing else ["causal"]:
            seconds += 10 * books.forward() / 5e8
    assert predict(plan, config, speed(point)).seconds == pytest.approx(seconds, rel=1e-9)


def test_rates_are_interpolated_in_the_logarithm_of_the_size_and_held_beyond() -> None:
    points = speed(Point("a", "mod", 1e4, 0.1, 1e9, 3e9), Point("a", "mod", 1e6, 0.3, 9e9, 3e9))
    overhead, rate, eval_rate = points.at("a", "mod", 1e5)
    assert (overhead, rate, eval_rate) == pytest.approx((0.2, 3e9, 3e9))
    assert points.at("a", "mod", 1e2) == points.at("a", "mod", 1e4)
    assert points.at("a", "mod", 1e9) == points.at("a", "mod", 1e6)


def test_the_nearest_kind_is_taken() -> None:
    own, kind, other = (Point(a, k, 1e5, 0.0, r, r) for a, k, r in (("x", "mod", 1), ("y", "mod", 2), ("z", "moe", 3)))
    assert speed(own, kind, other).of("x", "mod") == (own,)
    assert speed(kind, other).of("x", "mod") == (kind,)
    assert speed(other).of("x", "mod") == (other,)


@pytest.mark.parametrize("model", [BaselineConfig(**SHAPE), MoDConfig(**SHAPE), MoEConfig(**SHAPE)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_holds_the_state_and_grows_by_what_a_token_keeps(model: ModelConfig, precision: str) -> None:
    data = PythonData(sequence_length=2048)
    params = ledger(model, data).params_total
    per_token = training_bytes_per_token(model, data, precision) + 256 * KEPT[precision][-1]
    one, nine = (peak_bytes(model, data, micro, precision) for micro in (8, 16))
    assert nine - one == pytest.approx(8 * 2048 * per_token)
    assert one > 16 * params
    assert per_token > 4 * 64 * (3 if model.has_routing else 4), "a width a block is kept at least"


def test_fewer_tokens_in_a_block_keep_fewer_bytes() -> None:
    data = PythonData(sequence_length=64)
    dense, mod = (training_bytes_per_token(m, data) for m in (BaselineConfig(**SHAPE), MoDConfig(**SHAPE)))
    assert mod < dense
    assert training_bytes_per_token(BaselineConfig(**SHAPE), data, "bf16") < dense


def test_logits_are_counted_up_to_a_chunk_in_a_step_and_in_an_evaluation() -> None:
    data = replace(PythonData(sequence_length=64), vocab_size=100_000)
    model = BaselineConfig(n_layers=2, d_model=8, n_heads=1)
    chunk = 2 * memory.EVAL_LOGITS * memory.LOGIT["fp32"]
    assert 64 * 100_000 < memory.EVAL_LOGITS < memory.CHUNK_LOGITS < 8192 * 100_000
    assert chunk < peak_bytes(model, data, 1, "fp32") < 1.05 * chunk, "an evaluation needs more than a short step"
    one, nine = (memory.step_bytes(model, data, micro, "fp32") for micro in (100, 900))
    assert nine - one == pytest.approx(800 * 64 * training_bytes_per_token(model, data)), "no more logits"
    for free in (2e9, 2e10, 2e11):
        micro = micro_batch(model, data, 10_000, 0, free)
        assert memory.step_bytes(model, data, micro, "fp32") - 16 * ledger(model, data).params_total <= free / 2


def test_a_micro_batch_fits_into_what_is_free() -> None:
    model, data = BaselineConfig(**SHAPE), PythonData(sequence_length=64)
    params = ledger(model, data).params_total
    previous = 0
    for free in (1e7, 1e8, 1e9):
        micro = micro_batch(model, data, 10_000, params, free)
        assert micro == 1 or memory.step_bytes(model, data, micro, "fp32") <= free / 2
        assert micro >= previous
        previous = micro
    assert micro_batch(model, data, 7, params, 1e12) == 7


def test_a_gpu_is_its_data_sheet_times_the_utilisation_that_is_printed() -> None:
    found = assumed("H100")
    assert found.points[0].rate == pytest.approx(989e12 * 0.4)
    assert "40%" in found.source
    assert "assumed" in found.source
    assert all(50 < gpu.teraflops < 5000 and 16 <= gpu.gigabytes <= 200 for gpu in GPUS.values())
    with pytest.raises(UserError, match="--gpu h1000 is not in the table"):
        assumed("h1000")


@pytest.mark.parametrize("hours", [0.5, 7, 1000])
def test_a_factor_meets_the_hours(hours: float) -> None:
    def seconds(factor: float) -> float:
        return 60 + 10 * math.floor(700 * factor) if factor > 1e-3 else 0.0

    found = seconds(factor_for(hours, seconds))
    assert 0.98 * 3600 * hours <= found <= 3600 * hours


def test_hours_that_are_too_few_are_refused() -> None:
    with pytest.raises(UserError, match="takes as little as --hours"):
        factor_for(0.01, lambda factor: 100 * factor + 60 if factor > 0.1 else 0.0)


MEASURED = {
    "device": "a box",
    "precision": "fp32",
    "start_seconds": 4.0,
    "base_bytes": 3e8,
    "free_bytes": 8e9,
    "busy": "",
    "rows": [
        {
            "arm": "baseline",
            "kind": "baseline",
            "flops_per_token": 1e5,
            "pass_overhead_seconds": 0.01,
            "pass_flops_per_second": 1e10,
            "eval_flops_per_second": 2e10,
        }
    ],
}


def test_measurements_are_read_and_damage_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(MEASURED))
    assert measured(path).points[0].rate == 1e10
    with pytest.raises(UserError, match="lacks what a prediction needs"):
        from_measurement({**MEASURED, "rows": [{"arm": "baseline"}]})
    with pytest.raises(UserError, match="holds no model"):
        from_measurement({**MEASURED, "rows": []})
    with pytest.raises(UserError, match="does not exist"):
        measured(tmp_path / "nowhere.json")


PLAN = ["plan", "demo", "grid.points=3", "grid.span=2.0"]


def test_plan_predicts_from_a_measurement(modexp_cli: Cli, capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps(MEASURED))
    assert modexp_cli(*PLAN, "--bench", "bench.json", "--price", "2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    seconds = sum(run["predicted_seconds"] for run in found["runs"])
    assert found["predicted"]["seconds"] == pytest.approx(seconds)
    assert found["predicted"]["cost"] == pytest.approx(seconds / 3600 * 2)
    assert "a box" in found["predicted"]["source"]
    assert modexp_cli(*PLAN, "--bench", "bench.json", "--price", "2") == 0
    captured = capsys.readouterr()
    assert "MiB" in captured.out or "GiB" in captured.out
    assert "not measured, so predicted from the nearest kind of model: mod" in captured.err


def test_hours_scale_all_budgets_alike(modexp_cli: Cli, capsys: Captured) -> None:
    words = ["plan", "grid.points=3", "--budget", "6e18,2.4e19", "--gpu", "h100", "--json"]
    assert modexp_cli(*words, "--hours", "20") == 0
    found = json.loads(capsys.readouterr().out)
    assert 0.95 * 72_000 < found["predicted"]["seconds"] <= 72_000
    budgets = sorted({run["budget"] for run in found["runs"]})
    assert budgets[1] / budgets[0] == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hours", "20"], "--hours 20 needs a device"),
        (["--price", "2"], "--price 2 needs a device"),
        (["--gpu", "h100", "--hours", "-1"], "--hours -1 is not positive"),
        (["--gpu", "h100", "--bench", "x"], "are two devices"),
        (["--noise", "2"], "--noise 2 is not a share"),
    ],
)
def test_wrong_requests_are_sentences(words: list[str], said: str, modexp_cli: Cli, capsys: Captured) -> None:
    assert modexp_cli("plan", *words) == 2
    assert said in capsys.readouterr().err


def test_a_study_keeps_what_was_predicted_beside_what_was_measured(
    modexp_cli: Cli, capsys: Captured, tmp_path: Path, tiny: list[str]
) -> None:
    (tmp_path / "small.yaml").write_text(
        f"budgets: [1e8]\narms: {{mod: [model=mod]}}\ngrid: {{points: 1}}\noverrides: {json.dumps(tiny)}\n"
    )
    assert modexp_cli("sweep", "small.yaml") == 0
    assert "runs will take about" in capsys.readouterr().err
    (row,) = records(tmp_path / "runs/small")
    assert row["predicted_seconds"] > 0
    assert row["wall_seconds"] > row["train_seconds"] + row["eval_seconds"]
    assert row["peak_memory_bytes"] > 1e8, "torch alone holds more"
    assert 0.6 < row["predicted_memory_bytes"] / row["peak_memory_bytes"] < 1.6
    assert modexp_cli("plan", "small.yaml", "--bench", "runs/small/bench.json") == 0
    assert "measured on" in capsys.readouterr().err


def test_a_sweep_measures_once_on_a_machine(tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A study that goes on need not, but for other sizes, on another machine, or where the first time was disturbed."""
    from modexp.sweep import estimate
    from modexp.train.bench import Subject
    from modexp.train.hardware import describe
    from modexp.train.load import Load

    (tmp_path / "small.yaml").write_text(
        f"budgets: [1e9]\narms: {{mod: [model=mod]}}\ngrid: {{points: 3}}\noverrides: {json.dumps(tiny)}\n"
    )
    monkeypatch.chdir(tmp_path)
    name, sweep = load_sweep("small.yaml", [], [])
    small, large = (plan_budget(arms_of(name, sweep), budget, [0], sweep.grid).runs for budget in (1e9, 1e11))
    calls: list[int] = []
    kept = tmp_path / "bench.json"
    load = Load(0.0, 2, 0.0, 0.0)
    monkeypatch.setattr(estimate, "load", lambda: load)

    def measure(subjects: Sequence[Subject], device: Any, precision: str, *_: Any, **__: Any) -> dict[str, Any]:
        calls.append(len(subjects))
        sizes = [ledger(s.config.model, s.config.data).forward() / s.config.data.sequence_length for s in subjects]
        rows = [{**MEASURED["rows"][0], "arm": "mod", "flops_per_token": size} for size in sizes]
        here = {"device": describe(device), "precision": precision, "compile": False, "activation_checkpointing": False}
        return {**MEASURED, **here, "rows": rows}

    monkeypatch.setattr(estimate, "measure", measure)

    def asked(runs: Sequence[PlannedRun], precision: str = "fp32") -> int:
        calls.clear()
        kept.write_text(json.dumps(estimate.measured_here(runs, precision, kept)))
        return len(calls)

    def change(**fields: Any) -> None:
        kept.write_text(json.dumps({**json.loads(kept.read_text()), **fields}))

    assert asked(small) == 1
    assert asked(small) == asked(small[1:2]) == 0
    assert asked(large) == 1, "larger than what was measured"
    change(host="another")
    assert asked(large) == 1
    change(busy="the machine was busy")
    assert asked(large) == 1
    change(busy="the machine was busy")
    load = Load(1.0, 2, 1.0, 0.0)
    assert asked(large) == 0, "as busy as it was"
    kept.write_text("{")
    assert asked(small) == 1
