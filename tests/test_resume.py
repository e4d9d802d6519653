"""Runs that stop, die or are in use: they go on with the same bits, or are left alone with a sentence."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from modexp.errors import Interrupted, RunFailed, UserError
from modexp.runs import RunDir
from modexp.train import checkpoint
from modexp.train.loop import Training, train
from modexp.train.provenance import git_state
from modexp.train.signals import Stop
from tests.test_train import MOD, StopAt, planned, same_outcome


def test_stopped_run_goes_on_with_the_same_bits(tmp_path: Path, tiny: list[str]) -> None:
    overrides = [*tiny, *MOD, "budget=2e10", "trainer.log_every=7"]
    straight, stopped = planned(tmp_path / "a", overrides), planned(tmp_path / "b", overrides)
    train(straight.path)
    for at in (5, 40):
        with pytest.raises(Interrupted, match="its state is saved"):
            Training(stopped, StopAt(at)).to_the_end()
        assert stopped.result() is None
    train(stopped.path)
    same_outcome(straight, stopped)


def kill_at_random(run: RunDir, seconds: float, rng: random.Random) -> bool:
    """Train in a process of its own and kill it after a random while; whether it was finished by then."""
    process = subprocess.Popen(
        [sys.executable, "-m", "modexp", "train", "--run", str(run.path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        process.wait(rng.uniform(0.0, seconds))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    _, complaint = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), complaint.decode()
    return run.result() is not None


def killed_and_resumed(tmp_path: Path, overrides: list[str], kills: int) -> None:
    straight, killed = planned(tmp_path / "a", overrides), planned(tmp_path / "b", overrides)
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", "modexp", "train", "--run", str(straight.path)], check=True,
                   capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    whole = time.monotonic() - begin
    rng, done = random.Random(0), 0
    for _ in range(kills):
        # a run that finished under the knife starts anew: every kill meets a living process
        if kill_at_random(killed, min(whole, 6.0), rng):
            same_outcome(straight, killed)
            done += 1
            killed = planned(tmp_path / f"b{done}", overrides)
    train(killed.path)
    same_outcome(straight, killed)
    assert not list(killed.path.rglob(".step-*")), "a half-written checkpoint was left behind"


def test_killed_run_goes_on_with_the_same_bits(tmp_path: Path, tiny: list[str]) -> None:
    killed_and_resumed(tmp_path, [*tiny, *MOD, "budget=3e10", "trainer.checkpoint_minutes=0"], kills=2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills(tmp_path: Path, tiny: list[str]) -> None:
    overrides = [*tiny, *MOD, "budget=1e11", "trainer.checkpoint_minutes=0.005"]
    killed_and_resumed(tmp_path, overrides, kills=20)


def test_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*tiny, *MOD, "budget=2e10", "trainer.checkpoint_minutes=0", "trainer.keep_checkpoints=3"]
    straight, damaged = planned(tmp_path / "a", overrides), planned(tmp_path / "b", overrides)
    train(straight.path)
    with pytest.raises(Interrupted):
        Training(damaged, StopAt(20)).to_the_end()
    newest = checkpoint.saved(damaged.checkpoints)[-1] / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    train(damaged.path)
    assert "is passed over: model.safetensors is damaged" in capsys.readouterr().err
    same_outcome(straight, damaged)


def test_cadence_may_change_on_resume(tmp_path: Path, tiny: list[str]) -> None:
    overrides = [*tiny, *MOD, "budget=3e9"]
    run = planned(tmp_path / "r", [*overrides, "trainer.log_every=20", "trainer.micro_batch=2"])
    with pytest.raises(Interrupted):
        Training(run, StopAt(5)).to_the_end()
    before = run.plan_path.read_bytes()
    planned(run.path, [*overrides, "trainer.log_every=1"])
    assert run.plan_path.read_bytes() == before
    train(run.path)
    steps = [row["step"] for row in run.metrics()]
    assert steps[-10:] == list(range(steps[-1] - 9, steps[-1] + 1))


def test_a_run_keeps_its_micro_batch_when_memory_changes(
    tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(tmp_path / "r", [*tiny, *MOD, "budget=3e9"])
    first = Training(run, StopAt(5))
    assert first.state.micro == 4
    with pytest.raises(Interrupted):
        first.to_the_end()
    monkeypatch.setattr("modexp.train.loop.memory_free", lambda device: 1)
    assert Training(run, Stop()).state.micro == 4
    assert Training(planned(tmp_path / "s", [*tiny, *MOD, "budget=3e9"]), Stop()).state.micro == 1


def test_a_run_in_use_is_left_alone(tmp_path: Path, tiny: list[str]) -> None:
    run = planned(tmp_path / "r", [*tiny, *MOD, "budget=3e9"])
    with run.locked():
        assert run.state() == "running"
        with pytest.raises(UserError, match="trained by another process"):
            train(run.path)
    assert run.state() == "planned"


def test_another_plan_in_the_directory_is_refused(tmp_path: Path, tiny: list[str]) -> None:
    run = planned(tmp_path / "r", [*tiny, *MOD, "budget=3e9"])
    before = {p.name: p.read_bytes() for p in run.path.iterdir() if p.is_file()}
    with pytest.raises(UserError, match=r"model.capacity is 0.125 there and 0.5 here"):
        planned(run.path, [*tiny, *MOD, "budget=3e9", "model.capacity=0.5"])
    assert {p.name: p.read_bytes() for p in run.path.iterdir() if p.is_file()} == before


def test_changed_text_is_refused(tmp_path: Path, tiny: list[str]) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(60):
        (corpus / f"{i}.txt").write_text(f"document {i} " * 200)
    words = [*tiny, f"data.paths=[{corpus}/*.txt]", *MOD, "budget=3e9"]
    planned(tmp_path / "r", words)
    (corpus / "0.txt").write_text("something else " * 200)
    with pytest.raises(UserError, match="was planned on data with content hash"):
        planned(tmp_path / "r", words)


def test_failure_is_written_down(tmp_path: Path, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned(tmp_path / "r", [*tiny, *MOD, "budget=3e9"])

    def broken(self: Training) -> Any:
        raise ZeroDivisionError("no such thing")

    monkeypatch.setattr(Training, "to_the_end", broken)
    with pytest.raises(RunFailed, match="ZeroDivisionError: no such thing"):
        train(run.path)
    assert run.state() == "failed"
    assert "ZeroDivisionError" in run.error()
    monkeypatch.undo()
    assert train(run.path)["status"] == "done"
    assert run.error() == ""


def test_what_was_passed_over_as_damaged_does_not_crowd_out_what_is_saved_now(tmp_path: Path, tiny: list[str]) -> None:
    run = planned(tmp_path / "r", [*tiny, *MOD, "budget=5e9", "trainer.keep_checkpoints=1"])
    with pytest.raises(Interrupted):
        Training(run, StopAt(9)).to_the_end()
    (newest,) = checkpoint.saved(run.checkpoints)
    (newest / "state.json").write_text("{}")
    with pytest.raises(Interrupted):
        Training(run, StopAt(4)).to_the_end()
    (saved,) = checkpoint.saved(run.checkpoints)
    assert saved.name < newest.name
    assert saved.name == f"step-{Training(run, Stop()).state.step:09d}"


def test_a_result_needs_the_row_of_the_last_step(tmp_path: Path, tiny: list[str]) -> None:
    run = planned(tmp_path / "r", [*tiny, *MOD, "budget=5e9"])
    train(run.path)
    run.result_path.unlink()
    run.write_metrics(run.metrics()[:-1])
    with pytest.raises(RunFailed, match="lacks the row of step"):
        train(run.path)
    assert not run.result_path.exists()


def test_no_run_is_lost_over_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state() in ({}, {"commit": None, "dirty": None})
    (tmp_path / "git").write_text("#!/bin/sh\nexit 128\n")
    (tmp_path / "git").chmod(0o755)
    assert git_state() in ({}, {"commit": None, "dirty": None})


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_closes_asks_to_stop_unless_nohup_has_it_ignored(ignored: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal == (0 if ignored else signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
