"""Where a result comes from: commit, versions, hardware, time."""

from __future__ import annotations

import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def git_state() -> dict[str, Any]:
    """Commit of the source tree that modexp runs from, and whether it was changed; empty for an installed wheel, and
    None where git is missing, too slow or refuses: no run is lost over that."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return {}

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def provenance(device: str) -> dict[str, Any]:
    return {
        **git_state(),
        "modexp": version("modexp"),
        "torch": version("torch"),
        "python": platform.python_version(),
        "device": device,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
