"""The W&B mirror: what it writes, read back by wandb's own inspector, and that it can never stop a run."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from modexp.config.train import NoTracker, TrackerConfig, WandbTracker
from modexp.train import trackers, wandb_tracker
from modexp.train.trackers import RunInfo
from tests.wandb_server import serving

KEY = "0123456789abcdef" * 2 + "01234567"  # 40 characters, as wandb's keys have
ROWS = [
    {"step": 10 * i, "tokens": 640 * i, "flops": 1e9 * i, "train/loss": 5.0 - i, "val/loss": 5.5 - i}
    for i in range(1, 5)
]
OFFLINE = WandbTracker(project="moe", mode="offline", tags=["mod", "1e12"])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home without a key, an environment without W&B, and no wandb service left over for the next test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_SILENT", "false")  # the tracker has to see to it itself
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    wandb.teardown()


@pytest.fixture
def info(tmp_path: Path) -> RunInfo:
    config = {"model": {"kind": "mod", "d_model": 64, "every": [2, 4]}, "plan": {"steps": 40}}
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    return RunInfo(run_dir, "0a1b2c3d4e5f", "mod-1e12-58k", "isoflop", "mod", config)


def records(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """Records of the one W&B segment that fits, by kind, as ``wandb leet inspect`` reads them."""
    (path,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    found: dict[str, list[dict[str, Any]]] = {}
    for line in subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines():
        record = json.loads(line)
        found.setdefault(record["type"], []).append(record[record["type"]])
    return found


def history(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Logged rows without what wandb adds (_step, _runtime, _timestamp)."""
    return [{key: value for key, value in item.items() if not key.startswith("_")} for item in items]


def no_warning(message: str) -> None:
    raise AssertionError(f"unexpected warning: {message}")


def mirror(config: TrackerConfig, info: RunInfo, rows: list[dict[str, Any]], warn: Callable[[str], None]) -> None:
    tracker = trackers.start(config, info, warn)
    for row in rows:
        tracker.log(row)
    tracker.finish({"val_loss": 1.5, "routing": {"entropy": 0.5}}, exit_code=3)


def write_metrics(info: RunInfo, rows: list[dict[str, Any]], torn: str = "") -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (info.run_dir / "metrics.jsonl").write_text(lines + torn)


# What is written


def test_an_offline_run_holds_what_wandb_users_expect(info: RunInfo, capfd: pytest.CaptureFixture[str]) -> None:
    mirror(OFFLINE, info, ROWS, no_warning)

    assert capfd.readouterr() == ("", "")
    found = records(info.run_dir)
    (run,) = found["run"]
    assert {key: run[key] for key in ("run_id", "display_name", "run_group", "job_type", "project", "tags")} == {
        "run_id": "0a1b2c3d4e5f",
        "display_name": "mod-1e12-58k",
        "run_group": "isoflop",
        "job_type": "mod",
        "project": "moe",
        "tags": ["mod", "1e12"],
    }
    config = run["config"]["update"]
    assert {key: config[key] for key in info.config} == info.config
    assert history([row["item"] for row in found["history"]]) == ROWS
    axes = {m.get("name") or m["glob_name"]: m.get("step_metric") for m in found["metric"]}
    assert axes == dict.fromkeys(("step", "tokens", "flops")) | dict.fromkeys(
        ("train/*", "val/*", "perf/*", "routing/*"), "tokens"
    )
    summary: dict[str, Any] = {}
    for update in found["summary"]:
        summary |= update["update"]
    assert summary["val_loss"] == 1.5
    assert summary["routing"] == {"entropy": 0.5}
    assert summary["val/loss"] == ROWS[-1]["val/loss"]
    assert [end["exit_code"] for end in found["exit"]] == [3]  # beside it a running time, on a slow machine


def test_a_resumed_offline_run_has_every_row_once_in_its_new_segment(info: RunInfo) -> None:
    write_metrics(info, ROWS[:2], torn='{"step": 30, "tok')
    mirror(OFFLINE, info, ROWS[2:], no_warning)
    assert history([row["item"] for row in records(info.run_dir)["history"]]) == ROWS


@pytest.mark.parametrize("config", [NoTracker(), WandbTracker(mode="auto")], ids=["none", "disabled"])
def test_without_a_tracker_nothing_is_written(
    config: TrackerConfig, info: RunInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    write_metrics(info, ROWS)
    mirror(config, info, ROWS, no_warning)
    assert [path.name for path in info.run_dir.iterdir()] == ["metrics.jsonl"]


# Online, against a server on this machine


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    with serving(monkeypatch, KEY) as state:
        yield state


def test_an_online_run_that_begins_anew_replaces_what_the_server_has(info: RunInfo, server: SimpleNamespace) -> None:
    server.summary = {"step": 40}
    mirror(WandbTracker(), info, ROWS, no_warning)
    assert history(server.rows) == ROWS
    assert server.exit_code == 3
    assert "RunResumeStatus" not in server.asked


def test_a_resumed_online_run_sends_only_what_the_server_lacks(info: RunInfo, server: SimpleNamespace) -> None:
    # The server got rows 10 and 20; row 30 was lost on the way, and 40 is new.
    server.summary = {"step": 20, "tokens": 1280}
    write_metrics(info, ROWS[:3])
    mirror(WandbTracker(), info, ROWS[3:], no_warning)
    assert history(server.rows) == ROWS[2:]
    assert [row["_step"] for row in server.rows] == [3, 4]  # continues the server's count, so none is dropped


def test_a_run_cut_back_behind_the_server_does_not_show_a_step_twice(info: RunInfo, server: SimpleNamespace) -> None:
    server.summary = {"step": 30}
    write_metrics(info, ROWS[:1])  # the checkpoint was at step 10; steps 20 and 30 are trained again
    mirror(WandbTracker(), info, ROWS[1:], no_warning)
    assert history(server.rows) == ROWS[3:]


def test_an_unreachable_server_costs_one_warning_and_the_run_goes_offline(
    info: RunInfo, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    write_metrics(info, ROWS[:2])
    warnings: list[str] = []
    began = time.monotonic()
    mirror(WandbTracker(), info, ROWS[2:], warnings.append)
    seconds = time.monotonic() - began

    assert seconds < 6, f"fell back after {seconds:.1f} s with a timeout of 1 s"
    assert len(warnings) == 1, warnings
    assert "127.0.0.1:9" in warnings[0] or "deadline" in warnings[0], warnings
    assert f"modexp sync {info.run_dir}" in warnings[0]
    assert history([row["item"] for row in records(info.run_dir)["history"]]) == ROWS
    assert capfd.readouterr() == ("", "")


def test_the_built_in_timeout_is_short(monkeypatch: pytest.MonkeyPatch, info: RunInfo) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    mirror(WandbTracker(mode="online"), info, ROWS, no_warning)
    assert fake.settings["init_timeout"] <= 15


# Which mode


@pytest.mark.parametrize(
    ("configured", "environment", "netrc", "settings", "expected"),
    [
        ("auto", {}, "", "", "offline"),
        ("auto", {"WANDB_API_KEY": KEY}, "", "", "online"),
        (
            "auto",
            {"WANDB_API_KEY": "of the wrong form"},
            "",
            "",
            "online",
        ),  # init then says what is wrong with it
        ("auto", {}, f"machine 127.0.0.1:9 login user password {KEY}", "", "online"),
        ("auto", {}, f"machine example.org login user password {KEY}", "", "offline"),
        ("auto", {"WANDB_MODE": "online"}, "", "", "online"),
        ("auto", {"WANDB_MODE": "offline", "WANDB_API_KEY": KEY}, "", "", "offline"),
        ("auto", {"WANDB_MODE": "dryrun", "WANDB_API_KEY": KEY}, "", "", "offline"),
        ("auto", {"WANDB_MODE": "disabled", "WANDB_API_KEY": KEY}, "", "", "disabled"),
        ("auto", {"WANDB_API_KEY": KEY}, "", "mode = offline", "offline"),  # after `wandb offline`
        ("online", {"WANDB_MODE": "offline"}, "", "", "online"),
        ("offline", {"WANDB_MODE": "online", "WANDB_API_KEY": KEY}, "", "", "offline"),
    ],
)
def test_mode(
    configured: str,
    environment: dict[str, str],
    netrc: str,
    settings: str,
    expected: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if netrc:
        (home / ".netrc").write_text(netrc + "\n")
        (home / ".netrc").chmod(0o600)
    if settings:
        (home / ".config/wandb").mkdir(parents=True)
        (home / ".config/wandb/settings").write_text(f"[default]\n{settings}\n")
    began = time.monotonic()
    assert wandb_tracker.resolve_mode(configured) == expected
    seconds = time.monotonic() - began
    assert seconds < 2, f"{seconds:.1f} s: it asked the server"


def test_a_terminal_and_no_key_is_never_a_question(info: RunInfo, home: Path) -> None:
    # mode=online without a key is where wandb.init asks. All that a terminal would show comes out of the pty.
    script = f"""
from pathlib import Path
from modexp.config.train import WandbTracker
from modexp.train.trackers import RunInfo, start
tracker = start(WandbTracker(mode="online"), RunInfo(Path({str(info.run_dir)!r}), "id", "n", "s", "a", {{}}),
                Path("warnings").open("a").write)
tracker.log({{"step": 1, "tokens": 1, "flops": 1.0}})
tracker.finish({{}})
"""
    (home / ".config/wandb").mkdir(parents=True)
    (home / ".config/wandb/settings").write_text("[default]\nproject = other\n")  # wandb would announce that
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    try:
        assert process.wait(timeout=30) == 0
        assert read_all(ours) == b""
    finally:
        process.kill()
        os.close(ours)
    assert "No API key configured" in (home / "warnings").read_text()
    assert len(records(info.run_dir)["history"]) == 1


def read_all(terminal: int) -> bytes:
    output = b""
    try:
        while chunk := os.read(terminal, 4096):
            output += chunk
    except OSError:  # how a pty says that its other end is closed
        pass
    return output


# What breaks


class FakeWandb(SimpleNamespace):
    """The calls of wandb that the tracker makes, written down; the one that ``breaks`` raises ``error``."""

    def __init__(self, breaks: str = "", error: BaseException | None = None) -> None:
        self.calls: list[str] = []
        self.settings: dict[str, Any] = {}

        def call(name: str, value: Any = None) -> Callable[..., Any]:
            def called(*_: Any, **__: Any) -> Any:
                self.calls.append(name)
                if name == breaks and error:
                    raise error
                return value

            return called

        run = SimpleNamespace(resumed=False, summary=SimpleNamespace(update=call("summary", None)))
        run.log, run.finish, run.define_metric = call("log"), call("finish"), call("define_metric")
        super().__init__(init=call("init", run), teardown=call("teardown"), Settings=self.settings.update)


@pytest.mark.parametrize("breaks", ["init", "define_metric", "log", "summary", "finish", "teardown"])
@pytest.mark.parametrize("error", [RuntimeError("out of\norder"), SystemExit(1)], ids=["exception", "exit"])
def test_a_wandb_that_raises_leaves_the_run_alone(
    breaks: str, error: BaseException, info: RunInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb(breaks, error)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    write_metrics(info, ROWS[:1])
    warnings: list[str] = []
    mirror(OFFLINE, info, ROWS[1:], warnings.append)
    assert fake.calls.count(breaks) >= 1
    assert len(warnings) == (0 if breaks == "teardown" else 1), warnings
    if breaks == "log":
        assert fake.calls.count("log") == 1, "it went on after the first failure"
        assert "finish" not in fake.calls


def test_a_missing_wandb_leaves_the_run_alone(info: RunInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    warnings: list[str] = []
    mirror(WandbTracker(), info, ROWS, warnings.append)
    assert len(warnings) == 1, warnings
    assert "wandb" in warnings[0]


def test_ctrl_c_is_not_swallowed(info: RunInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb("log", KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        mirror(OFFLINE, info, ROWS, no_warning)


def test_a_killed_wandb_service_leaves_the_run_alone(info: RunInfo) -> None:
    script = f"""
import os, signal, time
from pathlib import Path
from modexp.config.train import WandbTracker
from modexp.train.trackers import RunInfo, start
warnings = []
tracker = start(WandbTracker(mode="offline"), RunInfo(Path({str(info.run_dir)!r}), "id", "n", "s", "a", {{}}),
                warnings.append)
children = Path(f"/proc/self/task/{{os.getpid()}}/children").read_text().split()
assert len(children) == 1, children
os.kill(int(children[0]), signal.SIGKILL)
for step in range(50):
    tracker.log({{"step": step, "tokens": step, "flops": 1.0}})
    time.sleep(0.01)
tracker.finish({{}})
assert len(warnings) == 1, warnings
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
