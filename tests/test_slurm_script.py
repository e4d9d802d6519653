"""launcher=slurm: settings, what a job asks for, and the batch script under bash."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modexp.config.root import from_tree, to_tree
from modexp.config.slurm import SlurmConfig
from modexp.errors import UserError
from modexp.files import write_json
from modexp.runs import RunDir
from modexp.sweep import slurm
from modexp.sweep.slurm import Resources, arrays, power_of_two, resources, script
from tests.slurm_cluster import wait_until


def planned(study: Path, name: str, seconds: float = 600.0, memory: float = 1e9, flops: float = 1e12) -> RunDir:
    """A run directory, as far as the launcher reads it."""
    run = RunDir(study / name)
    predicted = {"predicted_seconds": seconds, "predicted_memory_bytes": memory} if seconds else {}
    plan = {"flops": flops, "params_total": 1_000_000_000, "steps": 10}
    write_json(run.plan_path, {"plan": plan, "data": {}, "identity": "", "precision": "", "predicted": predicted})
    return run


# ---- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"partition": "two words"}, "launcher.partition='two words' is not one word"),
        ({"account": ""}, "launcher.account='' is not one word"),
        ({"gpus": 2}, "launcher.gpus=2 is neither 0 nor 1"),
        ({"hours": 0.05}, "launcher.hours=0.05 is no longer than launcher.signal_seconds=120 and the minute"),
        ({"memory_gb": 0}, "launcher.memory_gb=0 is not positive"),
        ({"max_parallel": 0}, "launcher.max_parallel=0 is not positive"),
        ({"max_restarts": -1}, "launcher.max_restarts=-1 is negative"),
        ({"signal_seconds": 0}, "launcher.signal_seconds=0 is not positive"),
        ({"extra": ["exclusive"]}, "launcher.extra='exclusive' is not an option of sbatch"),
        ({"extra": ["#SBATCH --array=0-3"]}, "is set by modexp for every job"),
        ({"extra": ["-p high"]}, "has a setting of its own"),
    ],
)
def test_wrong_settings_are_sentences(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=re.escape(text)):
        SlurmConfig(**settings)


def test_settings_survive_the_disk() -> None:
    from modexp.cli.compose import configuration

    config = configuration(["launcher=slurm", "launcher.partition=gpu", "launcher.setup=['module load cuda']"])
    assert config.launcher == SlurmConfig(partition="gpu", setup=["module load cuda"])
    assert from_tree(to_tree(config)) == config


# ---- resources -----------------------------------------------------------------------------------------------


def test_resources_follow_the_prediction_or_the_settings(tmp_path: Path) -> None:
    run = planned(tmp_path, "a", seconds=1200, memory=3 * 2**30)
    assert resources(run, SlurmConfig(), 4) == Resources(4, 0, 64, 8192)  # 2 x 20 + 5 + 3 minutes, 4.5 GiB
    fixed = SlurmConfig(hours=1.5, memory_gb=3)
    assert resources(run, fixed, 1) == Resources(1, 0, 90, 3072)
    gpu = resources(run, SlurmConfig(gpus=1), 1)  # of the host: 1.5 x (8e9 + 12 x 1e9) bytes = 28,610 MiB
    assert (gpu.gpus, gpu.memory_mib) == (1, 32768)
    # of two processes: half the time, twice the rest: 2 x 10 + 5 + 3 minutes, 1.5 x 6 GiB
    assert resources(run, SlurmConfig(), 4, 2) == Resources(8, 0, 32, 16384, 2)
    assert resources(run, SlurmConfig(gpus=1), 1, 4).gpus == 4
    blind = planned(tmp_path, "b", seconds=0)
    with pytest.raises(UserError, match=r"nothing predicts the time of run b.*\n.*launcher.hours"):
        resources(blind, SlurmConfig(memory_gb=1), 1)
    with pytest.raises(UserError, match=r"nothing predicts the memory of run b"):
        resources(blind, SlurmConfig(hours=1), 1)


@pytest.mark.parametrize(("x", "least"), [(0.3, 1), (1, 1), (1.1, 2), (512, 512), (513, 1024)])
def test_powers_of_two(x: float, least: int) -> None:
    assert power_of_two(x) == least


def test_one_array_for_each_kind_of_resources(tmp_path: Path) -> None:
    short = [planned(tmp_path, f"s{i}", 60, flops=1e12 + i) for i in range(3)]
    long = [planned(tmp_path, f"l{i}", 36_000, flops=1e15) for i in range(2)]
    found = arrays([*short, *long], SlurmConfig(), 1)
    assert [[run.name for run in mine] for _, mine in found] == [["l0", "l1"], ["s2", "s1", "s0"]]
    ((asked, mine),) = arrays([*short, *long], SlurmConfig(max_parallel=2), 1)
    assert (asked, len(mine)) == (found[0][0], 5)


def test_arrays_are_no_longer_than_slurm_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "LONGEST_ARRAY", 4)
    runs = [planned(tmp_path, f"r{i}") for i in range(10)]
    found = arrays(runs, SlurmConfig(), 1)
    assert [len(mine) for _, mine in found] == [4, 4, 2]
    assert sorted(run.name for _, mine in found for run in mine) == sorted(run.name for run in runs)


# ---- the batch script, under bash ----------------------------------------------------------------------------


def test_options_of_the_script(tmp_path: Path) -> None:
    settings = SlurmConfig(
        partition="gpu", account="me", qos="long", constraint="a100|h100", gpus=1, max_parallel=3, signal_seconds=90,
        extra=["--exclusive", "#SBATCH --nice=5"], setup=["module load cuda", "export A=1"],
    )  # fmt: skip
    text = script("study-1", Path("/disk/my 90% runs"), 7, Resources(4, 1, 60, 2048), settings)
    options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert set(options) == {
        "--job-name=study-1", "--array=0-6%3", '--output="/disk/my 90%% runs/study-1.log"', "--open-mode=append",
        "--requeue", "--signal=B:USR1@90", "--ntasks=1", "--cpus-per-task=4", "--time=60", "--mem=2048M",
        "--gpus-per-node=1", "--partition=gpu", "--account=me", "--qos=long", "--constraint=a100|h100", "--exclusive",
        "--nice=5",
    }  # fmt: skip
    assert "\nmodule load cuda\nexport A=1\n" in text
    assert shlex.quote("/disk/my 90% runs/study-1.runs") in text


class Bash:
    """A batch script beside stand-ins: a process in place of modexp train, an scontrol that writes down its words."""

    def __init__(
        self,
        folder: Path,
        python: str,
        settings: SlurmConfig | None = None,
        restarts: int = 0,
        processes: int = 1,
        **more: str,
    ) -> None:
        self.folder, self.run = folder, planned(folder, "run one")
        stand_in = folder / "python"
        stand_in.write_text(f'#!/bin/bash\nrun="${{@: -1}}"\n{python}\n')
        (folder / "scontrol").write_text(f'#!/bin/bash\necho "$@" >>{folder}/asked\n')
        for program in (stand_in, folder / "scontrol"):
            program.chmod(0o755)
        (folder / "a.runs").write_text(f"elsewhere\n{self.run.path}\n")
        text = script("a", folder, 2, Resources(4, 0, 60, 1024, processes), settings or SlurmConfig())
        (folder / "a.sh").write_text(text.replace(sys.executable, str(stand_in)))
        task = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "9"}
        environment = {**os.environ, **task, "PATH": f"{folder}:{os.environ['PATH']}"}
        if restarts:
            environment["SLURM_RESTART_COUNT"] = str(restarts)
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(["bash", folder / "a.sh"], env={**environment, **more}, **pipes)

    def signal(self, number: int) -> None:
        wait_until(lambda: "at work" in self.log())
        self.process.send_signal(number)

    def end(self) -> int:
        self.process.communicate(timeout=20)
        return self.process.returncode

    def log(self) -> str:
        return self.run.log_path.read_text() if self.run.log_path.exists() else ""

    def asked(self) -> str:
        file = self.folder / "asked"
        return file.read_text() if file.exists() else ""


SAVES = "trap 'echo saved by $1; exit 130' {signals}\necho at work\nwhile :; do sleep .05; done"


def test_a_run_that_ends_is_left_alone(tmp_path: Path) -> None:
    bash = Bash(tmp_path, 'echo "$@"; echo $OMP_NUM_THREADS thread; echo {} >"$run/result.json"')
    assert bash.end() == 0
    assert f"-m modexp train --run {bash.run.path}\n4 thread\n" in bash.log()
    assert "job 7_1: starts on" in bash.log()
    assert not bash.asked()
    assert not bash.run.error_path.exists()


def test_several_processes_are_torchruns_which_passes_the_warning_on(tmp_path: Path) -> None:
    done = 'echo "$@"; echo $OMP_NUM_THREADS thread, $TORCH_ELASTIC_SHUTDOWN_TIMEOUT s; echo {} >"$run/result.json"'
    bash = Bash(tmp_path, done, processes=2)
    assert bash.end() == 0
    said = bash.log()
    assert "-m torch.distributed.run --standalone --nproc-per-node=2 --signals-to-handle=SIGTERM,SIGINT" in said
    assert f",SIGUSR1 -m -- modexp train --run {bash.run.path}\n2 thread, 120 s\n" in said


def test_a_run_whose_directory_is_gone_is_not_begun(tmp_path: Path) -> None:
    bash = Bash(tmp_path, "echo at work", SLURM_ARRAY_TASK_ID="0")
    assert bash.process.communicate(timeout=20)[0] == "task 0: there is no run directory 'elsewhere'\n"
    assert bash.process.returncode == 1


def test_a_warning_reaches_the_run_which_saves_and_is_queued_again(tmp_path: Path) -> None:
    bash = Bash(tmp_path, SAVES.format(signals="USR1"))
    bash.signal(signal.SIGUSR1)
    assert bash.end() == 130
    assert "saved by" in bash.log()
    assert bash.asked() == "requeue 9\n"
    assert not bash.run.error_path.exists()


def test_a_run_that_ends_under_the_warning_is_not_queued_again(tmp_path: Path) -> None:
    bash = Bash(tmp_path, SAVES.format(signals="USR1").replace("exit 130", 'echo {} >"$run/result.json"; exit 0'))
    bash.signal(signal.SIGUSR1)
    assert bash.end() == 0
    assert not bash.asked()


def test_a_cancelled_run_saves_and_is_left_to_slurm(tmp_path: Path) -> None:
    bash = Bash(tmp_path, SAVES.format(signals="TERM"))
    bash.signal(signal.SIGTERM)
    assert bash.end() == 130
    assert "saved by" in bash.log()
    assert not bash.asked()
    assert not bash.run.error_path.exists()


@pytest.mark.parametrize(
    ("python", "code", "error"),
    [
        ("kill -9 $$", 137, "the process ended with exit code 137 in job 7_1\n"),
        ('echo why >"$run/error.txt"; exit 1', 1, "why\n"),
        ("exit 2", 2, ""),  # another process trains it
    ],
)
def test_a_failure_is_told_in_the_run_and_not_tried_again(python: str, code: int, error: str, tmp_path: Path) -> None:
    bash = Bash(tmp_path, python)
    assert bash.end() == code
    assert (bash.run.error_path.read_text() if bash.run.error_path.exists() else "") == error
    assert not bash.asked()


def test_restarts_are_bounded(tmp_path: Path) -> None:
    last = Bash(tmp_path / "last", "exit 0", SlurmConfig(max_restarts=3), restarts=3)
    assert last.end() == 0
    bash = Bash(tmp_path / "over", "echo at work", SlurmConfig(max_restarts=3), restarts=4)
    assert bash.end() == 1
    assert "at work" not in bash.log()
    assert bash.run.error_path.read_text() == "Slurm restarted this run's job 3 times, which is launcher.max_restarts\n"
