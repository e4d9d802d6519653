"""Runs as processes on this machine, ``slots`` at a time, each in a session of its own: one that dies, dies alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from modexp.errors import UserError
from modexp.runs import RunDir
from modexp.sweep.room import free_bytes

PATIENCE = 60.0  # seconds that a run gets to save its state after Ctrl-C
POLL = 0.1
LOOK = 1.0  # seconds between two looks at the runs of other processes
TOLD = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # what torchrun passes on; the last is Slurm's warning, not its default
SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # seconds that torchrun then gives its processes, 30 unless it is told


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
    return [*trainer(devices), str(run.path)]


def trainer(devices: int | None = None) -> list[str]:
    """What trains the run whose directory is the next word. Several processes are torchrun's, with a port of their own:
    runs side by side do not meet."""
    words = ["modexp", "train", "--run"]
    if devices and devices > 1:
        torchrun = [
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={devices}",
            f"--signals-to-handle={TOLD}",
        ]
        words = [*torchrun, "-m", "--", *words]  # without -- torchrun takes --run for a --run-path of its own
    return [sys.executable, "-m", *words]


@dataclass(frozen=True)
class Active:
    run: RunDir
    process: subprocess.Popen[bytes]
    slot: str | None


class Launcher:
    """Works through a list of runs; ``on_end`` hears of each run with its exit code, in the caller's thread.

    A run that another process has is watched (``held``): it counts when it is finished or has failed there, and is
    started here if that process is stopped or dies.
    """

    def __init__(
        self, runs: Sequence[RunDir], slots: Sequence[str | None], threads: int, devices: int | None = None
    ) -> None:
        self.threads, self.devices = threads, devices  # of one process, and processes a run
        self.plans = {run.name: run.plan() for run in runs}
        self.origins = {run.path: run.origin() for run in runs}
        self.waiting = longest_first(runs, self.plans)
        self.held: list[RunDir] = []
        self.killed: list[RunDir] = []
        self.active: list[Active] = []
        self.slots = list(slots)  # those that are free
        self.room: dict[str | None, float] = {}  # bytes a device had for us when nothing of ours ran there

    def run(
        self,
        on_end: Callable[[RunDir, int], None],
        on_wait: Callable[[Launcher], None],
        on_stop: Callable[[Launcher], None],
    ) -> None:
        """Start, watch and reap until nothing is left; on an exception tell ``on_stop`` and stop what runs."""
        looked = time.monotonic()
        try:
            while self.waiting or self.active or self.held:
                self.fill(on_end)
                self.reap(on_end)
                if time.monotonic() - looked > LOOK:
                    self.look(on_end)
                    looked = time.monotonic()
                on_wait(self)
                time.sleep(POLL)
        except BaseException:
            on_stop(self)
            self.stop()
            raise

    # ---- starting ----------------------------------------------------------------------------------------------

    def fill(self, on_end: Callable[[RunDir, int], None]) -> None:
        """Give each free slot the longest waiting run that fits beside those on its device."""
        for slot in list(self.slots):
            while (run := self.next_for(slot)) is not None:
                self.waiting.remove(run)
                state = run.state()  # another sweep of the study may have been there since
                if state == "running":
                    self.held.append(run)
                elif state in ("done", "diverged"):
                    on_end(run, 0)
                else:
                    self.slots.remove(slot)
                    self.start(run, slot)
                    break

    def next_for(self, slot: str | None) -> RunDir | None:
        """At least one run is always at work, whatever was predicted of it."""
        beside = [self.bytes_of(active.run) for active in self.active if active.slot == slot]
        ready = [run for run in self.waiting if self.ready(run)]
        if not ready:
            return None
        if not beside:
            # a prediction is one process's: of a run's, each has a GPU of its own, or all share main memory
            self.room[slot] = free_bytes(slot) / (1 if slot else self.devices or 1)
            return ready[0]
        left = self.room[slot] - sum(beside)
        return next((run for run in ready if self.bytes_of(run) <= left), None)

    def bytes_of(self, run: RunDir) -> float:
        """As predicted; nothing for a run of which nothing is known."""
        return self.plans[run.name].get("predicted", {}).get("predicted_memory_bytes") or 0.0

    def ready(self, run: RunDir) -> bool:
        """A branch waits for its trunk's checkpoint, as long as somebody is on the way to it."""
        origin = self.origins[run.path]
        if origin is None or origin[1].exists():
            return True
        trunk = origin[0]
        ahead = [*self.waiting, *self.held, *(active.run for active in self.active)]
        return trunk.path not in [other.path for other in ahead] and not trunk.is_held()

    def start(self, run: RunDir, slot: str | None) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), SHUTDOWN: str(round(PATIENCE))}
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
        self.active.append(Active(run, process, slot))

    # ---- ending ------------------------------------------------------------------------------------------------

    def reap(self, on_end: Callable[[RunDir, int], None]) -> None:
        for active in list(self.active):
            code = active.process.poll()
            if code is not None:
                self.active.remove(active)
                self.slots.append(active.slot)
                if active.run.result() is None and active.run.is_held():  # another sweep was quicker
                    self.held.append(active.run)
                else:
                    on_end(active.run, code)

    def look(self, on_end: Callable[[RunDir, int], None]) -> None:
        """What became of the runs that other processes had."""
        for run in list(self.held):
            state = run.state()
            if state == "running":
                continue
            self.held.remove(run)
            if state in ("done", "diverged", "failed"):
                on_end(run, 0)
            else:
                self.waiting.append(run)

    def stop(self) -> None:
        """Ask what runs to save its state, and wait for it; another Ctrl-C kills at once."""
        for active in self.active:
            active.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        try:
            for active in self.active:
                with suppress(subprocess.TimeoutExpired):
                    active.process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for active in self.active:
                if active.process.poll() is None:
                    self.killed.append(active.run)
                    active.process.kill()
                    active.process.wait()


def longest_first(runs: Sequence[RunDir], plans: Mapping[str, Mapping[str, Any]]) -> list[RunDir]:
    """By predicted seconds; by FLOPs where not every run has a prediction."""
    seconds = {run.name: plans[run.name].get("predicted", {}).get("predicted_seconds") for run in runs}
    if None in seconds.values():
        seconds = {run.name: plans[run.name]["plan"]["flops"] for run in runs}
    return sorted(runs, key=lambda run: -seconds[run.name])


def ending(code: int) -> str:
    """An exit code in words; a process that the system killed for its memory leaves nothing else."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"killed by {name}" + (", out of memory perhaps" if name == "SIGKILL" else "")
