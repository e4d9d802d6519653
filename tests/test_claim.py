"""Claims: one process at a time, told from its dead holders on every machine, whatever a clock says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from modexp import claim
from modexp.errors import RunFailed, UserError
from modexp.runs import RunDir


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours become seconds."""
    monkeypatch.setattr(claim, "BEAT", 0.1)
    monkeypatch.setattr(claim, "STALE", 0.6)
    monkeypatch.setattr(claim, "PATIENCE", 0.1)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process of this machine that holds tmp_path."""
    program = (
        f"import time\nfrom pathlib import Path\nfrom modexp import claim\n"
        f"with claim.claimed(Path({str(tmp_path)!r})):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def of_another_machine(folder: Path, number: int = 1, age: float = 0.0) -> Path:
    """A claim whose lock does not travel to us, touched ``age`` seconds ago."""
    (folder / ".lock").touch()
    path = folder / f".claim-{number}"
    path.write_text(json.dumps({"host": "node7", "machine": "another", "pid": 1}))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_one_process_at_a_time(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    assert claim.state(tmp_path) == "held"
    with pytest.raises(UserError, match=rf"trained by another process \({process.pid} on "), claim.claimed(tmp_path):
        pass
    assert RunDir(tmp_path).state() == "running"


def test_a_killed_process_of_this_machine_is_stale_at_once(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert claim.state(tmp_path) == "stale"
    assert RunDir(tmp_path).state() == "stale"
    with claim.claimed(tmp_path):
        assert [p.name for p in tmp_path.glob(".claim-*")] == [".claim-2"]
        assert claim.state(tmp_path) == "held"
    assert claim.state(tmp_path) == "free"
    assert not list(tmp_path.glob(".claim-*"))


def test_a_claim_is_touched_while_it_is_held(tmp_path: Path) -> None:
    with claim.claimed(tmp_path) as held:
        first = held.path.stat().st_mtime_ns
        time.sleep(0.35)
        assert held.path.stat().st_mtime_ns > first
        held.check()


def test_a_young_claim_of_another_machine_holds_without_a_lock(tmp_path: Path) -> None:
    of_another_machine(tmp_path)
    assert claim.state(tmp_path) == "held"
    with pytest.raises(UserError, match="1 on node7"), claim.claimed(tmp_path):
        pass


def test_an_old_claim_of_another_machine_is_taken_over(tmp_path: Path) -> None:
    of_another_machine(tmp_path, number=3, age=100)
    assert claim.state(tmp_path) == "stale"
    began = time.monotonic()
    with claim.claimed(tmp_path) as held:
        assert time.monotonic() - began > claim.BEAT, "it was watched first"
        assert held.path.name == ".claim-4"


@pytest.mark.parametrize("jump", [3600, -3600])
def test_a_clock_that_jumps_takes_nothing_from_the_living(tmp_path: Path, jump: float) -> None:
    """The disk's clock jumps by an hour; the holder on another machine goes on touching its claim."""
    path = of_another_machine(tmp_path, age=jump)
    over = threading.Event()

    def beat() -> None:
        tick = 0.0
        while not over.wait(claim.BEAT):
            tick += claim.BEAT
            os.utime(path, (time.time() - jump + tick,) * 2)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="trained by another process"), claim.claimed(tmp_path):
            pass
        assert path.exists()
    finally:
        over.set()
        thread.join()


def test_this_machines_clock_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_another_machine(tmp_path)
    monkeypatch.setattr(claim.time, "time", lambda: 0.0)
    assert claim.state(tmp_path) == "held"


def test_of_many_only_one_takes_over(tmp_path: Path) -> None:
    """Machines whose locks do not meet: each thread believes it has the lock."""
    of_another_machine(tmp_path, age=100)
    won, barrier = [], threading.Barrier(16)

    def attempt() -> None:
        barrier.wait()
        with suppress(UserError):
            won.append(claim.take(tmp_path, locked=True))

    threads = [threading.Thread(target=attempt) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert [p.name for p in tmp_path.glob(".claim-*")] == [won[0].path.name]


def test_who_was_taken_for_dead_writes_nothing_more(tmp_path: Path) -> None:
    with claim.claimed(tmp_path) as held:
        held.path.unlink()
        of_another_machine(tmp_path, number=2)
        with pytest.raises(RunFailed, match="taken over by another process on node7"):
            held.check()
    assert (tmp_path / ".claim-2").exists(), "the other's claim stands"


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(claim.fcntl, "flock", unsupported)
    with claim.claimed(tmp_path):
        assert claim.state(tmp_path) == "held"
        with pytest.raises(UserError), claim.claimed(tmp_path):
            pass
    assert claim.state(tmp_path) == "free"


def test_a_disk_that_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    of_another_machine(tmp_path)
    monkeypatch.setattr(claim.os, "utime", read_only)
    assert claim.state(tmp_path) == "held"


def test_a_number_that_came_back_is_not_ones_own(tmp_path: Path) -> None:
    """Another process took over, stopped, and a third one got the first one's number again."""
    with claim.claimed(tmp_path) as held:
        of_another_machine(tmp_path, number=1)
        with pytest.raises(RunFailed, match="taken over by another process on node7"):
            held.check()
    assert (tmp_path / ".claim-1").exists(), "the other's claim stands"
