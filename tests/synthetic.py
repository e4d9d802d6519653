"""A study on disk that was never trained: planned by the package, its losses read off a known surface."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from modexp.cli.compose import arms_of, load_sweep
from modexp.files import write_json
from modexp.plan.run import RunPlan
from modexp.runs import RunDir, create
from modexp.sweep.study import join, plan_of

OVERRIDES = ["data=python", "data.sequence_length=64", "optim.batch_size=sqrt", "tracker=none"]


def surface(plan: RunPlan) -> float:
    """E + A / N^alpha + B / D^beta, the same for all arms."""
    return 1.0 + 90.0 / plan.params_total**0.4 + 300.0 / plan.tokens**0.4


def make_study(
    folder: Path,
    budgets: list[float],
    loss: Callable[[RunPlan], float] = surface,
    sweep: str = "figure4",
    overrides: list[str] | None = None,
) -> Path:
    """The directory of a finished study under ``folder``."""
    name, settings = load_sweep(sweep, budgets, [*OVERRIDES, f"runs_dir={folder}", *(overrides or [])])
    arms = arms_of(name, settings)
    study = join(folder / name, settings, arms)
    study.save()
    for run in plan_of(settings, arms).runs:
        directory = RunDir(study.path / run.plan.name)
        create(directory, run.config, run.plan, {"content_hash": "none", "train_tokens": 10**12})
        write_json(
            directory.path / "result.json",
            {
                "status": "done",
                "loss": loss(run.plan),
                "steps": run.plan.steps,
                "sequences": run.plan.sequences,
                "tokens": run.plan.tokens,
                "flops_consumed": run.plan.flops,
                "train_seconds": run.plan.tokens * run.plan.flops_per_token * 1e-9,
                "validation": {},
            },
        )
    return study.path
