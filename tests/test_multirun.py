"""modexp train -m: Hydra's launchers run the jobs, and what fails among them is told and gives exit code 1."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modexp.errors import RunFailed

Cli = Callable[..., int]
Captured = pytest.CaptureFixture[str]

SMALL = ["model.n_layers=2", "model.n_heads=2", "optim.batch_size=2", "budget=1e8"]
MANY = ["-m", "model.d_model=17,16", "seed=0,1"]  # heads of 17 / 2: two of the four cannot be
LAUNCHERS = {"joblib": "hydra_joblib_launcher", "submitit_local": "hydra_submitit_launcher"}


def finished(folder: Path) -> list[str]:
    return sorted(path.parent.name[:-7] for path in folder.glob("runs/train/*/result.json"))


def test_all_combinations_are_trained(modexp_cli: Cli, tmp_path: Path, tiny: list[str]) -> None:
    assert modexp_cli("train", *tiny, *SMALL, "model=baseline,mod", "--multirun", "model.d_model=16") == 0
    assert [name.split("-")[0] for name in finished(tmp_path)] == ["baseline", "mod"]


def test_a_job_that_fails_lets_the_others_finish(
    modexp_cli: Cli, capsys: Captured, tmp_path: Path, tiny: list[str]
) -> None:
    assert modexp_cli("train", *tiny, *SMALL, *MANY) == 1
    told = capsys.readouterr().err
    assert told.count("modexp: error: model.d_model=17 is not a multiple of model.n_heads=2") == 2
    assert "modexp: error: a run of the multirun failed: model.d_model=17" in told
    assert "Traceback" not in told
    assert [name.rsplit("-", 1)[1] for name in finished(tmp_path)] == ["s0", "s1"]


def test_a_failure_can_be_sent_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(RunFailed("it failed", "do it again")))
    assert str(error) == "it failed\n  do it again"


def test_a_launcher_that_is_not_installed(modexp_cli: Cli, capsys: Captured) -> None:
    assert modexp_cli("train", "-m", "hydra/launcher=ray_jobs", "seed=0,1") == 2
    told = capsys.readouterr().err
    assert "hydra/launcher=ray_jobs is not installed\n  pip install hydra-ray-launcher" in told


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_in_other_processes(launcher: str, tmp_path: Path, tiny: list[str]) -> None:
    if not importlib.util.find_spec("hydra_plugins") or not importlib.util.find_spec(
        f"hydra_plugins.{LAUNCHERS[launcher]}"
    ):
        pytest.skip(f"{LAUNCHERS[launcher].replace('_', '-')} is not installed")
    words = ["train", *tiny, *SMALL, *MANY, f"hydra/launcher={launcher}"]
    root = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "modexp", *words], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "modexp: error: a run of the multirun failed: model.d_model=17" in done.stderr
    assert [name.rsplit("-", 1)[1] for name in finished(tmp_path)] == ["s0", "s1"]
