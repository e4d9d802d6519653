"""Atomic writes and strict reads: a file is either the old one or the new one, never half of either."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modexp.errors import UserError


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write beside ``path``, flush to disk, rename into place."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise unwritable(path.parent, error) from None


class Unwritable(UserError):
    """A place that cannot be written, and what the system said."""

    error: OSError


def unwritable(folder: Path, error: OSError, what: str = "", cure: str = "") -> Unwritable:
    failed = Unwritable(
        f"{what}{folder} cannot be written: {error.strerror}",
        cure or "see to its permissions and free space, or choose another place",
    )
    failed.error = error
    return failed


@contextmanager
def exclusive(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Only one process at a time holds the lock in ``path``, and it goes with its process. On a disk that has no locks
    nobody waits: what is written is whole anyway."""
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass
        yield


def check_writable(folder: Path) -> None:
    """Refuse a folder that could not be made or written, before long work depends on it. Leaves nothing behind."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.exists(place))
    if not there.is_dir():
        raise unwritable(folder, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    if not os.access(there, os.W_OK | os.X_OK):
        raise unwritable(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """The object in ``path``, which must hold ``keys``. UserError for what is missing or damaged."""
    remedy = "remove that file alone and give the command that made it again"
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", "give the command that makes it") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}", remedy) from None
    if not isinstance(value, dict) or any(key not in value for key in keys):
        raise UserError(f"{path} is damaged: it lacks {', '.join(keys)}", remedy)
    return value
