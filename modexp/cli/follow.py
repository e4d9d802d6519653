"""Following runs that are at work elsewhere, under Slurm."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from modexp.cli.common import note
from modexp.cli.watch import Watch
from modexp.errors import UserError
from modexp.runs import RunDir
from modexp.sweep.slurm import Task, queued

POLL = 1.0  # seconds between two looks for results
LOOK = 10.0  # seconds between two looks at the queue and the locks, which ask other machines
QUIET = 2  # looks that must find nothing at work: a shared disk shows a result later than the queue its end


def follow(study: Path, runs: Sequence[RunDir], watch: Watch) -> None:
    """Tell of each of ``runs`` that ends, until all have or nothing is at work or queued any more."""
    left = {run.name: run for run in runs}
    active: dict[str, Task | None] = {}
    quiet, looked = 0, -LOOK
    while left:
        failed: list[RunDir] = []
        if time.monotonic() - looked >= LOOK:
            looked = time.monotonic()
            found = at_work(study, [*left.values()])
            if found is not None:
                active = found
                quiet = 0 if active else quiet + 1
                failed = [run for name, run in left.items() if name not in active and run.error_path.exists()]
        ended = [run for run in left.values() if run.result_path.exists() or run in failed or quiet == QUIET]
        for run in ended:
            watch.ended(run, run.error() or f"left unfinished, see {run.log_path}")
            del left[run.name]
        watch.show([run for name, run in left.items() if is_running(name, active)])
        if left:
            time.sleep(POLL)


def at_work(study: Path, runs: Sequence[RunDir]) -> dict[str, Task | None] | None:
    """Runs that have a job or a process, by name; None where the queue does not answer."""
    try:
        queue = queued(study)
    except UserError as error:
        note(f"warning: {error.sentence}")
        return None
    return {run.name: queue.get(run.name) for run in runs if run.name in queue or run.is_held()}


def is_running(name: str, active: dict[str, Task | None]) -> bool:
    if name not in active:
        return False
    task = active[name]
    return task is None or task.state == "RUNNING"
