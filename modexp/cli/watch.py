"""What a person sees of a running study: a bar and the runs at work on a terminal, a line a finished run elsewhere."""

from __future__ import annotations

import json
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from modexp.runs import RunDir

TAIL = 4096  # bytes of metrics.jsonl that surely hold its last line
EVERY = 1.0  # seconds


class Watch:
    def __init__(self, total: int) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.bar = Progress(
            TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=self.console
        )
        self.task = self.bar.add_task("runs", total=total)
        self.live = Live(console=self.console) if self.console.is_terminal else None
        self.total, self.done = total, 0
        self.started = self.looked = time.monotonic()

    def __enter__(self) -> Watch:
        if self.live:
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live:
            self.live.__exit__(*error)

    def ended(self, run: RunDir, result: dict[str, Any] | None, error: str) -> None:
        self.done += 1
        self.bar.advance(self.task)
        if result is None:
            outcome = f"failed: {error}"
        elif result["status"] != "done":
            outcome = f"{result['status']}: {result['error']}"
        else:
            seconds = result["train_seconds"] + result["eval_seconds"]
            kind, loss = ("loss", result["loss"]) if result["loss"] is not None else ("top-k loss", result["loss_topk"])
            outcome = f"{kind} {loss:.4f}  {seconds:.0f} s"
        self.console.print(f"[{self.done}/{self.total}] {run.name}  {outcome}", markup=False, soft_wrap=True)

    def running(self, runs: list[RunDir]) -> None:
        """Refresh the live view, once a second."""
        if self.live is None or time.monotonic() - self.looked < EVERY:
            return
        self.looked = time.monotonic()
        table = Table.grid(padding=(0, 2))
        for run in runs:
            table.add_row(run.name, *progress_of(run))
        both = Table.grid()
        both.add_row(table)
        both.add_row(self.bar)
        self.live.update(both)


def progress_of(run: RunDir) -> tuple[str, str, str]:
    """Step, loss and speed from the last line of the metrics."""
    try:
        with open(run.metrics_path, "rb") as file:
            file.seek(max(0, run.metrics_path.stat().st_size - TAIL))
            row = json.loads(file.read().split(b"\n")[-2])
    except (OSError, ValueError, IndexError):
        return "starting", "", ""
    steps = run.plan()["plan"]["steps"]
    return (
        f"step {row['step']:,}/{steps:,} ({row['step'] / steps:.0%})",
        f"loss {row['train/loss']:.3f}",
        f"{row['perf/tokens_per_s']:,.0f} tok/s",
    )
