"""Runs as processes on this machine, ``slots`` at a time, each in a session of its own: one that dies, dies alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from modexp.errors import UserError
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


def slots_of(wanted: int | None, threads: int, device: str, devices: int | None = None) -> list[str | None]:
    """One entry a slot: the GPUs it owns, ``devices`` of them (1 by default), or None for the CPU."""
    devices = devices or 1
    gpus = [] if device == "cpu" else visible_gpus()
    if gpus:
        if devices > len(gpus):
            raise UserError(
                f"trainer.devices={devices}, but this machine shows {len(gpus)} GPUs",
                f"try trainer.devices={len(gpus)}, or trainer.device=cpu",
            )
        sets = [",".join(gpus[i : i + devices]) for i in range(0, len(gpus) - devices + 1, devices)]
        return [sets[i % len(sets)] for i in range(wanted or len(sets))]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [None] * (wanted or max(1, cores // (threads * devices)))


def command(run: RunDir, devices: int | None = None) -> list[str]:
    """Several processes are torchrun's, with a port of their own: runs side by side do not meet."""
    words = ["-m", "modexp", "train", "--run", str(run.path)]
    if devices and devices > 1:
        # -- before the rest, or else torchrun takes --run for a --run-path of its own
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
        words = ["-m", *torchrun, "-m", "--", *words[1:]]
    return [sys.executable, *words]


@dataclass
class Launcher:
    """Works through a list of runs; ``on_end`` hears of each run with its exit code, in the caller's thread."""

    runs: Sequence[RunDir]
    slots: Sequence[str | None]
    threads: int
    devices: int | None = None  # processes a run
    waiting: list[RunDir] = field(init=False)
    active: dict[int, tuple[RunDir, subprocess.Popen[bytes], str | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.waiting = list(self.runs)

    def run(self, on_end: Callable[[RunDir, int], None], on_wait: Callable[[list[RunDir]], None]) -> None:
        """Start, watch and reap until nothing is left; on an exception stop what runs, saving its state."""
        free = list(self.slots)
        try:
            while self.waiting or self.active:
                while free and self.waiting:
                    self.start(self.waiting.pop(0), free.pop(0))
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

    def start(self, run: RunDir, slot: str | None) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        if slot is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot
        with open(run.log_path, "ab") as log:
            process = subprocess.Popen(
                command(run, self.devices),
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
