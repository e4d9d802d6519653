"""Where a run goes on from, and what a trunk leaves for the runs that branch off it (modexp/plan/trunk.py).

runs/<study>/<trunk>/branches/step-N is a checkpoint at which another run leaves the trunk. It lies apart from
checkpoints/, whose last few are kept, and stays until the study needs it no more (:func:`drop_spent`).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from modexp.errors import RunFailed
from modexp.runs import RunDir
from modexp.train import checkpoint


def starts(run: RunDir) -> Iterator[Path]:
    """Checkpoints to go on from, the best first: the run's own, newest first; then, of a branch, its trunk's.

    RunFailed where a branch has none, and its trunk is still on the way to it.
    """
    yield from reversed(checkpoint.saved(run.checkpoints))
    origin = run.origin()
    if origin is None:
        return
    trunk, point = origin
    if point.exists():
        yield point
    elif trunk.result() is None:
        raise RunFailed(
            f"{run.path} branches off {trunk.path}, which has not come as far as {point.name}",
            "the command that made the study trains the trunk first",
        )
    print(f"modexp: {point} cannot be had: {run.path} is trained whole, to the same end", file=sys.stderr, flush=True)


def drop_spent(runs: Iterable[RunDir]) -> None:
    """Remove the checkpoints of trunks that are finished, as all their branches are."""
    leaving: dict[Path, list[RunDir]] = {}
    for run in runs:
        if origin := run.origin():
            leaving.setdefault(origin[0].path, [origin[0]]).append(run)
    for family in leaving.values():
        if all(run.result() is not None for run in family):
            shutil.rmtree(family[0].branches, ignore_errors=True)
