"""Which runs a living sweep of a study is going to start: a file of each sweep in the study's folder.

The file only informs: who trains a run is settled by its claim (modexp/claim.py). It is touched like a claim, and one
left behind by a dead sweep is ignored after a minute.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from modexp.claim import STALE, age, beating, machine, myself, read
from modexp.errors import UserError
from modexp.files import write_json

NAME = ".queue-"


class Queue:
    """This process's list: see :func:`opened`."""

    def __init__(self, study: Path) -> None:
        self.path = study / f"{NAME}{machine()[:8]}-{os.getpid()}"
        self.runs: list[str] | None = None
        self.show([])

    def show(self, runs: Sequence[str]) -> None:
        """Write the list where it changed."""
        if list(runs) != self.runs:
            self.runs = list(runs)
            with suppress(UserError):  # a full disk, say: it only informs
                write_json(self.path, {**myself(), "runs": self.runs})


@contextmanager
def opened(study: Path) -> Iterator[Queue]:
    queue = Queue(study)
    try:
        with beating(queue.path):
            yield queue
    finally:
        with suppress(OSError):
            queue.path.unlink(missing_ok=True)


def queued(study: Path) -> set[str]:
    """Names of the runs that wait in a living sweep."""
    names: set[str] = set()
    for path in study.glob(f"{NAME}*"):
        found = read(path)
        if lives(path, found):
            names |= set(found.get("runs", ()))
    return names


def lives(path: Path, found: dict[str, object]) -> bool:
    if abs(age(path)) >= STALE:
        return False
    pid = found.get("pid")
    return found.get("machine") != machine() or not isinstance(pid, int) or is_alive(pid)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
