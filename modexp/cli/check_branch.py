"""modexp sweep --check-branch: one branch trained from its beginning, too, and what the trunk made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modexp.cli.common import note
from modexp.errors import RunFailed, UserError

if TYPE_CHECKING:
    from modexp.plan.grid import PlannedRun
    from modexp.runs import RunDir

FOLDER = "check"  # beside the runs of a study, so that no fit and no table takes it for one of them


def check_branch(study: Path, directories: Sequence[tuple[RunDir, PlannedRun]]) -> None:
    """Of the smallest budget the branch of middle size: the same run without its trunk, and the two losses.

    UserError where the study has no branch, RunFailed where either has not come to its end.
    """
    from modexp.cli.sweep import execute

    branches = [run for run, planned in directories if planned.branch]  # by budget, small to large
    if not branches:
        raise UserError("--check-branch finds no branch in this study", "add schedule=wsd share_trunk=on")
    least = branches[0].plan()["plan"]
    first = [run for run in branches if all(run.plan()["plan"][key] == least[key] for key in ("arm", "budget", "seed"))]
    branch = first[len(first) // 2]
    whole = written(branch, study / FOLDER / f"{branch.name}-whole")
    if whole.result() is None:
        note(f"--check-branch trains {branch.name} from its beginning, {least['flops']:.3g} FLOPs on top of the study")
        execute(study / FOLDER, [whole], whole.config())
    losses = [loss_of(run) for run in (branch, whole)]
    apart = losses[0] - losses[1]
    same = "the same" if same_weights(branch, whole) else "not the same"
    print(
        f"{branch.name}: held-out loss {losses[0]:.6f} as a branch, {losses[1]:.6f} trained whole: {apart:+.6f}"
        f" ({apart / losses[1]:+.4%}); the weights are {same} to the bit"
    )


def written(branch: RunDir, path: Path) -> RunDir:
    """The directory of the same run by itself; no tracker hears of it."""
    from modexp.config.train import NoTracker
    from modexp.plan.cost import measured, predict
    from modexp.plan.run import plan_run
    from modexp.runs import RunDir, create

    config = replace(branch.config(), name=path.name, tracker=NoTracker())
    whole = RunDir(path)
    plan, bench = plan_run(config, branch.plan()["plan"]["arm"]), branch.path.parent / "bench.json"
    predicted = predict(plan, config, measured(bench)).to_json() if bench.exists() else None
    create(whole, config, plan, branch.plan()["data"], predicted)
    return whole


def loss_of(run: RunDir) -> float:
    result: dict[str, Any] = run.result() or {}
    loss = result.get("loss") if result.get("loss") is not None else result.get("loss_topk")
    if loss is None:
        raise RunFailed(f"{run.path} has no held-out loss: {run.error() or result.get('error') or 'not finished'}")
    return float(loss)


def same_weights(branch: RunDir, whole: RunDir) -> bool:
    """Whether both ended with the same weights, bit for bit."""
    import torch

    from modexp.train import checkpoint

    a, b = (checkpoint.read(checkpoint.saved(run.checkpoints)[-1])[0] for run in (branch, whole))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
