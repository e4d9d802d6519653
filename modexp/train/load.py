"""Whether the machine had other work when a measurement began."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

SAMPLE = 0.5  # seconds
BUSY_CORES = 0.3  # cores at work for others, from which on times are not to be trusted
BUSY_STEAL = 0.02  # share of the time that the host gave to other machines


@dataclass(frozen=True)
class Load:
    """``cores_at_work`` of ``cores``, while this process slept; ``steal``, None where the system does not tell."""

    load_average: float | None
    cores: int
    cores_at_work: float | None
    steal: float | None

    @property
    def sentence(self) -> str:
        """Empty for a quiet machine."""
        if (self.cores_at_work or 0) <= BUSY_CORES and (self.steal or 0) <= BUSY_STEAL:
            return ""
        return (
            f"the machine was busy: {self.cores_at_work:.1f} of {self.cores} cores at work for others,"
            f" {self.steal:.0%} stolen by the host, load average {self.load_average:.1f}; ratios hold better than times"
        )


def load() -> Load:
    """Takes half a second."""
    before = jiffies()
    if before:
        time.sleep(SAMPLE)
    after = jiffies()
    average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    cores = os.cpu_count() or 1
    if not before or not after:
        return Load(average, cores, None, None)
    spent = [b - a for a, b in zip(before, after, strict=True)]
    total = sum(spent[:8]) or 1
    idle = spent[3] + spent[4]
    return Load(average, cores, cores * (1 - idle / total), spent[7] / total)


def jiffies() -> list[int]:
    """user, nice, system, idle, iowait, irq, softirq, steal, ...: proc(5); empty where there is no /proc."""
    try:
        with open("/proc/stat") as file:
            return [int(word) for word in file.readline().split()[1:]]
    except FileNotFoundError:
        return []
