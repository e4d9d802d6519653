"""What a person sees of a running study: the runs at work and a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from modexp.analysis.records import record
from modexp.claim import holder
from modexp.runs import RunDir
from modexp.sweep.left import left_of, seconds_left
from modexp.train.progress import count, duration

LIVE_EVERY = 1.0  # seconds from one picture to the next
PLAIN_EVERY = 60.0  # and from one line


class Watch:
    """Follows ``runs``, all of a study's; those without a result are counted as they end."""

    def __init__(self, runs: Sequence[RunDir], slots: int) -> None:
        self.rows = {run.name: record(run) for run in runs}
        self.total, self.ended_runs, self.slots = sum(run.result() is None for run in runs), 0, slots
        self.console = Console(stderr=True, highlight=False)
        self.bar = Progress(
            TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=self.console
        )
        self.task = self.bar.add_task("runs", total=self.total)
        self.live = Live(console=self.console) if self.console.is_terminal else None
        self.every = LIVE_EVERY if self.live else PLAIN_EVERY
        self.looked = time.monotonic()

    def __enter__(self) -> Watch:
        if self.live:
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live:
            self.live.__exit__(*error)

    def ended(self, run: RunDir, error: str) -> None:
        """One line; ``error`` is told where there is no result."""
        self.ended_runs += 1
        self.bar.advance(self.task)
        self.rows[run.name] = record(run)
        result = run.result()
        if result is None:
            outcome = f"failed: {error}"
        elif result["status"] != "done":
            outcome = f"{result['status']}: {result['error']}"
        else:
            seconds = result["train_seconds"] + result["eval_seconds"]
            kind, loss = ("loss", result["loss"]) if result["loss"] is not None else ("top-k loss", result["loss_topk"])
            outcome = f"{kind} {loss:.4f}  {seconds:.0f} s"
        self.say(f"[{self.ended_runs}/{self.total}] {run.name}  {outcome}")

    def say(self, sentence: str) -> None:
        self.console.print(sentence, markup=False, soft_wrap=True)

    def show(self, at_work: Sequence[RunDir], elsewhere: Sequence[RunDir] = ()) -> None:
        """A new picture once a second, or a line a minute; ``elsewhere``: runs that other processes have."""
        if time.monotonic() - self.looked < self.every:
            return
        self.looked = time.monotonic()
        for run in (*at_work, *elsewhere):
            self.rows[run.name] = record(run)
        if self.live is None:
            self.say(self.summary())
            return
        table = Table.grid(padding=(0, 2))
        for run in at_work:
            table.add_row(run.name, *progress_of(self.rows[run.name]))
        for run in elsewhere:
            host = holder(run.path).get("host", "this machine")
            table.add_row(run.name, *progress_of(self.rows[run.name]), f"another process on {host}")
        self.live.update(Group(table, self.bar, self.summary()))

    def summary(self) -> str:
        """2 done, 1 running; 2.1e+12 of 9e+12 FLOPs consumed (23%) in 0.31 device-hours; about 12m left"""
        rows = list(self.rows.values())
        counts = Counter(row["status"] for row in rows)
        left = left_of(rows)
        seconds = left.wall_seconds(self.slots)
        return (
            ", ".join(f"{n} {status}" for status, n in counts.items())
            + f"; {left.spend}"
            + (f"; about {duration(seconds)} left" if seconds else "")
        )


def progress_of(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """Step, loss, speed and time left of a run."""
    if not row["steps"] or not row.get("tokens_per_s"):
        return "starting", "", "", ""
    return (
        f"step {row['steps']:,}/{row['steps_planned']:,} ({row['steps'] / row['steps_planned']:.0%})",
        f"loss {row['train_loss']:.3f}",
        f"{count(row['tokens_per_s'])} tok/s",
        f"{duration(seconds_left(row) or 0.0)} left",
    )
