"""Several processes train what one would have: kinds of models, uneven shares, stops, failures, and commands."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from modexp.errors import Interrupted, UserError
from modexp.kinds import KINDS
from modexp.runs import RunDir
from modexp.sweep.local import command, slots_of
from modexp.train import checkpoint
from modexp.train.loop import Training, train
from modexp.train.signals import Stop
from modexp.train.world import ALONE, World
from tests.spread import MODELS, trained
from tests.test_train import StopAt, planned, rows

Captured = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[1]
RUN = [
    "model=mod_threshold",  # with averages, which a checkpoint holds beside weights
    "model.n_layers=2",
    "model.d_model=16",
    "model.n_heads=2",
    "data.sequence_length=32",
    "optim.batch_size=5",
    "optim.eps=1e-4",
    "trainer.micro_batch=2",
    "trainer.log_every=1",
    "budget=1.5e8",
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "modexp"]


def a_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def pair(folder: Path, *words: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes of Python with these arguments, as torchrun would start them."""
    common = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(a_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, *words],
            env={**common, "WORLD_SIZE": "2", "RANK": str(rank)},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """A folder in which two processes did all that tests/spread.py has them do, after one began the run."""
    folder = tmp_path_factory.mktemp("spread")
    run = planned(folder / "run", [*tiny, *RUN])
    with pytest.raises(Interrupted):
        Training(run, StopAt(3)).to_the_end()
    with pair(folder, "-m", "tests.spread", str(folder)) as processes:
        ended = [(process.communicate(timeout=240), process.returncode) for process in processes]
    (first, code), ((out, err), code2) = ended
    assert code == code2 == 0, f"{first[1]}\n{err}"
    assert not out
    assert not err, "the first speaks for both"
    assert first[1].count("\n") == 1, "of one validation, and no warning"
    return folder


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(spread: Path, parallel: str) -> None:
    assert {config.kind for config in MODELS.values()} == KINDS.keys()
    apart = {}
    for name in MODELS:
        one, two = trained(name, parallel, ALONE), load_file(spread / f"{parallel}-{name}.safetensors")
        assert one.keys() == two.keys()
        apart[name] = max((one[key] - two[key]).abs().max().item() for key in one)
    assert max(apart.values()) < 1e-5, apart


def test_a_run_goes_on_with_more_processes_and_with_fewer(spread: Path, tmp_path: Path, tiny: list[str]) -> None:
    """One process, two under DDP, two under FSDP2, one again, against one from beginning to end."""
    straight, changed = planned(tmp_path / "run", [*tiny, *RUN]), RunDir(spread / "run")
    one, other = train(straight.path), train(changed.path)
    assert (one["steps"], one["flops_consumed"]) == (other["steps"], other["flops_consumed"])
    assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)
    left, right = rows(straight), rows(changed)
    assert [row["step"] for row in left] == [row["step"] for row in right] == list(range(1, one["steps"] + 1))
    for a, b in zip(left, right, strict=True):
        assert b == pytest.approx(a, abs=1e-5)
    folders = [checkpoint.saved(run.checkpoints)[-1] for run in (straight, changed)]
    (weights, moments, _), (weights2, moments2, _) = map(checkpoint.read, folders)
    assert weights.keys() == weights2.keys()
    assert "blocks.1.threshold" in weights
    for mine, theirs in ((weights, weights2), (moments, moments2)):
        assert max((mine[key] - theirs[key]).abs().max().item() for key in mine) < 1e-5


def test_micro_batches_do_not_change_a_step(tmp_path: Path) -> None:
    """Noise and running averages are the step's, however it is split."""
    from tests import spread

    for name in ("mod_stochastic", "mod_threshold"):
        split = trained(name, "ddp", ALONE)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(spread, "MICRO", 8)
            whole = trained(name, "ddp", ALONE)
        assert max((split[key] - whole[key]).abs().max().item() for key in whole) < 1e-5


class Of(World):
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 64])
def test_shares_cover_every_sequence_once(size: int, count: int) -> None:
    shares = [Of(rank, size).share(count) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    passes = [Of(rank, size).passes(count, 3) for rank in range(size)]
    assert len({len(parts) for parts in passes}) == 1, "processes wait for each other in every pass"
    assert [i for parts in passes for part in parts for i in part] == list(range(count))
    assert max(len(part) for parts in passes for part in parts) <= 3


def test_processes_without_a_sequence_are_refused(tmp_path: Path, tiny: list[str], capsys: Captured) -> None:
    with pytest.raises(UserError, match=r"trainer.devices=0 is not positive"):
        planned(tmp_path / "r", [*tiny, *RUN, "trainer.devices=0"])
    with pytest.raises(UserError, match=r"trainer.parallel=pipeline is not a choice"):
        planned(tmp_path / "r", [*tiny, *RUN, "trainer.parallel=pipeline"])
    run = planned(tmp_path / "r", [*tiny, *RUN, "trainer.devices=2"])
    with pytest.raises(UserError, match="6 processes share steps of 5 sequences"):
        Training(run, Stop(), world=Of(0, 6))
    assert RunDir(run.path).plan()["identity"] == planned(tmp_path / "s", [*tiny, *RUN]).plan()["identity"]
    Training(run, Stop())
    assert "trainer.devices=2 was planned; going on with what was started: 1" in capsys.readouterr().err


def test_more_processes_than_asked_for_must_be_started(
    modexp_cli: Callable[..., int], tiny: list[str], capsys: Captured
) -> None:
    assert modexp_cli("train", *tiny, *RUN, "trainer.devices=2") == 2
    assert "trainer.devices=2, but the processes that were started are 1" in capsys.readouterr().err


def test_devices_never_change_the_plan(modexp_cli: Callable[..., int], tiny: list[str], capsys: Captured) -> None:
    """A study that leaves a process without work is refused, not cut down to the runs that have enough."""
    words = ["sweep", *tiny, *RUN[1:-1], "--budget", "1e8", "study=s"]
    assert modexp_cli(*words, "--dry-run") == 0
    plan = capsys.readouterr().out
    assert modexp_cli(*words, "trainer.devices=6", "--dry-run") == 0
    assert capsys.readouterr().out == plan
    assert modexp_cli(*words, "trainer.devices=6") == 2
    assert "trainer.devices=6 processes would share steps of 5 sequences in " in capsys.readouterr().err


def test_a_slot_holds_the_devices_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3,4,6,7")
    assert slots_of(None, 1, "auto", 2) == ["0,3", "4,6"]
    assert slots_of(3, 1, "auto", 2) == ["0,3", "4,6", "0,3"]
    assert slots_of(1, 1, "cpu", 2) == [None]
    with pytest.raises(UserError, match=r"trainer.devices=8, but this machine shows 5 GPUs"):
        slots_of(None, 1, "auto", 8)
    assert "torch.distributed.run" not in command(RunDir("r"), 1)
    assert "--nproc-per-node=4" in command(RunDir("r"), 4)


# ---- failures and commands: a start of two processes each -----------------------------------------------------------

FAILING = """
import sys
from modexp.cli import run
from modexp.train.step import Stepper

step = Stepper.step
calls = []

def failing(self, *arguments):
    calls.append(1)
    if self.world.rank == 1 and len(calls) == 3:
        raise RuntimeError("a device was lost")
    return step(self, *arguments)

Stepper.step = failing
sys.exit(run(["train", "--run", sys.argv[1]]))
"""


@pytest.mark.slow
def test_one_failure_ends_all_with_its_sentence(tmp_path: Path, tiny: list[str]) -> None:
    run = planned(tmp_path / "r", [*tiny, *RUN])
    with pair(tmp_path, "-c", FAILING, str(run.path)) as processes:
        (_, first), (_, second) = (process.communicate(timeout=120) for process in processes)
        assert [process.returncode for process in processes] == [1, 1]
    sentence = f"{run.path} failed: RuntimeError: a device was lost"
    assert f"modexp: error: {sentence}" in second
    assert "Traceback" not in first + second
    assert "modexp: error" not in first, "what it met was only a consequence"
    assert run.error() == sentence
    assert run.state() == "failed"
    train(run.path)
    assert run.state() == "done"


@pytest.mark.slow
def test_a_wrong_setting_ends_all(tmp_path: Path, tiny: list[str]) -> None:
    with pair(tmp_path, "-m", "modexp", "train", *tiny, *RUN, "model.capcity=.5") as processes:
        (_, first), (_, second) = (process.communicate(timeout=120) for process in processes)
        assert [process.returncode for process in processes] == [2, 2]
    assert "model.capcity is not a setting" in first
    assert not second
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_torchrun_trains_stops_and_resumes(tmp_path: Path, tiny: list[str]) -> None:
    words = [*TORCHRUN, "train", *tiny, *RUN, "budget=5e9", "name=r", "trainer.parallel=fsdp"]
    process = subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    run = RunDir(tmp_path / "runs" / "train" / "r")
    deadline = time.monotonic() + 90
    while not run.metrics() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert out.count("plan of runs/train/r") == 1
    assert err.count("was stopped at step") == 1
    assert run.state() == "stopped"
    saved = checkpoint.saved(run.checkpoints)
    assert len(saved) == 1

    step = checkpoint.read(saved[0])[2]["step"]
    plan = run.plan()["plan"]
    assert 0 < step < plan["steps"]
    config = run.config()
    trainer = replace(config.trainer, parallel="ddp")  # another way, and to the end of what one process is quick to do
    from modexp.config import root

    root.save(replace(config, trainer=trainer), run.config_path)
    assert subprocess.run(command(run, 2), env=environment()).returncode == 0
    result = run.result()
    assert result is not None
    assert (result["status"], result["processes"], result["steps"]) == ("done", 2, plan["steps"])
    assert [row["step"] for row in run.metrics()] == list(range(1, plan["steps"] + 1))


@pytest.mark.slow
def test_a_sweep_gives_each_run_its_processes(tmp_path: Path, tiny: list[str]) -> None:
    words = ["sweep", *tiny, *RUN[1:-1], "--budget", "1e8", "study=s", "trainer.devices=2", "launcher.slots=1"]
    done = subprocess.run(
        [sys.executable, "-m", "modexp", *words], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    results = [RunDir(path.parent).result() for path in tmp_path.glob("runs/*/*/result.json")]
    assert len(results) >= 2
    assert all(result and result["processes"] == 2 for result in results)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}
