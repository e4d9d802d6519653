"""What `modexp sweep` and `modexp status` do where runs are Slurm's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modexp.cli.common import note
from modexp.errors import Interrupted, UserError
from modexp.runs import RunDir
from modexp.sweep.slurm import queued, slurm, submit

if TYPE_CHECKING:
    from modexp.config.root import Config
    from modexp.plan.grid import Arms, PlannedRun
    from modexp.sweep.study import Study


def on_nodes(arms: Arms) -> Arms:
    """The arms with the device that their jobs will have, whatever this machine has. UserError where it is another."""
    from modexp.cli.sweep import launcher_of

    launcher = launcher_of(arms)
    device = "cuda" if launcher.gpus else "cpu"

    def there(at: Callable[[float], Config]) -> Callable[[float], Config]:
        def config_at(budget: float) -> Config:
            config = at(budget)
            if config.trainer.device not in ("auto", device):
                raise UserError(
                    f"trainer.device={config.trainer.device} does not go with launcher.gpus={launcher.gpus}",
                    "launcher.gpus=1 gives each run a GPU, 0 none; trainer.device=auto follows it",
                )
            return replace(config, trainer=replace(config.trainer, device=device))

        return config_at

    return {arm: there(at) for arm, at in arms.items()}


def check(study: Study, first: Config) -> None:
    """Before anything is measured or written: is there a Slurm, and can what is automatic be known here?"""
    from modexp.train.hardware import choose_device

    slurm("sbatch", "--version")
    launcher: Any = first.launcher
    if not launcher.gpus or choose_device("auto").type == "cuda":
        return
    if study.precision == first.trainer.precision == "auto":
        raise UserError(
            "trainer.precision=auto looks for a GPU, and this machine has none to look at",
            "set trainer.precision=bf16, or fp32 for GPUs without bf16",
        )
    if launcher.hours is None and not (study.path / "bench.json").exists():
        raise UserError(
            "how long a run takes on a GPU is not known, and this machine has none to measure",
            f"set launcher.hours, or put what `modexp bench step --json` prints on a node at {study.path}/bench.json",
        )


def estimate(study: Study, left: Sequence[PlannedRun]) -> None:
    """Measure the study on this machine where it has what the nodes have, and say what the runs will take."""
    from modexp.files import write_json
    from modexp.plan.cost import from_measurement, measured, predict
    from modexp.sweep.estimate import measured_here
    from modexp.train.hardware import choose_device
    from modexp.train.progress import duration

    bench, config = study.path / "bench.json", left[0].config
    launcher: Any = config.launcher
    if not launcher.gpus or choose_device("auto").type == "cuda":
        found = measured_here(left, study.precision, bench)
        speed = from_measurement(found)
        write_json(bench, found)
    elif bench.exists():
        speed = measured(bench)
    else:
        return
    devices = config.trainer.devices or 1  # a prediction is for one
    times = [predict(run.plan, run.config, speed, run.branch).seconds / devices for run in left]
    note(
        f"{len(left)} runs will take about {duration(sum(times))} one by one, the longest {duration(max(times))}:"
        f" {speed.source}"
    )


def queue(runs: Sequence[RunDir], config: Any) -> None:
    """Submit what is not queued yet, and say what was."""
    study = runs[0].path.parent
    jobs = submit(study, runs, config.launcher, config.trainer.threads, config.trainer.devices or 1)
    if jobs:
        note(f"Slurm has the runs as job {', '.join(jobs)}")
    else:
        note("the runs are in Slurm's queue or at work already")


def execute(study: Path, runs: Sequence[RunDir], config: Any) -> None:
    """Queue what is not finished and follow it to its end, also what another sweep has queued."""
    from modexp.cli.follow import follow
    from modexp.cli.watch import Watch

    left = [run for run in runs if run.result() is None]
    try:
        queue(left, config)
        with Watch(runs, config.launcher.max_parallel or len(left)) as watch:
            follow(study, left, watch)
    except KeyboardInterrupt:
        raise Interrupted("the study is followed no longer; its jobs go on", how_to_follow(study)) from None


def detach(runs: Sequence[RunDir], config: Any) -> int:
    """Queue the runs and return: the same command follows them to the fit and the figure."""
    queue(runs, config)
    note(how_to_follow(runs[0].path.parent))
    return 0


def how_to_follow(study: Path) -> str:
    jobs = sorted({task.job.partition("_")[0] for task in queued(study).values()}, key=int)
    runs_dir = "" if str(study.parent) == "runs" else f" --runs-dir {study.parent}"
    ends = f"; scancel {' '.join(jobs)} ends them" if jobs else ""
    return (
        f"modexp status {study.name}{runs_dir} --watch follows them; the same sweep without --detach follows, fits and"
        f" draws{ends}"
    )


def mark_queued(rows: Sequence[dict[str, Any]], study: Path) -> None:
    """Give the rows of modexp status their ``job``, and the status queued to those that wait for a node."""
    try:
        tasks = queued(study)
    except UserError as error:  # a machine that shares the disk but not the cluster
        note(f"warning: {error.sentence}")
        return
    for row in rows:
        task = tasks.get(row["run"])
        if task and row["status"] in ("planned", "stopped", "failed", "running"):
            row["job"] = task.text
            if row["status"] != "running":
                row["status"] = "running" if task.state == "RUNNING" else "queued"
