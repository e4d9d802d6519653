"""Adaptive studies on disk and on the command line; runs are not trained but given the losses of a law."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from modexp.analysis.records import records
from modexp.cli import sweep as cli_sweep
from modexp.cli.compose import load_sweep
from modexp.config.study import AdaptConfig
from modexp.errors import Interrupted, UserError
from modexp.files import write_json
from modexp.runs import RunDir
from modexp.sweep import decisions
from modexp.sweep.adapt import next_round
from modexp.sweep.study import join
from tests.test_adapt import BOTH, sweep_of

Cli = Callable[..., int]
Captured = pytest.CaptureFixture[str]


def test_the_log_is_written_whole_and_the_quicker_sweep_wins(tmp_path: Path) -> None:
    one, two = next_round(sweep_of([6e18]), BOTH, [], []), next_round(sweep_of([2e19]), BOTH, [], [])
    assert decisions.append(tmp_path, [], one) == one == decisions.read(tmp_path)
    assert decisions.append(tmp_path, [], two) == one, "another process was first"
    (tmp_path / decisions.FILE).write_text('{"round": 1')
    with pytest.raises(UserError, match="damaged"):
        decisions.read(tmp_path)


@pytest.mark.parametrize(
    ("words", "enabled", "interval"),
    [(["adapt=on"], True, 0.005), (["adapt=true", "adapt.interval=0.01"], True, 0.01), ([], False, 0.005),
     (["adapt.enabled=true"], True, 0.005), (["adapt=off"], False, 0.005)],
)  # fmt: skip
def test_adapt_is_typed(words: list[str], enabled: bool, interval: float) -> None:
    _, sweep = load_sweep("isoflop", [], words)
    assert (sweep.adapt.enabled, sweep.adapt.interval) == (enabled, interval)
    assert sweep.grid.growth == ("depth" if enabled else "even")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["adapt=maybe"], "adapt.enabled"),
        (["adapt.spend=3"], "says nothing to a study that does not adapt"),
        (["adapt=on", "adapt.spend=0.5"], "adapt.spend=0.5 is below 1"),
        (["adapt=on", "adapt.intervall=1"], "adapt.intervall is not a setting"),
        (["adapt=on", "grid.points=4"], "grid.points=4 is fewer than the 5"),
        (["guard=perhaps"], "guard"),
        (["optim.lr_scale=2"], "optim.lr_scale is set by the sweep"),
    ],
)
def test_wrong_settings_are_sentences(words: list[str], text: str) -> None:
    with pytest.raises(UserError, match=text):
        load_sweep("isoflop", [], words)


def test_joining_may_change_target_and_limit_but_not_adapt_itself(tmp_path: Path) -> None:
    sweep = sweep_of([6e18])
    join(tmp_path, sweep, BOTH).save()
    more = join(tmp_path, sweep_of([2e19], AdaptConfig(True, 0.01, 3.0)), BOTH).sweep
    assert (more.budgets, more.adapt.spend) == ([6e18, 2e19], 3.0)
    with pytest.raises(UserError, match="is True there and False here"):
        join(tmp_path, sweep_of([6e18], AdaptConfig()), BOTH)


class Trainer:
    """In place of the launcher: a run's result is a law's, and after ``patience`` runs the power fails."""

    def __init__(self) -> None:
        self.patience = math.inf
        self.trained: list[str] = []

    def execute(self, study: Path, runs: Sequence[RunDir], config: Any) -> None:
        for run in [run for run in runs if run.result() is None]:
            if self.patience <= 0:
                raise Interrupted("the study was stopped")
            self.patience -= 1
            self.trained.append(run.name)
            plan = run.plan()["plan"]
            F, D = plan["flops_per_token"], plan["tokens"]
            noise = random.Random(run.name).gauss(0, 0.004)
            loss = (1.2 + 60 / F**0.34 + 60 * 40**0.34 / D**0.34) * (1 + noise) + 0.02 * (plan["lr_scale"] != 1)
            reached = {"tokens": D, "steps": plan["steps"], "flops_consumed": plan["flops"], "loss": loss}
            write_json(run.result_path, {"status": "done", **reached})


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: list[str]) -> Trainer:
    """And a sweep file beside it, with ``adapt: on``."""
    ours = Trainer()
    monkeypatch.setattr(cli_sweep, "execute", ours.execute)
    monkeypatch.setattr(cli_sweep, "check_time", lambda *_: None)
    (tmp_path / "small.yaml").write_text(
        "budgets: [2.0e+10, 6.0e+10]\narms: {baseline: [model=baseline], mod: [model=mod]}\n"
        f"grid: {{points: 5, span: 3.0}}\nadapt: on\noverrides: {json.dumps(tiny)}\n"
    )
    return ours


WORDS = ["sweep", "small.yaml", "adapt.spend=1.8", "guard=on"]


def test_dry_run_prints_the_first_budget_and_what_follows(
    modexp_cli: Cli, capsys: Captured, trainer: Trainer, tmp_path: Path
) -> None:
    assert modexp_cli(*WORDS, "--dry-run") == 0
    captured = capsys.readouterr()
    assert "budget 2e10" in captured.out
    assert "budget 6e10" not in captured.out
    assert "decision 1 grid at 2e10: 10 runs: centred by the prior" in captured.err
    assert "adapt=on, 2 budgets" in captured.err
    assert not (tmp_path / "runs").exists()


def test_a_study_that_is_stopped_again_and_again_is_the_same_study(
    modexp_cli: Cli, capsys: Captured, trainer: Trainer, tmp_path: Path
) -> None:
    assert modexp_cli(*WORDS, "study=straight") == 0
    captured = capsys.readouterr()
    straight = decisions.read(tmp_path / "runs/straight")
    assert {d.kind for d in straight} >= {"grid", "seeds", "stop"}
    assert all(d.sentence in captured.err for d in straight)
    assert captured.out.count("guard: ") == 4
    rows = records(tmp_path / "runs/straight")
    assert sum(r["lr_scale"] == 1 for r in rows) == sum(len(d.runs) for d in straight)
    assert sum(r["lr_scale"] != 1 for r in rows) == 2 * 2 * 2 * 2

    trainer.trained, codes = [], []
    while not codes or codes[-1]:
        assert len(codes) < 20
        trainer.patience = 15
        codes.append(modexp_cli(*WORDS, "study=stopped"))
    assert codes[:-1] == [130] * (len(codes) - 1)
    assert len(codes) > 2
    assert decisions.read(tmp_path / "runs/stopped") == straight
    assert len(trainer.trained) == len(set(trainer.trained)) == len(rows)

    log = (tmp_path / "runs/stopped" / decisions.FILE).read_bytes()
    trainer.patience = 0
    assert modexp_cli(*WORDS, "study=stopped") == 0, "nothing is left to train"
    assert (tmp_path / "runs/stopped" / decisions.FILE).read_bytes() == log
    capsys.readouterr()
    assert modexp_cli(*WORDS, "study=stopped", "--dry-run") == 0
    assert f"replayed, the {len(straight)} decisions come out the same" in capsys.readouterr().err
    assert modexp_cli("status", "stopped") == modexp_cli("fit", "stopped") == 0

    trainer.patience = math.inf
    assert modexp_cli(*WORDS, "study=stopped", "adapt.spend=3", "adapt.interval=0.0001") == 0
    assert decisions.read(tmp_path / "runs/stopped")[: len(straight)] == straight
    assert len(trainer.trained) > len(rows), "more may be spent"
    assert modexp_cli(*WORDS, "study=stopped", "adapt=off") == 2
