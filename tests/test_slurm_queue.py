"""launcher=slurm: the queue, by stand-ins for sbatch and squeue."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modexp.cli.follow import follow
from modexp.cli.slurm import mark_queued
from modexp.cli.watch import Watch
from modexp.config.slurm import SlurmConfig
from modexp.errors import UserError
from modexp.files import write_json
from modexp.sweep.slurm import queued, submit
from tests.slurm_cluster import wait_until
from tests.test_slurm_script import planned

Cli = Callable[..., int]
Captured = pytest.CaptureFixture[str]


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


def test_branches_come_after_the_jobs_of_their_trunks(tmp_path: Path, programs: Path) -> None:
    study = tmp_path / "study"
    plain, trunk, done = (planned(study, name, flops=1e15) for name in ("plain", "trunk", "done"))
    write_json(done.result_path, {"status": "done"})
    branches = [planned(study, f"b{i}", 60) for i in range(3)]
    for branch, origin in zip(branches, (trunk, trunk, done), strict=True):
        write_json(branch.plan_path, {**branch.plan(), "branch": {"trunk": origin.name, "step": 5}})
    runs = [plain, trunk, done, *branches]
    assert submit(study, runs, SlurmConfig(), 1) == ["1", "2", "3"]
    assert {name: task.job for name, task in queued(study).items()} == {
        "plain": "1_0", "trunk": "1_1", "b2": "2_0", "b0": "3_0", "b1": "3_1"
    }  # fmt: skip

    def dependency(job: str) -> list[str]:
        lines = (programs / "jobs" / job).read_text().splitlines()
        return [line.partition("=")[2] for line in lines if "--dependency" in line]

    assert [dependency(job) for job in "123"] == [[], [], ["afterany:1"]]
    (programs / "jobs/3").unlink()
    assert submit(study, runs, SlurmConfig(), 1) == ["3"]
    assert dependency("3") == ["afterany:1_1"], "a trunk that was queued before"
    (programs / "jobs/3").unlink()
    (trunk.branches / "step-000000005").mkdir(parents=True)
    submit(study, runs, SlurmConfig(), 1)
    assert dependency("3") == [], "it is as far as they need it"


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
    answers = (programs / "squeue").read_text()
    (programs / "squeue").write_text("#!/bin/sh\nexit 1\n")
    with Watch(runs, 3) as watch:
        follower = threading.Thread(target=follow, args=(study, runs, watch))
        follower.start()
        time.sleep(1)
        assert watch.ended_runs == 0, "a queue that has not answered yet has not ended the runs"
        (programs / "squeue").write_text(answers)
        time.sleep(0.5)
        write_json(runs[0].result_path, {"status": "diverged", "error": "loss is nan"})
        wait_until(lambda: watch.ended_runs == 1)
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


SHARED = ["schedule=wsd", "share_trunk=on", "--budget", "1e10,2e10"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--detach"], "--detach is for launcher=slurm"),
        (["--detach", "launcher=slurm", "adapt=on"], "--detach does not go with adapt=on"),
        (["--detach", "launcher=slurm", "--check-branch", *SHARED], "--check-branch compares runs that are finished"),
        (["launcher=slurm", "trainer.device=cuda"], "trainer.device=cuda does not go with launcher.gpus=0"),
        (["launcher=slurm", "launcher.gpus=1", "trainer.device=cpu"], "trainer.device=cpu does not go with"),
        (["launcher=slurm", "launcher.slots=2"], "launcher.slots is not a setting of this launcher"),
    ],
)
def test_what_does_not_go_together_is_refused(words: list[str], text: str, modexp_cli: Cli, capsys: Captured) -> None:
    assert modexp_cli("sweep", "demo", *words) == 2
    assert text in capsys.readouterr().err
