"""modexp sync, and a W&B server that hangs or dies while a run trains: the run never notices, and loses nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from modexp.files import write_json
from modexp.runs import RunDir
from modexp.train import wandb_tracker
from modexp.train.loop import train
from tests.test_train import MOD, planned
from tests.wandb_server import serving

Cli = Callable[..., int]
Captured = pytest.CaptureFixture[str]
KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    monkeypatch.setattr(wandb_tracker, "FINISH_SECONDS", 2.0)
    yield
    wandb.teardown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    with serving(monkeypatch, KEY) as state:
        yield state


@pytest.fixture
def run(tmp_path: Path, tiny: list[str]) -> RunDir:
    """Planned, and mirrored online."""
    words = [word for word in tiny if not word.startswith("tracker")]
    online = ["tracker=wandb", "tracker.mode=online", "trainer.log_every=5", "study=study"]
    return planned(tmp_path / "runs/study/r", [*words, *MOD, "budget=2e9", *online])


def steps_of(rows: list[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in rows]


def test_what_a_healthy_server_has_is_not_sent_again(
    run: RunDir, server: SimpleNamespace, modexp_cli: Cli, capsys: Captured
) -> None:
    train(run.path)
    assert steps_of(server.rows) == steps_of(run.metrics())
    asked = len(server.asked)
    assert modexp_cli("sync", "study") == 0
    assert "1 complete before" in capsys.readouterr().err
    assert len(server.asked) == asked


@pytest.mark.parametrize("fault", ["hangs", "dies"])
def test_a_server_that_fails_mid_run(
    fault: str,
    run: RunDir,
    server: SimpleNamespace,
    modexp_cli: Cli,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It answers the start and nothing after it; every row waits for modexp sync."""
    plain = wandb_tracker.WandbMirror.log
    strike = server.silent.set if fault == "hangs" else server.die

    def log(self: wandb_tracker.WandbMirror, row: dict[str, Any]) -> None:
        strike()
        begin = time.monotonic()
        plain(self, row)
        assert time.monotonic() - begin < 0.5, "the run waited for the server"

    monkeypatch.setattr(wandb_tracker.WandbMirror, "log", log)
    result = train(run.path)
    assert result["status"] == "done"
    assert result["loss"] == run.metrics()[-1]["val/loss"]
    assert "W&B failed" in (told := capsys.readouterr().err)
    assert "modexp sync sends it later" in told
    assert server.rows == []

    monkeypatch.setattr(wandb_tracker.WandbMirror, "log", plain)
    server.silent.clear()
    with nullcontext(server) if fault == "hangs" else serving(monkeypatch, KEY) as well:
        assert modexp_cli("sync", str(run.path)) == 0
        assert steps_of(well.rows) == steps_of(run.metrics())
        assert well.exit_code == 0
        assert modexp_cli("sync", str(run.path)) == 0
    assert "1 complete before" in capsys.readouterr().err


def test_only_what_the_server_lacks_is_sent(run: RunDir, server: SimpleNamespace, modexp_cli: Cli) -> None:
    train(run.path)
    (run.path / wandb_tracker.SENT).unlink()  # as if the mirror had failed after the second row
    whole = steps_of(run.metrics())
    server.rows.clear()
    server.summary = {"step": whole[1]}
    assert modexp_cli("sync", "study") == 0
    assert steps_of(server.rows) == whole[2:]


def test_an_offline_run_is_sent_when_there_is_a_server(
    run: RunDir, modexp_cli: Cli, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    train(run.path)
    assert f"upload later: modexp sync {run.path}" in capsys.readouterr().err
    assert modexp_cli("sync", "study") == 2
    assert "W&B cannot be reached" in capsys.readouterr().err
    with serving(monkeypatch, KEY) as server:
        assert modexp_cli("sync", "study") == 0
        assert steps_of(server.rows) == steps_of(run.metrics())


def test_without_a_key_it_is_a_sentence(run: RunDir, modexp_cli: Cli, capsys: Captured) -> None:
    run.metrics_path.write_text('{"step": 5}\n')
    write_json(run.result_path, {"status": "done"})
    assert modexp_cli("sync", "study") == 2
    assert "W&B has no key" in capsys.readouterr().err


def test_what_is_not_sent_is_said(
    run: RunDir, modexp_cli: Cli, capsys: Captured, tmp_path: Path, tiny: list[str]
) -> None:
    mute = planned(tmp_path / "runs/study/mute", [*tiny, *MOD, "budget=2e9"])
    mute.metrics_path.write_text('{"step": 5}\n')
    other = planned(tmp_path / "runs/study/other", [*tiny, *MOD, "budget=2e9"])
    other.metrics_path.write_text('{"step": 5}\n')
    with other.locked():
        assert modexp_cli("sync", "study") == 0
    assert "1 without W&B (tracker=none); 1 at work; 1 without a row" in capsys.readouterr().err
