"""How many bytes a device has left for runs, so that those side by side fit together."""

from __future__ import annotations

import math
import os
import subprocess
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")  # version 2: the limit of the container that this process is in


def free_bytes(slot: str | None) -> float:
    """Of the GPU that the slot names, of several the fullest, or of main memory; infinite where nothing tells."""
    return free_of_gpu(slot) if slot is not None else free_of_machine()


def free_of_gpu(gpu: str) -> float:
    """Asked of the driver's tool, since torch would take half a gigabyte of the device to answer."""
    words = ["nvidia-smi", f"--id={gpu}", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
        return min(float(line) for line in done.stdout.splitlines()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        return math.inf


def free_of_machine() -> float:
    try:
        with open("/proc/meminfo") as file:
            free = next(1024.0 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = next(
            int(line.split()[1])
            for line in (CGROUP / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file")  # given back when asked for
        )
        return min(free, limit - used + cached)
    except (OSError, ValueError, StopIteration):  # no container, or one without a limit
        return free
