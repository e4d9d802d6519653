"""The rows of a run's metrics: marked in the device's own time, written once the numbers have reached the host.

A device is kept at work: what is marked after one step is written when the next one is on its way.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import IO, Any

import torch
from torch import Tensor

from modexp.train.outcome import Consumed
from modexp.train.progress import Progress
from modexp.train.trackers import Tracker


class Moment:
    """A moment of a device, and numbers (n,) that it had then, on their way to the host."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers.to("cpu", non_blocking=True)  # from a GPU into pinned memory
        self.event = torch.cuda.Event(enable_timing=True) if numbers.is_cuda else None
        if self.event is not None:
            self.event.record()
        self.clock = time.perf_counter()

    def read(self) -> list[float]:
        if self.event is not None:
            self.event.synchronize()
        return self.numbers.tolist()

    def since(self, other: Moment) -> float:
        """Seconds; of a GPU, once this moment was read."""
        if self.event is not None and other.event is not None:
            return other.event.elapsed_time(self.event) / 1e3
        return self.clock - other.clock


class Diverged(Exception):
    """A loss is not finite: which, and where."""


class Rows:
    """Writes rows of a run with ``plan`` to ``file``, to ``tracker`` and to what a person sees, and adds the seconds
    that they tell of to ``consumed``."""

    def __init__(
        self,
        file: IO[str],
        tracker: Tracker,
        progress: Progress,
        consumed: Consumed,
        plan: dict[str, Any],
        bytes_per_token: float,  # of the training text
        limit: float,  # FLOP/s, what MFU is measured against
        device: torch.device,
    ) -> None:
        self.file, self.tracker, self.progress, self.consumed = file, tracker, progress, consumed
        self.plan, self.bytes_per_token, self.limit, self.device = plan, bytes_per_token, limit, device
        self.marked: tuple[dict[str, Any], int, int, Moment] | None = None
        self.begin(consumed.sequences)

    def begin(self, sequences: int) -> None:
        """Training goes on from here, with ``sequences`` done: the time until now was something else's."""
        self.last, self.sequences = self.now(), sequences
        self.counted = self.last  # the seconds up to here are consumed

    def now(self) -> Moment:
        return Moment(torch.zeros(1, device=self.device))

    def count(self) -> None:
        """Add the seconds since the last row, which a state that is about to be saved has consumed. Waits."""
        now = self.now()
        now.read()
        self.consumed.train_seconds += now.since(self.counted)
        self.counted = now

    def mark(self, lr: float, steps: int, loss_sum: Tensor, norm: Tensor) -> None:
        """A row is due of the step on its way, the last one consumed; ``loss_sum`` is of the ``steps`` since the last
        row."""
        sequences = self.consumed.sequences
        row = {
            "step": self.consumed.step,
            "tokens": sequences * self.plan["sequence_length"],
            "flops": sequences * self.plan["training_flops_per_sequence"],
            "train/lr": lr,
        }
        self.marked = row, sequences, steps, Moment(torch.stack((loss_sum, norm)))

    def settle(self, evaluate: Callable[[], dict[str, float]] | None = None) -> None:
        """Write what was marked, if anything, with what ``evaluate`` adds where the loss is finite. Waits for it."""
        if self.marked is None:
            return
        row, sequences, steps, moment = self.marked
        self.marked = None
        loss_sum, norm = moment.read()
        loss = loss_sum / steps
        seconds = moment.since(self.last)
        self.consumed.train_seconds += moment.since(self.counted)
        rate = (sequences - self.sequences) * self.plan["sequence_length"] / seconds
        flops_per_token = self.plan["training_flops_per_sequence"] / self.plan["sequence_length"]
        row |= {
            "train/loss": loss,
            "train/bits_per_byte": loss / math.log(2) / self.bytes_per_token,
            "train/grad_norm": norm,
            "perf/tokens_per_s": rate,
            "perf/mfu": rate * flops_per_token / self.limit,
        }
        self.last, self.counted, self.sequences = moment, moment, sequences
        if evaluate is not None and math.isfinite(loss):
            row |= evaluate()
            self.begin(sequences)
        odd = [key for key, value in row.items() if key.endswith("/loss") and not math.isfinite(value)]
        told = {key: value for key, value in row.items() if math.isfinite(value)}
        self.file.write(json.dumps(told) + "\n")
        self.file.flush()
        self.tracker.log(told)
        if odd:
            raise Diverged(f"{odd[0]} is {row[odd[0]]} at step {row['step']}")
        self.progress.show(row)
