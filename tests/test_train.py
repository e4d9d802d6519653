"""Training: budgets spent to the FLOP, what may change no number, results that are told."""

from __future__ import annotations

import itertools
import json
import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import modexp
from modexp.cli.compose import configuration
from modexp.cli.train import with_text
from modexp.config.root import Config
from modexp.plan.run import plan_run, resolve_shape
from modexp.runs import RunDir, create
from modexp.train import checkpoint
from modexp.train.evaluate import evaluate
from modexp.train.loop import Training, train
from modexp.train.optimizer import is_predictor
from modexp.train.schedule import lr_at
from modexp.train.signals import Stop

MOD = ["model=mod", "model.n_layers=4", "model.d_model=32", "model.n_heads=2", "optim.batch_size=4"]


def planned(path: Path, overrides: list[str]) -> RunDir:
    """A run directory ready to train, as the command line writes it."""
    config = resolve_shape(configuration(overrides))
    config = replace(config, trainer=replace(config.trainer, precision="fp32"))
    config, manifest = with_text(config, plan_run(config).sequences)
    run = RunDir(path)
    create(run, config, plan_run(config), manifest)
    return run


TIMINGS = ("perf/tokens_per_s", "perf/mfu")


def rows(run: RunDir) -> list[dict[str, Any]]:
    """Metrics without what a clock measured."""
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in run.metrics()]


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    return checkpoint.read(checkpoint.saved(run.checkpoints)[-1])[0]


def same_outcome(one: RunDir, other: RunDir) -> None:
    """Bit-identical losses, metrics and weights."""
    mine, theirs = one.result(), other.result()
    assert mine is not None
    assert theirs is not None
    for key in ("loss", "loss_topk", "train_loss", "flops_consumed", "steps", "sequences"):
        assert mine[key] == theirs[key], key
    assert rows(one) == rows(other)
    left, right = weights(one), weights(other)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_consumes_what_was_planned(tmp_path: Path, tiny: list[str]) -> None:
    run = planned(tmp_path / "r", [*tiny, *MOD, "budget=2e10"])
    result, plan = train(run.path), run.plan()["plan"]
    assert result["flops_consumed"] == result["flops_planned"] == plan["flops"]
    assert abs(result["flops_consumed"] / 2e10 - 1) <= 1 / plan["steps"]
    assert [row["step"] for row in run.metrics()][-1] == plan["steps"] == result["steps"]
    assert result["tokens"] == plan["tokens"] == run.metrics()[-1]["tokens"]
    assert result["loss"] < 5.0 < math.log(256), "real text was learned"
    assert result["loss"] != result["loss_topk"]
    found = result["validation"]
    assert 0 < found["predictor_precision"] <= 1
    assert 0 < found["predictor_recall"] <= 1
    assert found["capacity"] == pytest.approx((found["capacity.layer1"] + found["capacity.layer3"]) / 2)
    again = json.dumps(run.result())
    assert json.dumps(train(run.path)) == again, "a finished run is only read"


class StopAt(Stop):
    """The signal that a scheduler sends, at a step of our choice."""

    def __init__(self, training_step: int) -> None:
        super().__init__()
        self.at, self.asked = training_step, 0

    @property
    def signal(self) -> int:
        self.asked += 1
        return signal.SIGTERM if self.asked >= self.at else 0

    @signal.setter
    def signal(self, value: int) -> None:
        pass


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path, tiny: list[str]) -> None:
    """The micro-batch is not science: 4 at once, 3 + 1 and one at a time train alike to rounding, until that first
    decides which token a router takes."""
    losses = []
    for micro in (4, 3, 1):
        words = [*tiny, *MOD, "budget=1.5e9", "trainer.log_every=1", f"trainer.micro_batch={micro}"]
        run = planned(tmp_path / str(micro), words)
        train(run.path)
        losses.append([row["train/loss"] for row in run.metrics()[:12]])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] == pytest.approx(losses[2], abs=1e-5)
    assert losses[0][-1] < losses[0][0] - 0.5, "weights have moved"


def test_predictor_has_no_effect_on_the_language_model(tmp_path: Path, tiny: list[str]) -> None:
    """Sec. 3.5: ten times the predictors, and their gradients, leave every training loss as it is, to the bit."""
    overrides = [*tiny, *MOD, "budget=3e9", "trainer.log_every=1", "optim.grad_clip=0.1"]
    losses = []
    for factor in (1.0, 10.0):
        run = planned(tmp_path / str(factor), overrides)
        with Stop() as stop:
            training = Training(run, stop)
            with torch.no_grad():
                for name, parameter in training.model.named_parameters():
                    if is_predictor(name):
                        parameter.mul_(factor)
            training.to_the_end()
        losses.append([row["train/loss"] for row in run.metrics()])
    assert losses[0] == losses[1]
    assert len(losses[0]) > 30


def test_diverged_run_stops_with_its_reason(tmp_path: Path, tiny: list[str]) -> None:
    run = planned(tmp_path / "r", [*tiny, *MOD, "budget=2e10", "optim.lr=1e30", "schedule.warmup=0"])
    result = train(run.path)
    assert result["status"] == "diverged"
    assert "train/loss is nan at step 10" in result["error"]
    assert result["loss"] is None
    assert run.state() == "diverged"


def test_loads_from_python(tmp_path: Path, tiny: list[str]) -> None:
    study = tmp_path / "study"
    run = planned(study / "r", [*tiny, *MOD, "budget=3e9"])
    result = train(run.path)
    loaded = modexp.load(run.path)
    assert isinstance(loaded.config, Config)
    assert loaded.result == result
    assert loaded.records[-1]["val/loss"] == result["loss"]
    tokens = torch.randint(256, (2, 64))
    assert loaded.model(tokens, causal=True).logits.shape == (2, 64, 256)
    stored = weights(run)
    assert all(torch.equal(p, stored[name]) for name, p in loaded.model.named_parameters())
    frame = modexp.load_study(study)
    assert frame.loc[0, "loss"] == result["loss"]
    assert frame.loc[0, "status"] == "done"


def test_experts_of_a_block_that_all_bypass_took_nothing(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["model=mode_staged", "model.n_layers=4", "model.d_model=16", "model.n_heads=2", "optim.batch_size=4"]
    run = planned(tmp_path / "r", [*tiny, *words, "budget=1e9"])
    training = Training(run, Stop())
    with torch.no_grad():
        training.model.blocks[3].predictor.out.bias.fill_(-1e9)
    found = evaluate(training.model, training.config.model, training.held_out, torch.device("cpu"), "fp32", 1.0)
    assert found["val/capacity.layer3"] == found["val/capacity.layer3.experts"] == 0
    assert found["val/capacity.layer1.experts"] > 0
    assert found["val/capacity"] == found["val/capacity.layer1"] / 2, "of the blocks, not of their experts"
    assert all(math.isfinite(value) for value in found.values())


def test_cosine_ends_exactly_at_the_last_step() -> None:
    rates = [lr_at(step, 1000, 50, 1.0, 0.1) for step in range(1000)]
    assert rates[0] == 1 / 50
    assert rates[49] == 1.0 == max(rates)
    assert rates[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[49:]))
    assert rates[50 + 949 // 2] == pytest.approx(0.55, abs=1e-3)
    assert lr_at(0, 1, 0, 2.0, 0.1) == 2.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mod", "mod_threshold", "moe", "mode_staged"])
def test_compiled_training_is_eager_training(kind: str, tmp_path: Path, tiny: list[str]) -> None:
    losses = []
    for compiled in (False, True):
        words = [f"model={kind}", *MOD[1:], "budget=3e9", f"trainer.compile={compiled}"]
        losses.append(train(planned(tmp_path / str(compiled), [*tiny, *words]).path)["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
