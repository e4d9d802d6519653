"""launcher=slurm: the batch script under bash, the queue by stand-ins for Slurm's programs, and a real Slurm."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modexp.cli.follow import follow
from modexp.cli.slurm import mark_queued
from modexp.cli.watch import Watch
from modexp.config.root import from_tree, to_tree
from modexp.config.slurm import SlurmConfig
from modexp.errors import UserError
from modexp.files import write_json
from modexp.runs import RunDir
from modexp.sweep import slurm
from modexp.sweep.slurm import Resources, arrays, power_of_two, queued, resources, script, submit
from tests.slurm_cluster import ask, cluster, missing, wait_until

Cli = Callable[..., int]
Captured = pytest.CaptureFixture[str]


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

    def __init__(self, folder: Path, python: str, settings: SlurmConfig | None = None, restarts: int = 0) -> None:
        self.folder, self.run = folder, planned(folder, "run one")
        stand_in = folder / "python"
        stand_in.write_text(f'#!/bin/bash\nrun="$5"\n{python}\n')
        (folder / "scontrol").write_text(f'#!/bin/bash\necho "$@" >>{folder}/asked\n')
        for program in (stand_in, folder / "scontrol"):
            program.chmod(0o755)
        (folder / "a.runs").write_text(f"elsewhere\n{self.run.path}\n")
        text = script("a", folder, 2, Resources(1, 0, 60, 1024), settings or SlurmConfig())
        (folder / "a.sh").write_text(text.replace(sys.executable, str(stand_in)))
        task = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "9"}
        environment = {**os.environ, **task, "PATH": f"{folder}:{os.environ['PATH']}"}
        if restarts:
            environment["SLURM_RESTART_COUNT"] = str(restarts)
        self.process = subprocess.Popen(["bash", folder / "a.sh"], env=environment)

    def signal(self, number: int) -> None:
        wait_until(lambda: "at work" in self.log())
        self.process.send_signal(number)

    def end(self) -> int:
        return self.process.wait(20)

    def log(self) -> str:
        return self.run.log_path.read_text() if self.run.log_path.exists() else ""

    def asked(self) -> str:
        file = self.folder / "asked"
        return file.read_text() if file.exists() else ""


SAVES = "trap 'echo saved by $1; exit 130' {signals}\necho at work\nwhile :; do sleep .05; done"


def test_a_run_that_ends_is_left_alone(tmp_path: Path) -> None:
    bash = Bash(tmp_path, 'echo "$@"; echo $OMP_NUM_THREADS thread; echo {} >"$run/result.json"')
    assert bash.end() == 0
    assert f"-m modexp train --run {bash.run.path}\n1 thread\n" in bash.log()
    assert "job 7_1: starts on" in bash.log()
    assert not bash.asked()
    assert not bash.run.error_path.exists()


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


# ---- the queue, by stand-ins for sbatch and squeue -----------------------------------------------------------


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A queue in which all that is submitted waits: a folder of stand-ins, and of ``jobs``, their scripts by number."""
    folder = tmp_path / "bin"
    (folder / "jobs").mkdir(parents=True)
    (folder / "sbatch").write_text(
        f'#!/bin/bash\nsleep .2\ncd {folder}/jobs\nn=$(($(ls | wc -l) + 1))\ncp "${{!#}}" $n\necho "$n;cluster"\n'
    )
    (folder / "squeue").write_text(
        f"""#!{sys.executable}
import pathlib, re, sys
wanted = next(w for w in sys.argv if w.startswith("--name=")).partition("=")[2].split(",")
for job in sorted(pathlib.Path("{folder}/jobs").iterdir()):
    text = job.read_text()
    name = re.search("job-name=(.*)", text)[1]
    for i in range(int(re.search("array=0-([0-9]+)", text)[1]) + 1):
        if name in wanted:
            print(f"{{name}}|{{job.name}}|{{i}}|PENDING|Resources")
"""
    )
    for name in ("sbatch", "squeue"):
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_nothing_is_queued_twice(tmp_path: Path, programs: Path) -> None:
    study = tmp_path / "runs/my study"
    runs = [planned(study, f"r{i}") for i in range(5)]
    write_json(runs[0].result_path, {"status": "done"})
    jobs: list[str] = []
    with runs[1].locked():
        sweeps = [threading.Thread(target=lambda: jobs.extend(submit(study, runs, SlurmConfig(), 1))) for _ in range(3)]
        for sweep in sweeps:
            sweep.start()
        for sweep in sweeps:
            sweep.join()
    assert jobs == ["1"]
    assert {name: task.job for name, task in queued(study).items()} == {"r2": "1_0", "r3": "1_1", "r4": "1_2"}
    assert submit(study, runs, SlurmConfig(), 1) == ["2"], "the run that a process had is free again"
    assert queued(study)["r1"].text == "job 2_0 pending: Resources"


def test_a_job_whose_sweep_died_before_it_knew_its_number_is_known(tmp_path: Path, programs: Path) -> None:
    study = tmp_path / "study"
    runs = [planned(study, "r0")]
    sbatch = programs / "sbatch"
    sbatch.write_text(sbatch.read_text().replace("echo", "exit 1; echo"))  # it is queued; the answer is lost
    with pytest.raises(UserError, match="sbatch refused a job of study study: it gave no reason"):
        submit(study, runs, SlurmConfig(), 1)
    assert submit(study, runs, SlurmConfig(), 1) == []


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        ("sbatch: error: Batch job submission failed: Invalid partition name specified", "launcher.partition"),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition", "launcher.account"),
        ("sbatch: error: Requested time limit is invalid (missing or exceeds some limit)", "launcher.hours"),
        ("sbatch: error: Requested node configuration is not available", "launcher.gpus"),
        ("something new", "docs/slurm.md"),
    ],
)
def test_what_sbatch_refuses_is_told_with_a_next_step(said: str, cure: str, tmp_path: Path, programs: Path) -> None:
    (programs / "sbatch").write_text(f"#!/bin/bash\necho noise >&2\necho '{said}' >&2\nexit 1\n")
    with pytest.raises(UserError) as error:
        submit(tmp_path / "study", [planned(tmp_path / "study", "r0")], SlurmConfig(), 1)
    assert f"study study: {said.removeprefix('sbatch: error: ')}" in error.value.sentence
    assert cure in error.value.next_step


def test_no_slurm_and_no_answer_are_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tmp_path / "study"
    run = planned(study, "r0")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="launcher=slurm needs sbatch, which this machine does not have"):
        submit(study, [run], SlurmConfig(), 1)
    assert not run.is_held()
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact' >&2\nexit 1\n")
    (tmp_path / "squeue").chmod(0o755)
    with pytest.raises(UserError, match="squeue does not answer: slurm_load_jobs error: Unable to contact"):
        queued(study)


def test_status_rows_tell_who_waits(tmp_path: Path, programs: Path, capsys: Captured) -> None:
    study = tmp_path / "study"
    submit(study, [planned(study, name) for name in ("a", "b", "c")], SlurmConfig(), 1)
    rows = [{"run": "a", "status": "planned"}, {"run": "b", "status": "done"}, {"run": "d", "status": "failed"}]
    mark_queued(rows, study)
    assert [(row["status"], row.get("job")) for row in rows] == [
        ("queued", "job 1_0 pending: Resources"), ("done", None), ("failed", None)
    ]  # fmt: skip
    (programs / "squeue").write_text("#!/bin/sh\nexit 1\n")
    mark_queued(rows, study)
    assert "warning: squeue does not answer" in capsys.readouterr().err


def test_following_ends_with_the_runs_and_survives_a_silent_queue(
    tmp_path: Path, programs: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modexp.cli.follow.LOOK", 0.2)
    monkeypatch.setattr("modexp.cli.follow.POLL", 0.05)
    study = tmp_path / "study"
    runs = [planned(study, name) for name in ("ends", "fails", "vanishes")]
    submit(study, runs, SlurmConfig(), 1)
    monkeypatch.setattr("modexp.cli.watch.record", lambda run: {"status": "planned"})
    monkeypatch.setattr(Watch, "show", lambda *_: None)
    with Watch(runs, 3) as watch:
        follower = threading.Thread(target=follow, args=(study, runs, watch))
        follower.start()
        write_json(runs[0].result_path, {"status": "diverged", "error": "loss is nan"})
        wait_until(lambda: watch.ended_runs == 1)
        answers = (programs / "squeue").read_text()
        (programs / "squeue").write_text("#!/bin/sh\nexit 1\n")
        time.sleep(0.5)
        assert watch.ended_runs == 1, "a queue that does not answer has not ended the runs"
        runs[1].error_path.write_text("no disk\n")
        (programs / "jobs/1").unlink()
        (programs / "squeue").write_text(answers)
        follower.join(10)
    assert not follower.is_alive()
    told = capsys.readouterr().err
    assert "[1/3] ends  diverged: loss is nan" in told
    assert "fails  failed: no disk" in told
    assert "[3/3] vanishes  failed: left unfinished, see" in told


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--detach"], "--detach is for launcher=slurm"),
        (["--detach", "launcher=slurm", "adapt=on"], "--detach does not go with adapt=on"),
        (["launcher=slurm", "trainer.device=cuda"], "trainer.device=cuda does not go with launcher.gpus=0"),
        (["launcher=slurm", "launcher.gpus=1", "trainer.device=cpu"], "trainer.device=cpu does not go with"),
        (["launcher=slurm", "launcher.slots=2"], "launcher.slots is not a setting of this launcher"),
    ],
)
def test_what_does_not_go_together_is_refused(words: list[str], text: str, modexp_cli: Cli, capsys: Captured) -> None:
    assert modexp_cli("sweep", "demo", *words) == 2
    assert text in capsys.readouterr().err


# ---- a real Slurm --------------------------------------------------------------------------------------------

real = [pytest.mark.slurm, pytest.mark.timeout(600), pytest.mark.skipif(bool(missing()), reason=missing())]


@pytest.fixture
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with cluster(tmp_path_factory.mktemp("slurm")) as config:
        yield config


class Sweeps:
    """A study of two small runs, each of some seconds, in a folder; or of one that is ``long``."""

    def __init__(self, folder: Path, tiny: list[str], long: bool = False) -> None:
        self.folder, self.study = folder, folder / "runs/small"
        (folder / "small.yaml").write_text(
            f"budgets: [{'2.0e+10' if long else '2.0e+9'}]\n"
            f"arms: {{baseline: [model=baseline]{'' if long else ', mod: [model=mod]'}}}\n"
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

    def test_a_time_limit_in_the_middle(self, tmp_path: Path, tiny: list[str], one_node: Path) -> None:
        sweeps = Sweeps(tmp_path, tiny, long=True)
        sweeps("--detach", "launcher.hours=0.05", "launcher.signal_seconds=119")
        (run,) = sweeps.runs()
        wait_until(run.metrics, 60)
        job = ask("squeue", "-h", "-o", "%F").strip()
        # of its 3 minutes the job has 61 s until the warning; with 2 it has one, as soon as Slurm looks, every 30 s
        subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=2"], check=True)
        wait_until(lambda: "queues itself again" in run.log_path.read_text(), 60)
        subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=3"], check=True)
        wait_until(run.result, 240)
        assert re.search(r"was stopped at step [1-9]", run.log_path.read_text())
        assert "1 restarts before" in run.log_path.read_text()
        result, plan = run.result(), run.plan()["plan"]
        assert result
        assert (result["status"], result["steps"]) == ("done", plan["steps"])
        assert [row["step"] for row in run.metrics()] == list(range(1, plan["steps"] + 1))
