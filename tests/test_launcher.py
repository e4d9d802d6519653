"""The local launcher: order, devices, memory, other processes, and how it stops. The runs are shell scripts here."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modexp.claim import machine
from modexp.files import write_json
from modexp.runs import RunDir
from modexp.sweep import local, room
from modexp.sweep.local import Launcher, ending
from modexp.sweep.queue import opened, queued

Make = Callable[..., RunDir]
FINISH = """printf '{"status": "done"}' > result.json"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A planned run whose training is a script, run in its directory; ../log takes notes."""
    monkeypatch.setattr(local, "command", lambda run, devices=None: ["sh", "-c", f"cd {run.path} && . ./job.sh"])
    monkeypatch.setattr(local, "POLL", 0.01)
    monkeypatch.setattr(local, "LOOK", 0.02)
    monkeypatch.setattr(local, "free_bytes", lambda slot: math.inf)

    def make(
        name: str, script: str = "", seconds: float | None = 1.0, memory: float = 0.0, flops: float = 1.0
    ) -> RunDir:
        run = RunDir(tmp_path / name)
        run.path.mkdir()
        predicted = {} if seconds is None else {"predicted_seconds": seconds, "predicted_memory_bytes": memory}
        plan = {"plan": {"flops": flops}, "data": {}, "identity": "", "precision": "fp32", "predicted": predicted}
        write_json(run.plan_path, plan)
        note = f'echo "$(date +%s%N) start {name} $CUDA_VISIBLE_DEVICES" >> ../log'
        end = f'{FINISH}; echo "$(date +%s%N) end {name}" >> ../log'
        (run.path / "job.sh").write_text("\n".join([note, script or "sleep 0.05", end]))
        return run

    return make


def ignore(*_: object) -> None:
    pass


def launch(runs: list[RunDir], slots: list[str | None]) -> dict[str, int]:
    ended: dict[str, int] = {}
    Launcher(runs, slots, 1).run(lambda run, code: ended.update({run.name: code}), ignore, ignore)
    return ended


def log(folder: Path) -> list[list[str]]:
    lines = [line.split() for line in (folder / "log").read_text().splitlines()]
    return sorted(lines, key=lambda line: int(line[0]))


def starts(folder: Path) -> list[str]:
    return [line[2] for line in log(folder) if line[1] == "start"]


def test_longest_first_by_prediction_and_by_flops_where_one_is_missing(make: Make, tmp_path: Path) -> None:
    runs = [make(f"r{s}", seconds=s, flops=10 - s) for s in (1, 3, 2)]
    assert launch(runs, [None]) == {"r1": 0, "r2": 0, "r3": 0}
    assert starts(tmp_path) == ["r3", "r2", "r1"]
    (tmp_path / "log").unlink()
    runs = [make(f"f{s}", seconds=s, flops=10 - s) for s in (1, 3)] + [make("f2", seconds=None, flops=8)]
    launch(runs, [None])
    assert starts(tmp_path) == ["f1", "f2", "f3"]


def test_each_on_its_own_device(make: Make, tmp_path: Path) -> None:
    launch([make(f"r{i}", "sleep 0.3") for i in range(3)], ["0", "3", "5"])
    assert {line[3] for line in log(tmp_path) if line[1] == "start"} == {"0", "3", "5"}
    assert [line[1] for line in log(tmp_path)][:3] == ["start"] * 3, "all at once"


def test_memory_is_respected_and_one_always_runs(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "free_bytes", lambda slot: 100.0)
    sizes = {"a": 500.0, "b": 60.0, "c": 60.0, "d": 40.0, "e": 40.0}
    runs = [make(name, "sleep 0.15", seconds=10 - i, memory=size) for i, (name, size) in enumerate(sizes.items())]
    assert set(launch(runs, [None] * 4)) == set(sizes)
    there, most = set(), 0
    for _, what, name, *_ in log(tmp_path):
        there ^= {name}
        if what == "start":
            assert sum(sizes[n] for n in there) <= 100 or there == {name}, there
            most = max(most, len(there))
    assert starts(tmp_path)[0] == "a", "the longest, although it does not fit"
    assert most == 2, "b and d together, but not b and c"


def test_free_memory_is_that_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    whole = room.free_of_machine()
    assert whole > 1e6
    for name, text in {
        "memory.max": "1000",
        "memory.current": "700",
        "memory.stat": "anon 5\ninactive_file 100\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert room.free_of_machine() == 400
    (tmp_path / "memory.max").write_text("max")
    assert room.free_of_machine() > 1e6
    monkeypatch.setenv("PATH", "")
    assert room.free_bytes("0") == math.inf, "nothing tells"


def test_a_failure_is_told_and_the_rest_goes_on(make: Make) -> None:
    runs = [make("bad", "exit 3"), make("dead", "kill -9 $$"), make("good")]
    assert launch(runs, [None]) == {"bad": 3, "dead": -9, "good": 0}
    assert ending(3) == "exit code 3"
    assert ending(-9) == "killed by SIGKILL, out of memory perhaps"


def claim_of_another(run: RunDir) -> Path:
    (run.path / ".lock").touch()
    path = run.path / ".claim-1"
    path.write_text('{"host": "node7", "machine": "another", "pid": 1}')
    return path


def test_a_run_of_another_process_is_waited_for(make: Make, tmp_path: Path) -> None:
    theirs, dropped, mine = make("theirs", seconds=3), make("dropped", seconds=2), make("mine")
    claims = [claim_of_another(run) for run in (theirs, dropped)]

    def elsewhere() -> None:
        write_json(theirs.result_path, {"status": "done"})
        for claim in claims:
            claim.unlink()

    timer = threading.Timer(0.4, elsewhere)
    timer.start()
    assert launch([theirs, dropped, mine], [None]) == {"mine": 0, "theirs": 0, "dropped": 0}
    assert starts(tmp_path) == ["mine", "dropped"], "finished there: not again; given up there: here"


def test_two_launchers_share_the_runs(make: Make, tmp_path: Path) -> None:
    """No run is done twice, none is lost, and both know of all."""
    body = (
        "import time; from pathlib import Path; from modexp.claim import claimed\n"
        "with claimed(Path('.')):\n"
        "    if not Path('result.json').exists():\n"
        "        open('../work', 'a').write(Path.cwd().name + chr(10)); time.sleep(0.1)\n"
        "        Path('result.json').write_text('{\\\"status\\\": \\\"done\\\"}')"
    )
    runs = [make(f"r{i}", f'{sys.executable} -c "{body}" || exit 2; exit 0', seconds=i + 1) for i in range(6)]
    ended: list[dict[str, int]] = [{}, {}]

    def one(i: int) -> None:
        ended[i] = launch([RunDir(run.path) for run in runs], [None])

    threads = [threading.Thread(target=one, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((tmp_path / "work").read_text().split()) == [run.name for run in runs]
    for heard in ended:
        assert heard == dict.fromkeys((run.name for run in runs), 0)


SAVES = "trap 'echo saved > saved; exit 130' TERM; touch ready; while true; do sleep 0.05; done"
DEAF = "trap '' TERM; touch ready; while true; do sleep 0.05; done"


def stop_when_ready(runs: list[RunDir]) -> Launcher:
    launcher = Launcher(runs, [None] * len(runs), 1)
    told: list[int] = []

    def interrupt(_: Launcher) -> None:
        if all((run.path / "ready").exists() for run in runs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launcher.run(ignore, interrupt, lambda launcher: told.append(len(launcher.active)))
    assert told == [len(runs)]
    return launcher


def test_ctrl_c_lets_the_runs_save(make: Make) -> None:
    runs = [make("a", SAVES), make("b", SAVES)]
    assert stop_when_ready(runs).killed == []
    assert all((run.path / "saved").exists() for run in runs)


def test_a_second_ctrl_c_kills_at_once(make: Make) -> None:
    runs = [make("a", DEAF), make("b", DEAF)]
    threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    launcher = stop_when_ready(runs)
    assert time.monotonic() - began < 5
    assert launcher.killed == runs
    assert all(active.process.poll() == -signal.SIGKILL for active in launcher.active)


def test_what_waits_is_known_to_others(tmp_path: Path) -> None:
    with opened(tmp_path) as queue:
        queue.show(["a", "b"])
        assert queued(tmp_path) == {"a", "b"}
        os.utime(queue.path, (1e9, 1e9))
        assert queued(tmp_path) == set(), "of a sweep that died long ago"
    assert not list(tmp_path.glob(".queue-*"))
    write_json(tmp_path / ".queue-x", {"machine": machine(), "pid": 2**22 + 1, "runs": ["c"]})
    assert queued(tmp_path) == set(), "of one that was killed on this machine"
