"""Faults put in one by one: a full disk, torn lines, damaged and hostile files, lost text. Each run goes on with the
same bits, or says in a sentence why not.

Elsewhere: directories that cannot be written (test_cli), a damaged cache and changed text (test_data), a flipped bit in
a checkpoint and other plans (test_resume), memory (test_oom), W&B (test_sync), clocks and dead processes (test_claim).
"""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modexp.cli.compose import configuration
from modexp.errors import Interrupted, ModexpError, RunFailed, UserError
from modexp.runs import RunDir
from modexp.train import checkpoint, loop
from modexp.train.loop import Training, train
from modexp.train.signals import Stop
from tests.test_train import MOD, StopAt, planned, same_outcome

Cli = Callable[..., int]
Captured = pytest.CaptureFixture[str]
WORDS = [*MOD, "budget=2e9", "trainer.log_every=3", "trainer.checkpoint_minutes=0"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> RunDir:
    """The run without a fault."""
    run = planned(tmp_path_factory.mktemp("straight") / "r", [*tiny, *WORDS])
    train(run.path)
    return run


@pytest.fixture
def stopped(tmp_path: Path, tiny: list[str]) -> RunDir:
    """The same run stopped on its way, two checkpoints behind it."""
    run = planned(tmp_path / "r", [*tiny, *WORDS])
    with pytest.raises(Interrupted):
        Training(run, StopAt(8)).to_the_end()
    assert len(checkpoint.saved(run.checkpoints)) == 2
    return run


# ---- disks ---------------------------------------------------------------------------------------------------------


def full(*_: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_while_a_checkpoint_is_written(
    straight: RunDir, stopped: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = checkpoint.saved(stopped.checkpoints)
    monkeypatch.setattr(checkpoint.os, "fsync", full)  # the content is there in part, as on a full disk
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        train(stopped.path)
    assert checkpoint.saved(stopped.checkpoints) == before, "the last good ones stand"
    assert not list(stopped.checkpoints.glob(".step-*")), "what was half written does not take up space"
    monkeypatch.undo()
    train(stopped.path)
    same_outcome(straight, stopped)


def test_a_disk_that_fills_before_the_result(
    straight: RunDir, stopped: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "write_json", full)
    with pytest.raises(RunFailed, match="No space left on device"):
        train(stopped.path)
    assert stopped.state() == "failed"
    assert "No space left on device" in stopped.error()
    monkeypatch.undo()
    train(stopped.path)
    same_outcome(straight, stopped)


def test_a_disk_that_fills_while_metrics_are_written(
    straight: RunDir, stopped: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's own full device in place of the file, once the run has cut it to its checkpoint."""

    def open_full(path: Any, *mode: Any) -> Any:
        return open("/dev/full" if path == stopped.metrics_path else path, *mode)

    monkeypatch.setattr(loop, "open", open_full, raising=False)
    monkeypatch.setattr(loop.os, "fsync", lambda _: None)  # that device knows no such thing
    with pytest.raises(RunFailed, match="No space left on device"):
        train(stopped.path)
    assert stopped.state() == "failed"
    monkeypatch.undo()
    train(stopped.path)
    same_outcome(straight, stopped)


def read_only(*_: Any, **__: Any) -> Any:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_directory_that_becomes_read_only(straight: RunDir, stopped: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a disk with errors is mounted again: not even the reason can be kept there."""
    monkeypatch.setattr(Path, "mkdir", read_only)
    monkeypatch.setattr("modexp.files.tempfile.mkstemp", read_only)
    with pytest.raises(UserError, match="cannot be written: Read-only file system"):
        train(stopped.path)
    assert stopped.state() == "stopped"
    monkeypatch.undo()
    train(stopped.path)
    same_outcome(straight, stopped)


def test_a_disk_so_full_that_not_even_the_reason_fits(stopped: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "write_json", full)
    monkeypatch.setattr("modexp.files.os.fsync", full)
    with pytest.raises(ModexpError, match="No space left on device"):
        train(stopped.path)


# ---- damaged files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", ['{"step": 7, "tok', "\x00\x00\x00", '{"step": 7}{"st'], ids=["half", "zeros", "two"])
def test_a_half_written_line_of_metrics(straight: RunDir, stopped: RunDir, torn: str) -> None:
    with open(stopped.metrics_path, "a") as file:
        file.write(torn)
    assert stopped.last_row() == stopped.metrics()[-1]
    assert stopped.state() == "stopped"
    train(stopped.path)
    same_outcome(straight, stopped)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_is_passed_over(
    damage: Callable[[Path], Any], name: str, stopped: RunDir, capsys: Captured
) -> None:
    before, newest = checkpoint.saved(stopped.checkpoints)
    damage(newest / name)
    training = Training(stopped, Stop())
    assert f"{newest} is passed over: " in capsys.readouterr().err
    assert training.state.step == int(before.name.removeprefix("step-"))


def test_no_checkpoint_that_can_be_read(straight: RunDir, stopped: RunDir, capsys: Captured) -> None:
    for path in checkpoint.saved(stopped.checkpoints):
        cut(path / "optimizer.safetensors")
    train(stopped.path)
    assert capsys.readouterr().err.count("is passed over") == 2
    same_outcome(straight, stopped)


# ---- hostile files -------------------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch exploded",)


def pickled() -> bytes:
    return pickle.dumps(Bomb())


def torch_file() -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save({"model": Bomb()}, buffer)
    return buffer.getvalue()


HOSTILE = {
    "pickle": pickled,
    "torch": torch_file,
    "huge header": lambda: (2**62).to_bytes(8, "little") + b"{}",
    "deep header": lambda: (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "offsets beyond": lambda: header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
}


def header(tensors: dict[str, Any]) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_checkpoint_is_a_sentence(
    content: Callable[[], bytes], stopped: RunDir, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checksums are right, so only the reading itself can refuse it."""
    import zlib

    monkeypatch.chdir(tmp_path)
    newest = checkpoint.saved(stopped.checkpoints)[-1]
    hostile = content()
    (newest / "model.safetensors").write_bytes(hostile)
    state = json.loads((newest / "state.json").read_text())
    state["crc32"]["model.safetensors"] = zlib.crc32(hostile)
    (newest / "state.json").write_text(json.dumps(state))
    training = Training(stopped, Stop())
    assert f"{newest} is passed over: " in capsys.readouterr().err
    assert training.state.step > 0
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "state",
    ['{"crc32": {"../../../x": 1}}', '{"step": "many", "crc32": {}}', "[" * 100_000, '{"crc32": []}', "[]"],
    ids=["path", "type", "deep", "list", "no object"],
)
def test_a_hostile_state_is_a_sentence(state: str, stopped: RunDir, capsys: Captured) -> None:
    newest = checkpoint.saved(stopped.checkpoints)[-1]
    (newest / "state.json").write_text(state)
    Training(stopped, Stop())
    assert f"{newest} is passed over: " in capsys.readouterr().err


# ---- clocks, and other processes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
def test_a_clock_that_jumps_is_no_time_spent(jump: float, stopped: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, evaluate = time.time, Training.evaluate
    before = stopped.metrics()[-1]["step"]

    def evaluate_later(self: Training) -> dict[str, float]:
        monkeypatch.setattr(time, "time", lambda: plain() + jump)
        return evaluate(self)

    monkeypatch.setattr(Training, "evaluate", evaluate_later)
    result = train(stopped.path)
    assert result["steps"] > before
    assert result["train_seconds"] < result["wall_seconds"] < 600


def test_a_run_that_another_process_took_over_is_left_to_it(stopped: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a reason of failure is left there: the run has not failed."""
    save = Training.save

    def save_late(self: Training) -> None:
        assert self.run.claim
        self.run.claim.path.rename(self.run.path / ".claim-9")
        save(self)

    monkeypatch.setattr(Training, "save", save_late)
    before = checkpoint.saved(stopped.checkpoints)
    with pytest.raises(RunFailed, match="was taken over by another process"):
        train(stopped.path)
    assert not stopped.error_path.exists()
    assert checkpoint.saved(stopped.checkpoints) == before


# ---- what the run rests on -----------------------------------------------------------------------------------------


def test_a_lost_cache_is_made_again(
    straight: RunDir, stopped: RunDir, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEXP_CACHE", str(tmp_path / "empty"))
    train(stopped.path)
    same_outcome(straight, stopped)


def test_a_lost_cache_of_changed_text_is_refused(tmp_path: Path, tiny: list[str], documents: Path) -> None:
    corpus, cache = tmp_path / "corpus", tmp_path / "cache"
    shutil.copytree(documents, corpus)
    words = [*tiny, f"data.paths=[{corpus}/*.py]", f"data.cache_dir={cache}", *WORDS]
    run = planned(tmp_path / "r", words)
    planned_hash = run.plan()["data"]["content_hash"]
    shutil.rmtree(cache)
    next(corpus.glob("*.py")).write_text("x = 1\n" * 500)
    with pytest.raises(UserError, match=f"the data changed: .* expected was {planned_hash}"):
        train(run.path)


def test_a_changed_configuration_is_refused_by_name(stopped: RunDir) -> None:
    text = stopped.config_path.read_text()
    stopped.config_path.write_text(text.replace("grad_clip: 1.0", "grad_clip: 2.0"))
    with pytest.raises(UserError, match=r"optim.grad_clip was 1.0 when the run was planned and is 2.0 now"):
        train(stopped.path)
    stopped.config_path.write_text(text.replace("log_every: 3", "log_every: 4"))
    assert configuration([]).trainer.log_every != 4
    Training(stopped, Stop())  # how it executes is free
