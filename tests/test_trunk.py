"""share_trunk=on: who branches off whom, what it saves; a branch is the run it would have been, bit for bit."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch

from modexp.analysis.points import select, shared_trunks
from modexp.analysis.records import records
from modexp.cli import run as run_cli
from modexp.cli.sweep import execute
from modexp.config.model import BaselineConfig
from modexp.config.root import Config
from modexp.config.routing import MoDConfig
from modexp.config.study import BudgetConfig, GridConfig, SweepConfig
from modexp.config.train import WsdConfig
from modexp.errors import Interrupted, RunFailed, UserError
from modexp.plan.grid import Arms, PlannedRun
from modexp.plan.run import optimal_shape, plan_run
from modexp.plan.trunk import plan_shared, saving
from modexp.runs import RunDir, create
from modexp.sweep.local import Launcher
from modexp.sweep.study import plan_of
from modexp.train import checkpoint
from modexp.train.loop import train

Cli = Callable[..., int]
ARMS: Arms = {
    m.kind: lambda b, m=m: Config(model=m, budget=BudgetConfig(b), schedule=WsdConfig())  # type: ignore[misc]
    for m in (BaselineConfig(), MoDConfig())
}
WORDS = ["sweep", "small.yaml", "launcher.slots=1", "schedule=wsd", "sweep.share_trunk=true"]


def planned(budgets: list[float], points: int = 7, guard: bool = False) -> tuple[PlannedRun, ...]:
    sweep = SweepConfig(budgets, {arm: [] for arm in ARMS}, grid=GridConfig(points), guard=guard, share_trunk=True)
    return plan_of(sweep, ARMS).runs


# ---- the plan ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [5, 7])
def test_near_budgets_share_every_size_and_save_what_can_be_saved(points: int) -> None:
    runs = planned([1e13, 1.5e13, 2e13], points)
    saved = saving(runs)
    assert saved is not None
    assert saved.limit == pytest.approx(0.8 * 2.5 / 4.5), "(1 - delta)(sum C - max C) / sum C"
    assert saved.share == pytest.approx(saved.limit, rel=0.01), f"{saved.share} of at most {saved.limit}"
    # counted again, run by run: each size's trunk whole, and of every other run its decay
    paid = sum(
        run.plan.flops * (1 if run.plan.budget == 2e13 else run.plan.decay_steps / run.plan.steps) for run in runs
    )
    assert 1 - paid / sum(run.plan.flops for run in runs) == pytest.approx(saved.share, rel=0.01)


def test_far_budgets_keep_their_grids_and_share_fewer_sizes() -> None:
    budgets, grid = [1e13, 4e13, 1.6e14], GridConfig(7)
    runs = planned(budgets)
    for budget in budgets:
        centre = optimal_shape(BaselineConfig(), ARMS["baseline"](budget), grid.tokens_per_param)[0]
        sizes = [r.plan.flops_per_token / centre for r in runs if (r.plan.budget, r.plan.arm) == (budget, "baseline")]
        assert len(sizes) == 7
        assert max(map(abs, map(math.log, sizes))) < math.log(4 * 1.09), "half a rung beyond +-4x at most"
    saved = saving(runs)
    assert saved is not None
    assert 0 < saved.share < 0.95 * saved.limit
    assert f"{saved.share:.2%} saved" in saved.sentence


def test_a_branch_differs_from_its_trunk_in_the_budget_alone() -> None:
    runs = {run.plan.name: run for run in planned([1e13, 2e13], guard=True)}
    branches = [run for run in runs.values() if run.branch]
    assert len(branches) == len(runs) / 2, "guard runs have trunks of their own"
    for run in branches:
        assert run.branch
        trunk = runs[run.branch.trunk]
        for key in ("arm", "seed", "batch_size", "lr", "lr_scale", "warmup_steps", "n_layers", "d_model"):
            assert getattr(run.plan, key) == getattr(trunk.plan, key), f"{run.plan.name}: {key}"
        assert run.plan.warmup_steps <= run.branch.step <= trunk.plan.steps - trunk.plan.decay_steps
        assert run.branch.sequences == run.branch.step * run.plan.batch_size < run.plan.sequences


def test_what_cannot_share_a_trunk_is_refused() -> None:
    cosine: Arms = {"baseline": lambda b: Config(budget=BudgetConfig(b))}
    with pytest.raises(UserError, match="arm baseline has schedule=cosine"):
        plan_shared(cosine, [1e13, 2e13], [0], GridConfig())
    with pytest.raises(UserError, match=r"grid.span=1.0 gives each budget a size of its own"):
        SweepConfig([1e13], {"baseline": []}, grid=GridConfig(1, 1.0), share_trunk=True)


# ---- runs ----------------------------------------------------------------------------------------------------


def write_sweep(folder: Path, tiny: list[str]) -> None:
    (folder / "small.yaml").write_text(
        "budgets: [2.0e+8, 3.0e+8, 4.0e+8]\nseeds: [0]\narms: {mod: [model=mod]}\n"
        f"grid: {{points: 1, span: 2.0}}\noverrides: {json.dumps(tiny)}\n"
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny: list[str], cache: Path) -> Path:
    """A finished study of one trunk and two branches, one of them trained whole as well, all in this process."""
    folder = tmp_path_factory.mktemp("trunk")
    write_sweep(folder, tiny)

    def in_turn(study: Path, runs: list[RunDir], config: Config) -> None:
        for run in sorted(runs, key=lambda run: -run.plan()["plan"]["budget"]):
            train(run.path)

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.chdir(folder)
        patch.setattr("modexp.cli.sweep.execute", in_turn)
        assert run_cli([*WORDS, "--check-branch"]) == 0
    (folder / "printed.txt").write_text(printed.getvalue())
    return folder / "runs/small"


def runs_of(study: Path) -> list[RunDir]:
    """Trunk, branch of 3e8, branch of 2e8."""
    return sorted((RunDir(p.parent) for p in study.glob("*/plan.json")), key=lambda run: -run.plan()["plan"]["budget"])


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    return checkpoint.read(checkpoint.saved(run.checkpoints)[-1])[0]


def require_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), f"{name} differs by {(a[name] - b[name]).abs().max()}"


def test_a_branch_is_the_run_it_would_have_been(study: Path) -> None:
    whole = RunDir(next((study / "check").iterdir()))
    branch = next(run for run in runs_of(study) if whole.name == f"{run.name}-whole")
    assert branch.origin(), "a run that branches off"
    assert whole.origin() is None
    require_same(weights(branch), weights(whole))
    ours, theirs = branch.result() or {}, whole.result() or {}
    for key in ("loss", "loss_topk", "validation", "sequences", "flops_consumed"):
        assert ours[key] == theirs[key], f"{key}: {ours[key]} and {theirs[key]}"
    assert theirs["flops_shared"] == 0 < ours["flops_shared"] < ours["flops_consumed"]
    printed = (study.parents[1] / "printed.txt").read_text()
    assert "+0.000000 (+0.0000%); the weights are the same to the bit" in printed
    steps = [row["step"] for row in branch.metrics()]
    assert steps == sorted(set(steps)), f"the whole path, once: {steps}"
    assert steps[0] <= 10


def test_spent_and_saved_are_told_and_trunks_are_points(
    study: Path, modexp_cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not list(study.glob("*/branches")), "checkpoints of branches go when all are done"
    rows = records(study)
    assert len(rows) == 3
    assert len(select(rows, "params")[0]) == 3, "a trunk is the run of the largest budget"
    shared = sum(row["flops_shared"] for row in rows)
    counted = sum(row["flops_consumed"] for row in rows)
    assert shared / counted == pytest.approx(0.8 * 5 / 9, rel=0.05)
    assert "too narrow" in shared_trunks(rows)
    assert shared_trunks([{**row, "trunk": None} for row in rows]) == ""
    assert modexp_cli("status", str(study)) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert f"{counted - shared:.3g} of {counted - shared:.3g} FLOPs consumed (100%)" in told
    assert f"2 runs branch off others: {shared:.4g} of {counted:.4g} FLOPs" in told


def test_other_budgets_are_another_study(
    study: Path, tmp_path: Path, modexp_cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(study.parents[1], tmp_path, dirs_exist_ok=True)
    assert modexp_cli(*WORDS, "--budget", "8e8", "--dry-run") == 2
    assert "shares its trunks among the budgets 2e8, 3e8, 4e8" in " ".join(capsys.readouterr().err.split())


def emptied(study: Path, to: Path) -> list[RunDir]:
    """The same runs, planned and not begun."""
    for run in runs_of(study):
        (to / run.name).mkdir(parents=True)
        for file in (run.config_path, run.plan_path):
            shutil.copy(file, to / run.name)
    return runs_of(to)


def test_a_branch_waits_for_its_trunk_and_outlives_it(study: Path, tmp_path: Path) -> None:
    trunk, late, early = emptied(study, tmp_path)
    launcher = Launcher([early, trunk, late], [None], 1)
    assert [launcher.ready(run) for run in (early, trunk, late)] == [False, True, False]
    with pytest.raises(RunFailed, match="has not come as far as step-"):
        train(early.path)
    early.error_path.unlink()
    done = train(trunk.path)
    assert all(launcher.ready(run) for run in (early, late))
    assert len(list(trunk.branches.iterdir())) == 2, "both points outlast keep_checkpoints"

    origin = late.origin()
    assert origin
    (origin[1] / "model.safetensors").write_bytes(b"half a file")
    results = {run.name: train(run.path) for run in (early, late)} | {trunk.name: done}
    assert results[late.name]["flops_shared"] == 0, "trained whole where the trunk's checkpoint is damaged"
    assert results[early.name]["flops_shared"] > 0
    for run in runs_of(study):
        require_same(weights(run), weights(RunDir(tmp_path / run.name)))
        assert results[run.name]["loss"] == (run.result() or {})["loss"]


def test_killed_at_any_point_the_study_ends_with_the_same_bits(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trunk past a branching point, a branch before its first checkpoint; then the launcher finishes both."""
    trunk, _, early = fresh = emptied(study, tmp_path)
    words = [sys.executable, "-m", "modexp", "train", "--run", str(trunk.path)]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(trunk.branches.glob("step-*")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert trunk.result() is None, "killed before its end"
    assert early.origin()
    with monkeypatch.context() as patch:
        patch.setattr("modexp.train.loop.Training.evaluate", lambda self: raise_interrupt())
        with pytest.raises(Interrupted):
            train(early.path)
    assert not checkpoint.saved(early.checkpoints)
    execute(fresh[0].path.parent, fresh, trunk.config())
    for ours, theirs in zip(fresh, runs_of(study), strict=True):
        assert (ours.result() or {})["loss"] == (theirs.result() or {})["loss"], ours.name
        require_same(weights(ours), weights(theirs))
        assert [row["step"] for row in ours.metrics()] == [row["step"] for row in theirs.metrics()]


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def test_create_keeps_where_runs_part(tmp_path: Path) -> None:
    run = planned([1e13, 2e13], 1)[0]
    config = replace(run.config, name="a")
    create(RunDir(tmp_path / "a"), config, plan_run(config), {}, None, {"branch": {"trunk": "b", "step": 12}})
    origin = RunDir(tmp_path / "a").origin()
    assert origin is not None
    assert (origin[0].path, origin[1]) == (tmp_path / "b", tmp_path / "b/branches/step-000000012")
