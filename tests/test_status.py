"""modexp status beside a study at work: states, what is left to pay, and reading alone."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from modexp.cli import status
from modexp.cli.common import print_table, table_of
from modexp.runs import RunDir, run_dirs
from modexp.sweep.left import left_of, seconds_left
from modexp.sweep.queue import opened
from tests.synthetic import make_study

Cli = Callable[..., int]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"), [1e17])


@pytest.fixture
def study(whole: Path, tmp_path: Path) -> Path:
    """A finished study under runs/."""
    return Path(shutil.copytree(whole, tmp_path / "runs" / whole.name))


def unfinished(run: RunDir, share: float = 0.0) -> RunDir:
    """The run with ``share`` of its steps done, at 1000 tokens a second."""
    run.result_path.unlink()
    plan = run.plan()["plan"]
    if share:
        row = {"step": 1, "tokens": round(share * plan["tokens"]), "flops": share * plan["flops"]}
        run.metrics_path.write_text(json.dumps({**row, "train/loss": 3.0, "perf/tokens_per_s": 1e3}) + "\n")
    return run


def states(modexp_cli: Cli, capsys: Captured) -> dict[str, str]:
    capsys.readouterr()
    assert modexp_cli("status", "--json") == 0
    return {row["run"]: row["status"] for row in json.loads(capsys.readouterr().out)}


def test_every_state_is_told(modexp_cli: Cli, capsys: Captured, study: Path) -> None:
    running, stale, failed, stopped, queued, planned, diverged, *_ = run_dirs(study)
    for run in (running, stale, failed, queued, planned):
        unfinished(run)
    unfinished(stopped, 0.5)
    (stale.path / ".claim-1").write_text("{}")
    os.utime(stale.path / ".claim-1", (1e9, 1e9))
    failed.error_path.write_text("no such thing\n  try another\n")
    result = diverged.result() or {}
    diverged.result_path.write_text(json.dumps({**result, "status": "diverged", "error": "loss is nan", "loss": None}))
    with running.locked(), opened(study) as queue:
        queue.show([queued.name, running.name])
        found = states(modexp_cli, capsys)
        assert modexp_cli("status") == 0
        captured = capsys.readouterr()
    expected = {running: "running", stale: "stale", failed: "failed", stopped: "stopped", queued: "queued"}
    expected |= {planned: "planned", diverged: "diverged"}
    assert {run.name: found[run.name] for run in expected} == {run.name: state for run, state in expected.items()}
    assert set(found.values()) == {*expected.values(), "done"}
    assert "no such thing" in captured.out
    assert "3.0000 train" in captured.out, "the loss so far"
    assert "1 running" in captured.err
    assert "; to finish: " in captured.err


def test_json_tells_what_each_run_would_cost_to_finish(modexp_cli: Cli, capsys: Captured, study: Path) -> None:
    half, none, *_ = run_dirs(study)
    unfinished(half, 0.5)
    unfinished(none)
    assert modexp_cli("status", "--json") == 0
    rows = {row["run"]: row for row in json.loads(capsys.readouterr().out)}
    left = {name: row["flops_left"] for name, row in rows.items() if row["flops_left"]}
    plans = [run.plan()["plan"] for run in (half, none)]
    assert left == {half.name: pytest.approx(plans[0]["flops"] / 2), none.name: plans[1]["flops"]}
    assert rows[half.name]["seconds_left"] == pytest.approx(plans[0]["tokens"] / 2 / 1000, rel=1e-3), "at its own pace"
    assert rows[none.name]["seconds_left"] > 0


def test_nothing_is_written(modexp_cli: Cli, study: Path) -> None:
    """Not even a directory's time: the study changed last is the one that status and fit take for meant."""
    unfinished(run_dirs(study)[0], 0.3)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [study, *study.rglob("*")]}
    assert modexp_cli("status") == 0
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [study, *study.rglob("*")]} == before


def row(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "status": "done", "flops_planned": 100.0, "flops_consumed": 100.0, "tokens_planned": 1000, "tokens": 1000,
        "wall_seconds": 50.0, "train_seconds": 40.0, "predicted_seconds": None,
    }  # fmt: skip
    return {**base, **changes}


def test_what_is_left_to_pay() -> None:
    at_work = row(status="running", flops_consumed=25.0, tokens=250, tokens_per_s=10.0, wall_seconds=None)
    predicted = row(status="planned", flops_consumed=0.0, tokens=0, predicted_seconds=30.0, wall_seconds=None)
    unknown = row(status="planned", flops_consumed=0.0, tokens=0, flops_planned=200.0, wall_seconds=None)
    assert seconds_left(at_work) == 75.0, "at its own speed"
    assert seconds_left(predicted) == 30.0
    assert seconds_left(unknown) is None
    left = left_of([row(), at_work, predicted, unknown])
    assert left.flops_left == 75 + 100 + 200
    assert left.seconds_spent == 50 + 25
    assert left.seconds_left == 75 + 30 + 100, "where nothing was predicted, at the pace of what is done"
    assert left.wall_seconds(1) == 205
    assert left.wall_seconds(8) == 100, "no sooner than the longest run"
    assert left_of([unknown]).seconds_left is None
    assert left_of([row()]).flops_left == 0


def test_watch_follows_to_the_end(
    modexp_cli: Cli, capsys: Captured, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "EVERY", 0.05)
    run = run_dirs(study)[0]
    result = run.result_path.read_text()
    unfinished(run, 0.5)
    with run.locked():
        thread = threading.Timer(0.4, lambda: run.result_path.write_text(result))
        thread.start()
        assert modexp_cli("status", "--watch") == 0
    lines = capsys.readouterr().err.splitlines()
    assert sum("1 running" in line for line in lines) == 1
    assert any(line.startswith(f"{run.name} done; ") for line in lines)
    thread.join()


def test_a_study_at_rest_is_not_waited_for(modexp_cli: Cli, study: Path) -> None:
    unfinished(run_dirs(study)[0], 0.5)
    assert modexp_cli("status", "--watch") == 0


def test_a_table_of_many_runs_looks_like_one_of_few(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are printed together, for speed, but where a long note must wrap."""
    rows = [[f"run-{i}", "done" if i % 2 else "failed", "1" * i, "as it is"] for i in range(1, 30)]
    columns = ("run", "status", "steps", "note")

    def printed(rows: list[list[str]]) -> list[str]:
        print_table(columns, rows)
        return capsys.readouterr().out.splitlines()

    whole = printed(rows)
    Console(highlight=False, width=4096).print(table_of(columns, rows))
    assert whole == capsys.readouterr().out.splitlines()
    assert printed([])
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # as on a terminal
    monkeypatch.setenv("COLUMNS", "60")
    rows[3][3] = "a note that is far too long for a line of " + "this terminal " * 4
    text = printed(rows)
    (line,) = [i for i, text in enumerate(text) if "run-5 " in text]
    assert "1" * 5 in text[line]
    assert "as it is" in text[line]
    assert "run" not in text[line - 1], "what the note above goes on with"


def test_too_many_curves_are_refused(
    modexp_cli: Cli, capsys: Captured, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modexp.cli.plot.MOST_CURVES", 3)
    assert modexp_cli("plot", "curves") == 2
    assert "more than one figure can tell apart" in capsys.readouterr().err
    name = run_dirs(study)[0].name
    assert modexp_cli("plot", "curves", "--run", name) == 2
    assert "has logged a training loss" in capsys.readouterr().err
