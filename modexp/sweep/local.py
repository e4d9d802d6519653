"""Runs as processes on this machine, ``slots`` at a time, each in a session of its own: one that dies, dies alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from modexp.runs import RunDir

PATIENCE = 60.0  # seconds that a run gets to save its state after Ctrl-C
POLL = 0.1


def visible_gpus() -> list[str]:
    """Identifiers of the GPUs this process may use, without importing torch where there are none."""
    masked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if masked is not None:
        return [gpu for gpu in masked.split(",") if gpu.strip() not in ("", "-1")]
    if not os.path.exists("/dev/nvidiactl"):
        return []
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def slots_of(wanted: int | None, threads: int, device: str) -> list[str | None]:
    """One entry a slot: the GPU it owns, or None for the CPU."""
    gpus = [] if device == "cpu" else visible_gpus()
    if gpus:
        return [gpus[i % len(gpus)] for i in range(wanted or len(gpus))]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [None] * (wanted or max(1, cores // threads))


def command(run: RunDir) -> list[str]:
    return [sys.executable, "-m", "modexp", "train", "--run", str(run.path)]


@dataclass
class Launcher:
    """Works through a list of runs; ``on_end`` hears of each run with its exit code, in the caller's thread."""

    runs: Sequence[RunDir]
    slots: Sequence[str | None]
    threads: int
    waiting: list[RunDir] = field(init=False)
    active: dict[int, tuple[RunDir, subprocess.Popen[bytes], str | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.waiting = list(self.runs)
        self.origins = {run.path: run.origin() for run in self.runs}

    def run(self, on_end: Callable[[RunDir, int], None], on_wait: Callable[[list[RunDir]], None]) -> None:
        """Start, watch and reap until nothing is left; on an exception stop what runs, saving its state."""
        free = list(self.slots)
        try:
            while self.waiting or self.active:
                while free and (run := next(filter(self.ready, self.waiting), None)):
                    self.waiting.remove(run)
                    self.start(run, free.pop(0))
                for pid, (run, process, slot) in list(self.active.items()):
                    code = process.poll()
                    if code is not None:
                        del self.active[pid]
                        free.append(slot)
                        on_end(run, code)
                on_wait([run for run, _, _ in self.active.values()])
                time.sleep(POLL)
        finally:
            self.stop()

    def ready(self, run: RunDir) -> bool:
        """A branch waits for its trunk's checkpoint, as long as somebody is on the way to it."""
        origin = self.origins[run.path]
        if origin is None or origin[1].exists():
            return True
        trunk = origin[0]
        ours = [other.path for other in self.waiting] + [other.path for other, _, _ in self.active.values()]
        return trunk.path not in ours and not trunk.is_locked()

    def start(self, run: RunDir, slot: str | None) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        if slot is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot
        with open(run.log_path, "ab") as log:
            process = subprocess.Popen(
                command(run),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self.active[process.pid] = (run, process, slot)

    def stop(self) -> None:
        for _, process, _ in self.active.values():
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        for _, process, _ in self.active.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        self.active.clear()
