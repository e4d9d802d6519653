"""Studies: planned, run, skipped when finished, tried again when failed, refused when they would become another."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modexp.analysis.records import latest_study, records
from modexp.runs import RunDir
from modexp.sweep.local import slots_of, visible_gpus

Cli = Callable[..., int]
Captured = pytest.CaptureFixture[str]


WORDS = ["sweep", "small.yaml", "launcher.slots=2"]
SMALLEST = [*WORDS, "grid.points=1", "--budget", "1e8"]


def write_sweep(folder: Path, tiny: list[str]) -> None:
    (folder / "small.yaml").write_text(
        "budgets: [2.0e+9]\n"
        "seeds: [0]\n"
        "arms: {baseline: [model=baseline], mod: [model=mod]}\n"
        "grid: {points: 3, span: 2.0, tokens_per_param: 20.0}\n"
        f"overrides: {json.dumps(tiny)}\n"
    )


@pytest.fixture
def study(tmp_path: Path, tiny: list[str]) -> list[str]:
    """Words of a study of six runs, seconds in all."""
    write_sweep(tmp_path, tiny)
    return WORDS


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: pytest.TempPathFactory, tiny: list[str], cache: Path) -> Path:
    """A folder with a finished study of two runs."""
    folder = tmp_path_factory.mktemp("smallest")
    write_sweep(folder, tiny)
    subprocess.run([sys.executable, "-m", "modexp", *SMALLEST], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def finished(tmp_path: Path, smallest: Path) -> Path:
    """A copy of it, in the directory of the test; its study's folder."""
    shutil.copytree(smallest, tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs/small"


def test_a_study_from_nothing_to_figures(modexp_cli: Cli, capsys: Captured, tmp_path: Path, study: list[str]) -> None:
    assert modexp_cli(*study) == 0
    captured = capsys.readouterr()
    assert "6 runs will take about" in captured.err
    assert captured.err.index("will take about") < captured.err.index("[1/6]")
    assert "a fit needs 5 distinct sizes, got 3" in captured.out
    folder = tmp_path / "runs/small"
    rows = records(folder)
    assert [row["status"] for row in rows] == ["done"] * 6
    for row in rows:
        steps = 1 / row["steps_planned"] if row["steps_planned"] < 1000 else 1e-3
        assert abs(row["flops_consumed"] / row["budget"] - 1) <= steps
    assert {p.name for p in folder.glob("isoflop*")} >= {"isoflop.png", "isoflop.svg", "isoflop.csv"}

    stamps = {p: p.stat().st_mtime_ns for p in folder.glob("*/result.json")}
    assert modexp_cli(*study) == 0
    assert "6 of 6 runs are finished and skipped" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in folder.glob("*/result.json")} == stamps

    assert modexp_cli(*study, "--budget", "4e9") == 0, "a new budget joins"
    assert len(records(folder)) == 12
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps

    capsys.readouterr()
    assert modexp_cli("status", "--json") == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 12
    assert "study small" in captured.err
    assert modexp_cli("status", "small") == 0
    assert "12 done" in capsys.readouterr().err
    assert modexp_cli("plot", "curves", "--study", "small") == 0
    assert (folder / "curves.png").stat().st_size > 10_000
    capsys.readouterr()
    assert modexp_cli("fit", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["curves"]) == 4


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (["model.mlp=swiglu"], "arm baseline: model.mlp is gelu there and swiglu here"),
        (["optim.lr=1e-3"], "optim.lr is width there and 0.001 here"),
        (["grid.points=4"], "grid.points is 3 there and 4 here"),
        (["size=60k"], "size is auto there and 60k here"),
        (["seeds=[0,1]"], "seeds is [0] there and [0, 1] here"),
        (["trainer.precision=bf16"], "trainer.precision is fp32 there and bf16 here"),
    ],
)
def test_a_scientific_change_is_refused(
    change: list[str], text: str, modexp_cli: Cli, capsys: Captured, finished: Path
) -> None:
    file = finished / "study.yaml"
    before = file.read_text()
    points = [] if any("grid.points" in word for word in change) else ["grid.points=1"]
    assert modexp_cli(*WORDS, *points, *change) == 2
    complaint = capsys.readouterr().err
    assert text.replace("is 3 there", "is 1 there") in complaint
    assert "study=NAME" in complaint
    assert file.read_text() == before


def test_repeated_text_is_flagged_once_its_length_is_known(
    finished: Path,
) -> None:
    run = RunDir(next(finished.glob("mod-*")))
    plan, data = run.plan()["plan"], run.plan()["data"]
    assert data["exhausted"]
    assert plan["epochs"] == pytest.approx(plan["tokens"] / data["train_tokens"])


def test_diverged_runs_are_failures_and_are_not_tried_again(
    modexp_cli: Cli, capsys: Captured, study: list[str]
) -> None:
    words = [*study, "grid.points=1", "--budget", "5e8", "optim.lr=1e30", "schedule.warmup=0"]
    for _ in range(2):
        assert modexp_cli(*words) == 1
        assert "2 of 2 runs diverged" in capsys.readouterr().err
    assert modexp_cli("status") == 0
    assert "diverged" in capsys.readouterr().out


def test_failed_runs_are_told_and_tried_again(
    modexp_cli: Cli, capsys: Captured, tmp_path: Path, study: list[str]
) -> None:
    assert modexp_cli(*study, "--dry-run") == 0
    out = capsys.readouterr().out
    name = next(word for word in out.split() if word.startswith("mod-"))  # the first of three
    broken = tmp_path / "runs/small" / name
    broken.mkdir(parents=True)
    (broken / "checkpoints").write_text("a file where a folder must be")
    assert modexp_cli(*study) == 1
    captured = capsys.readouterr()
    assert f"1 of 6 runs failed: {name}" in captured.err
    states = {row["run"]: row["status"] for row in records(tmp_path / "runs/small")}
    assert states.pop(name) == "failed"
    assert set(states.values()) == {"done"}, "the rest went on"
    assert modexp_cli("status") == 0
    assert "failed" in capsys.readouterr().out
    (broken / "checkpoints").unlink()
    assert modexp_cli(*study) == 0
    assert {row["status"] for row in records(tmp_path / "runs/small")} == {"done"}


def test_a_study_beyond_a_day_needs_yes(modexp_cli: Cli, capsys: Captured, tmp_path: Path, study: list[str]) -> None:
    assert modexp_cli(*study, "--budget", "1e17", "size=60k") == 2
    complaint = capsys.readouterr().err
    assert "more than a day" in complaint
    assert "--yes" in complaint
    assert not (tmp_path / "runs").exists()


def test_interrupt_saves_and_the_same_command_goes_on(tmp_path: Path, study: list[str]) -> None:
    words = [sys.executable, "-m", "modexp", *study, "--budget", "5e10", "grid.points=1"]
    process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=os.environ)
    folder = tmp_path / "runs/small"
    deadline = time.monotonic() + 60
    while not list(folder.glob("*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)  # Ctrl-C takes the same way, but a shell may have made it ignored
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130, complaint.decode()
    assert b"the same command goes on" in complaint
    assert list(folder.glob("*/checkpoints/step-*")), "what ran saved its state"
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {row["status"] for row in records(folder)} == {"done"}


def test_a_run_of_another_process_is_waited_for_and_finished_if_it_gives_up(
    modexp_cli: Cli, capsys: Captured, finished: Path
) -> None:
    run = RunDir(next(finished.glob("mod-*")))
    run.result_path.unlink()
    held, over = threading.Event(), threading.Event()

    def other() -> None:
        with run.locked():
            held.set()
            over.wait()

    thread = threading.Thread(target=other)
    thread.start()
    assert held.wait(5)
    threading.Timer(1.5, over.set).start()
    try:
        assert modexp_cli(*SMALLEST) == 0
    finally:
        over.set()
        thread.join()
    assert f"[1/1] {run.name}  loss" in capsys.readouterr().err
    assert run.result() is not None


def test_consumed_other_than_planned_is_an_error(modexp_cli: Cli, capsys: Captured, finished: Path) -> None:
    path = next(finished.glob("*/result.json"))
    result = json.loads(path.read_text())
    path.write_text(json.dumps({**result, "flops_consumed": result["flops_consumed"] * 2}))
    assert modexp_cli("status") == 1
    assert "consumed other FLOPs than planned" in capsys.readouterr().err


def test_latest_study_is_the_one_that_changed_last(tmp_path: Path) -> None:
    for i, name in enumerate(("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.yaml").write_text("")
        os.utime(tmp_path / name, (1e9 + i, 1e9 + i))
    assert latest_study(tmp_path).name == "a"


def test_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    assert visible_gpus() == ["0", "3"]
    assert slots_of(None, 1, "auto") == ["0", "3"]
    assert slots_of(3, 1, "auto") == ["0", "3", "0"]
    assert slots_of(2, 1, "cpu") == [None, None]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    assert slots_of(None, 1, "auto") == [None] * len(os.sched_getaffinity(0))
