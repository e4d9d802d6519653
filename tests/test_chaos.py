"""A study whose processes are killed at random, the sweep included, ends with the table of the undisturbed study."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from modexp.runs import RunDir, run_dirs
from tests.test_train import rows, weights

KILLS = 50
KEPT = ("status", "loss", "loss_topk", "train_loss", "steps", "sequences", "tokens", "flops_consumed", "validation")
PAUSE = 1 / 8  # from kill to kill on average, of what the undisturbed study takes: about the start of a run
AT_WORK = 1 / 2  # of the kills, those that wait for a run at work: on a slow machine a sweep may never come so far


def write_study(folder: Path, tiny: list[str]) -> None:
    folder.mkdir()
    overrides = [*tiny, "optim.batch_size=4", "trainer.checkpoint_minutes=0.001", "trainer.num_evals=3"]
    (folder / "small.yaml").write_text(
        "budgets: [2.0e+10]\n"
        "arms: {baseline: [model=baseline], mod: [model=mod], threshold: [model=mod_threshold]}\n"
        "grid: {points: 1, span: 1.0}\n"
        f"overrides: {json.dumps(overrides)}\n"
    )


def sweep(folder: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "modexp", "sweep", "small.yaml", "launcher.slots=2"]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def at_work(folder: Path) -> list[int]:
    """Living processes that hold a run."""
    pids = []
    for path in folder.glob("runs/small/*/.claim-*"):
        with contextlib.suppress(OSError, ValueError):
            pids.append(json.loads(path.read_text())["pid"])
    return [pid for pid in pids if is_of(folder, pid)]


def is_of(folder: Path, pid: int) -> bool:
    """Whether a process of the study in ``folder`` has this number."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == folder
    except OSError:
        return False


def kill(pid: int, folder: Path) -> bool:
    """Whether there was such a process."""
    if not is_of(folder, pid):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return True


def finished(folder: Path) -> int:
    return len(list(folder.glob("runs/small/*/result.json")))


def table(folder: Path) -> dict[str, Any]:
    """All that is no measurement of time or memory."""
    found = {}
    for run in run_dirs(folder / "runs/small"):
        result = run.result()
        assert result is not None, run.name
        found[run.name] = ({key: result[key] for key in KEPT}, rows(run), digest(run))
    return found


def digest(run: RunDir) -> str:
    content = hashlib.sha256()
    for name, tensor in sorted(weights(run).items()):
        content.update(name.encode() + tensor.numpy().tobytes())
    return content.hexdigest()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="finds processes under /proc")
def test_fifty_kills(tmp_path: Path, tiny: list[str]) -> None:
    quiet, chaos = tmp_path / "quiet", tmp_path / "chaos"
    write_study(quiet, tiny)
    began = time.monotonic()
    assert sweep(quiet).wait() == 0
    whole = time.monotonic() - began
    expected = table(quiet)
    assert len(expected) == 3

    rng, kills, of_runs, studies = random.Random(0), 0, 0, 1
    process: subprocess.Popen[bytes] | None = None
    began = time.monotonic()
    try:
        while kills < KILLS:
            if process is None:
                write_study(chaos, tiny)
                process = sweep(chaos)
            wait = rng.random() < AT_WORK
            while wait and process.poll() is None and not at_work(chaos):
                time.sleep(0.1)
            time.sleep(rng.uniform(0, 2 * PAUSE * whole))
            if process.poll() is not None:
                if finished(chaos) == len(expected):  # under the knife: another one
                    assert table(chaos) == expected
                    studies += 1
                    process, chaos = None, tmp_path / f"chaos{studies}"
                    continue
                process = sweep(chaos)
                continue
            runs = at_work(chaos)
            victim = rng.choice([process.pid, *runs])
            if kill(victim, chaos):
                kills += 1
                of_runs += victim != process.pid
        if process is not None:
            process.wait()
            while (code := sweep(chaos).wait()) != 0:  # a run killed last counts as failed in the sweep that saw it
                assert code == 1
            assert table(chaos) == expected
            assert not list(chaos.glob("runs/small/*/.claim-*"))
    finally:  # of a test that failed midway nothing is left running
        for pid in [*([process.pid] if process else []), *at_work(chaos)]:
            kill(pid, chaos)
    seconds = time.monotonic() - began
    print(f"{kills} kills, {of_runs} of runs, in {studies} studies: {seconds:.0f} s; undisturbed {whole:.0f} s")
    assert of_runs > KILLS / 5
