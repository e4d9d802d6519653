"""Rows of metrics on a device that the host runs ahead of: written a step later, they are the same rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from modexp.errors import Interrupted
from modexp.train import loop
from modexp.train.loop import Training, train
from modexp.train.outcome import Consumed
from modexp.train.progress import Progress
from modexp.train.rows import Rows
from modexp.train.trackers import Tracker
from tests.test_resume import StopAt
from tests.test_train import MOD, planned, same_outcome


def run_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "runs_ahead", lambda device: True)


@pytest.mark.parametrize("log_every", [1, 7])
def test_rows_of_a_step_ago_are_those_of_now(
    log_every: int, tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*tiny, *MOD, "budget=5e9", f"trainer.log_every={log_every}"]
    now, later = planned(tmp_path / "now", overrides), planned(tmp_path / "later", overrides)
    train(now.path)
    run_ahead(monkeypatch)
    train(later.path)
    assert len(now.metrics()) > 3
    same_outcome(now, later)


@pytest.mark.parametrize("at", [7, 8, 9])
def test_a_checkpoint_leaves_no_row_behind(
    at: int, tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at the step of a row, or behind it."""
    overrides = [*tiny, *MOD, "budget=5e9", "trainer.log_every=7"]
    straight, stopped = planned(tmp_path / "a", overrides), planned(tmp_path / "b", overrides)
    train(straight.path)
    run_ahead(monkeypatch)
    with pytest.raises(Interrupted, match="its state is saved"):
        Training(stopped, StopAt(at)).to_the_end()
    train(stopped.path)
    same_outcome(straight, stopped)


def test_what_diverged_is_told_a_step_later(tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run_ahead(monkeypatch)
    run = planned(tmp_path / "r", [*tiny, *MOD, "budget=2e10", "optim.lr=1e30", "schedule.warmup=0"])
    result = train(run.path)
    assert result["status"] == "diverged"
    assert "train/loss is nan at step 10" in result["error"]
    assert result["steps"] == 11


def test_seconds_since_the_last_row_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a checkpoint in between has counted, the next row does not count again."""
    clock = iter([10.0, 13.0, 14.0, 15.0])  # beginning, checkpoint, row, checkpoint
    monkeypatch.setattr("modexp.train.rows.time.perf_counter", lambda: next(clock))
    consumed, plan = Consumed(), {"sequence_length": 8, "training_flops_per_sequence": 80.0}
    with open(tmp_path / "rows", "w") as file, Progress("r", 2) as progress:
        rows = Rows(file, Tracker(), progress, consumed, plan, 1.0, 1.0, torch.device("cpu"))
        rows.count()
        assert consumed.train_seconds == 3
        consumed.step, consumed.sequences = 1, 4
        rows.mark(0.1, 1, torch.tensor(2.0), torch.tensor(1.0))
        rows.settle()
        assert consumed.train_seconds == 4
        rows.count()
        assert consumed.train_seconds == 5
    row = json.loads((tmp_path / "rows").read_text())
    assert row["perf/tokens_per_s"] == 4 * 8 / 4, "a row's speed is over all of its time"
