"""Who works in a directory: one process at a time, on whichever machine that shares the disk.

On one machine a lock (flock) tells, at once, and goes with its process however that ends. Not every network disk
carries locks to other machines. So the holder also touches a file there, ``.claim-N``, every ten seconds: a claim
that was not touched for a minute is of a dead process, and is taken over by making ``.claim-N+1``, which only one
process can.

No clock is trusted: ages are differences of two times of the same disk, and what seems dead is watched for longer
than a touch is due before it is taken over.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from modexp.errors import RunFailed, UserError
from modexp.files import unwritable

BEAT = 10.0  # seconds from one touch to the next
STALE = 60.0  # seconds without one, after which a claim of another machine is taken for dead
PATIENCE = 2.0  # seconds: a reader of the state holds the lock for a moment

LOCK = ".lock"
CLAIM = ".claim-"


class Claim:
    """A directory held by this process: see :func:`claimed`."""

    def __init__(self, path: Path, token: str) -> None:
        self.path = path
        self.token = token  # a number can be another's by now

    def holds(self) -> bool:
        return read(self.path).get("token") == self.token

    def check(self) -> None:
        """RunFailed where another process took over: this one was silent for too long, asleep or cut off the disk."""
        if not self.holds():
            other = holder(self.path.parent)
            raise RunFailed(
                f"{self.path.parent} was taken over by another process" + (f" on {other['host']}" if other else ""),
                "this process was silent for too long, and writes nothing more there",
            )


def state(folder: Path) -> str:
    """free | held | stale. A stale claim is of a process that is gone."""
    locked = lock_is_held(folder)
    if locked:
        return "held"
    number = newest(folder)
    if not number:
        return "free"
    return "held" if may_live(folder, number, locked) else "stale"


@contextmanager
def claimed(folder: Path) -> Iterator[Claim]:
    """Hold ``folder`` for this process. UserError where a living one has it, or where it cannot be written."""
    with lock(folder) as locked:
        claim = take(folder, locked)
        try:
            with beating(claim.path, claim.holds):
                yield claim
        finally:
            if claim.holds():
                claim.path.unlink(missing_ok=True)


@contextmanager
def beating(path: Path, ours: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Touch ``path`` every ten seconds, as long as it is ``ours``."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            if ours():
                with suppress(OSError):  # the disk may come back
                    os.utime(path)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# ---- the lock, for this machine --------------------------------------------------------------------------------


@contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock; yields False on a disk that has none."""
    try:
        file = open(folder / LOCK, "a+b")  # noqa: SIM115
    except OSError as error:
        raise unwritable(folder, error) from None
    with file:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise taken(folder) from None
                time.sleep(0.05)
            except OSError:
                locked = False
                break
        yield locked


def lock_is_held(folder: Path) -> bool | None:
    """Whether a living process of this machine has the folder; None on a disk without locks."""
    try:
        with open(folder / LOCK, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


# ---- the claim, for the others ---------------------------------------------------------------------------------


def take(folder: Path, locked: bool) -> Claim:
    """Make the claim after the newest there; the caller has the lock, where the disk has one."""
    number = newest(folder)
    if number and may_live(folder, number, False if locked else None):
        raise taken(folder)
    if number and not ours(folder, number, locked):
        watch(folder, number)
    path, token = folder / f"{CLAIM}{number + 1}", secrets.token_hex(8)
    try:
        with open(path, "x") as file:
            file.write(json.dumps({**myself(), "token": token}))
    except FileExistsError:
        raise taken(folder) from None
    except OSError as error:
        path.unlink(missing_ok=True)
        raise unwritable(folder, error) from None
    if newest(folder) != number + 1:  # our number was that of a claim long over
        path.unlink()
        raise taken(folder)
    for old in folder.glob(f"{CLAIM}*"):
        if old != path:
            old.unlink(missing_ok=True)
    return Claim(path, token)


def watch(folder: Path, number: int) -> None:
    """UserError if the claim is touched within the time in which a living process would."""
    path = folder / f"{CLAIM}{number}"
    before = touched(path)
    deadline = time.monotonic() + 1.5 * BEAT
    while time.monotonic() < deadline:
        if touched(path) != before:
            raise taken(folder)
        time.sleep(BEAT / 20)


def may_live(folder: Path, number: int, locked: bool | None) -> bool:
    """Whether the claim's process may be alive: of this machine the lock, if there is one, tells; of others its age."""
    return not ours(folder, number, locked is not None) and abs(age(folder / f"{CLAIM}{number}")) < STALE


def ours(folder: Path, number: int, locks: bool) -> bool:
    """Whether the claim was made on this machine, on a disk with ``locks``."""
    return locks and read(folder / f"{CLAIM}{number}").get("machine") == machine()


def newest(folder: Path) -> int:
    """The number of the newest claim, 0 where there is none."""
    names = [entry.name for entry in os.scandir(folder)] if folder.is_dir() else []
    return max(
        (int(n.removeprefix(CLAIM)) for n in names if n.startswith(CLAIM) and n[len(CLAIM) :].isdigit()), default=0
    )


def holder(folder: Path) -> dict[str, Any]:
    """``host`` and ``pid`` of the newest claim; empty where there is none."""
    number = newest(folder)
    return read(folder / f"{CLAIM}{number}") if number else {}


def taken(folder: Path) -> UserError:
    other = holder(folder)
    by = f" ({other['pid']} on {other['host']})" if other else ""
    return UserError(
        f"{folder} is being trained by another process{by}", "wait for it, or stop it; modexp status follows it"
    )


def age(path: Path) -> float:
    """Seconds since ``path`` was touched, by the clock of its disk, which a touch of the folder's lock tells."""
    probe = path.parent / LOCK
    try:
        os.utime(probe)
        now = probe.stat().st_mtime
    except OSError:  # a disk that is only read
        now = time.time()
    return now - (touched(path) or 0)


def touched(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None


def read(path: Path) -> dict[str, Any]:
    """What a claim says of its process; empty while it is being written."""
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def myself() -> dict[str, Any]:
    return {"host": platform.node(), "machine": machine(), "pid": os.getpid()}


@cache
def machine() -> str:
    """The running system, containers on it included, which share its locks; a name can be another's too."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()
