"""launcher=slurm on a real Slurm: small studies end to end, through preemption and a time limit."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modexp.claim import holder
from modexp.runs import RunDir
from tests.slurm_cluster import ask, cluster, missing, wait_until

real = [pytest.mark.slurm, pytest.mark.timeout(600), pytest.mark.skipif(bool(missing()), reason=missing())]


@pytest.fixture
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with cluster(tmp_path_factory.mktemp("slurm")) as config:
        yield config


class Sweeps:
    """A study of two small runs, each of some seconds, in a folder; or of the ``first`` alone."""

    def __init__(self, folder: Path, tiny: list[str], first: bool = False) -> None:
        self.folder, self.study = folder, folder / "runs/small"
        folder.mkdir(exist_ok=True)
        (folder / "small.yaml").write_text(
            "budgets: [2.0e+9]\n"
            f"arms: {{baseline: [model=baseline]{'' if first else ', mod: [model=mod]'}}}\n"
            f"grid: {{points: 1, tokens_per_param: 20.0}}\noverrides: {json.dumps([*tiny, 'trainer.log_every=1'])}\n"
        )

    def start(self, *words: str, launcher: str = "slurm") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "modexp", "sweep", "small.yaml", f"launcher={launcher}", *words]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=self.folder, start_new_session=True, **pipes)

    def __call__(self, *words: str, launcher: str = "slurm") -> str:
        process = self.start(*words, launcher=launcher)
        said, _ = process.communicate()
        assert process.returncode == 0, said
        return said

    def runs(self) -> list[RunDir]:
        return [RunDir(path.parent) for path in sorted(self.study.glob("*/plan.json"))]

    def bits(self) -> dict[str, tuple[Any, ...]]:
        """Of each run: its losses, and a hash of its last weights."""
        found = {}
        for run in self.runs():
            result = run.result() or {}
            (weights,) = sorted(run.checkpoints.glob("*"))[-1].glob("model.safetensors")
            rows = [row["train/loss"] for row in run.metrics()]
            found[run.name] = (result["loss"], rows, hashlib.sha256(weights.read_bytes()).hexdigest())
        return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny: list[str], cache: Path) -> dict[str, tuple[Any, ...]]:
    sweeps = Sweeps(tmp_path_factory.mktemp("undisturbed"), tiny)
    sweeps("launcher.slots=1", launcher="local")
    return sweeps.bits()


def tasks_of(study: Path) -> list[str]:
    return sorted(Path(line).name for file in study.glob("slurm/*.runs") for line in file.read_text().splitlines())


class TestRealSlurm:
    pytestmark = real

    def test_two_sweeps_at_once_make_one_study(
        self, tmp_path: Path, tiny: list[str], one_node: Path, undisturbed: dict[str, Any]
    ) -> None:
        sweeps = Sweeps(tmp_path, tiny)
        both = [sweeps.start(), sweeps.start()]
        said = [process.communicate()[0] for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        assert all("[2/2]" in text and "isoflop.png" in text for text in said), said
        assert tasks_of(sweeps.study) == sorted(undisturbed)
        assert sweeps.bits() == undisturbed
        assert "2 of 2 runs are finished and skipped" in sweeps("--detach")
        assert len(tasks_of(sweeps.study)) == 2

    def test_leaving_and_coming_back(
        self, tmp_path: Path, tiny: list[str], one_node: Path, undisturbed: dict[str, Any]
    ) -> None:
        sweeps = Sweeps(tmp_path, tiny)
        first = sweeps.start()
        wait_until(lambda: any(run.metrics() for run in sweeps.runs()), 60)
        subprocess.run(["scontrol", "hold", "1_1"], check=True)
        os.killpg(first.pid, signal.SIGINT)
        said, _ = first.communicate()
        assert first.returncode == 130
        assert "the study is followed no longer; its jobs go on" in said
        assert "in Slurm's queue or at work already" in sweeps("--detach")
        status = [sys.executable, "-m", "modexp", "status", "small"]
        told = subprocess.run(status, cwd=tmp_path, capture_output=True, text=True).stdout
        assert "queued" in told
        assert "job 1_1 pending: JobHeld" in told
        subprocess.run(["scontrol", "release", "1_1"], check=True)
        watched = subprocess.run([*status, "--watch"], cwd=tmp_path, capture_output=True, text=True)
        assert watched.returncode == 0, watched.stderr
        assert tasks_of(sweeps.study) == sorted(undisturbed)
        assert "2 done" in watched.stderr
        assert sweeps.bits() == undisturbed

    @pytest.mark.parametrize("user_signal", [True, False])
    def test_preempted_runs_end_with_the_same_bits(
        self, user_signal: bool, tmp_path: Path, tiny: list[str], undisturbed: dict[str, Any]
    ) -> None:
        with cluster(tmp_path / "slurm", user_signal=user_signal):
            sweeps = Sweeps(tmp_path, tiny)
            sweeps("--detach")
            wait_until(lambda: any(run.metrics() for run in sweeps.runs()), 60)
            subprocess.run(["sbatch", "-p", "high", "--wrap", "sleep 1", "-o", "/dev/null"], check=True)
            wait_until(lambda: all(run.result() for run in sweeps.runs()), 180)
        logs = "".join(run.log_path.read_text() for run in sweeps.runs())
        assert ("SIGUSR1" if user_signal else "SIGTERM") in logs
        assert re.search(r"was stopped at step [1-9]", logs), "its state was saved in the middle"
        assert "1 restarts before" in logs
        assert sweeps.bits() == undisturbed

    def test_a_time_limit_in_the_middle(
        self, tmp_path: Path, tiny: list[str], one_node: Path, undisturbed: dict[str, Any]
    ) -> None:
        sweeps = Sweeps(tmp_path, tiny, first=True)
        sweeps("--detach", "launcher.hours=0.05", "launcher.signal_seconds=119")
        (run,) = sweeps.runs()
        wait_until(run.metrics, 60)
        job = ask("squeue", "-h", "-o", "%F").strip()
        trainer = holder(run.path)["pid"]
        os.kill(trainer, signal.SIGSTOP)  # however fast the machine is, it will not be done before Slurm looks
        # of its 3 minutes the job has 61 s until the warning; with 2 it has one, as soon as Slurm looks, every 30 s
        subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=2"], check=True)
        wait_until(lambda: "SIGUSR1" in run.log_path.read_text(), 90)
        subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=3"], check=True)
        os.kill(trainer, signal.SIGCONT)
        wait_until(run.result, 120)
        told = run.log_path.read_text()
        assert re.search(r"was stopped at step [1-9]", told)
        assert "queues itself again" in told
        assert "1 restarts before" in told
        assert sweeps.bits() == {run.name: undisturbed[run.name]}

    def test_two_processes_of_a_run_are_stopped_and_go_on(self, tmp_path: Path, tiny: list[str]) -> None:
        alone, sweeps = Sweeps(tmp_path / "alone", tiny, first=True), Sweeps(tmp_path / "pair", tiny, first=True)
        alone("launcher.slots=1", "optim.batch_size=2", launcher="local")
        with cluster(tmp_path / "slurm", cpus=2):
            sweeps("--detach", "trainer.devices=2", "optim.batch_size=2")
            (run,) = sweeps.runs()
            wait_until(run.metrics, 90)
            assert ask("squeue", "-h", "-o", "%C").strip() == "2", "CPUs of the job"
            leader = holder(run.path)["pid"]
            os.kill(leader, signal.SIGSTOP)  # it will not be done before it is preempted
            subprocess.run(["sbatch", "-p", "high", "--wrap", "sleep 1", "-o", "/dev/null"], check=True)
            wait_until(lambda: "SIGUSR1" in run.log_path.read_text(), 60)
            os.kill(leader, signal.SIGCONT)
            wait_until(run.result, 180)
        told = run.log_path.read_text()
        assert re.search(r"was stopped at step [1-9]", told), "its state was saved in the middle"
        assert "1 restarts before" in told
        result = run.result()
        assert result
        assert result["processes"] == 2
        (expected,) = alone.bits().values()
        assert result["loss"] == pytest.approx(expected[0], abs=1e-4)

    def test_a_branch_starts_when_its_trunk_has_ended(self, tmp_path: Path, tiny: list[str], one_node: Path) -> None:
        sweeps = Sweeps(tmp_path, tiny, first=True)
        said = sweeps("--budget", "2e9,3e9", "schedule=wsd", "share_trunk=on", "--check-branch")
        assert "the weights are the same to the bit" in said
        (branch,) = [run for run in sweeps.runs() if run.origin()]
        asked = [text for path in sweeps.study.glob("slurm/*.sh") if "afterany" in (text := path.read_text())]
        assert len(asked) == 1
        assert len(sweeps.runs()) == 2
        assert (branch.result() or {})["flops_shared"] > 0, "its trunk trained that"
        assert "starts on" in branch.log_path.read_text()
