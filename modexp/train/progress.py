"""What a person sees while a run trains: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

PLAIN_EVERY = 10.0  # seconds


def duration(seconds: float) -> str:
    """``28m``, ``3h05m``, ``12s``, ``2d04h``."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    if s < 100 * 86400:
        return f"{s // 86400}d{s % 86400 // 3600:02d}h"
    return f"{s / 86400 / 365.25:,.1f} years"


def count(number: float) -> str:
    for suffix, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g}{suffix}"
    return f"{number:.3g}"


def held_out(row: dict[str, Any]) -> float | None:
    """The held-out loss of a row, causal where there is such; None between validations."""
    return row.get("val/loss", row.get("val/loss_topk"))


class Progress:
    """Use as a context manager; call :meth:`show` with each row of metrics."""

    def __init__(self, name: str, steps: int) -> None:
        self.name, self.steps = name, steps
        self.console = Console(stderr=True, highlight=False)
        self.live = Live(console=self.console, refresh_per_second=4) if self.console.is_terminal else None
        self.started = self.last_plain = time.monotonic()
        self.first_step: int | None = None

    def __enter__(self) -> Progress:
        if self.live:
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live:
            self.live.__exit__(*error)

    def line(self, row: dict[str, Any]) -> str:
        step = row["step"]
        if self.first_step is None:
            self.first_step = step
        done = step - self.first_step
        left = (time.monotonic() - self.started) / done * (self.steps - step) if done else float("nan")
        text = (
            f"step {step}/{self.steps} ({step / self.steps:5.1%})  loss {row['train/loss']:.3f}"
            f"  lr {row['train/lr']:.1e}  {count(row['perf/tokens_per_s'])} tok/s"
            f"  mfu {row['perf/mfu']:.0%}" + (f"  eta {duration(left)}" if done else "")
        )
        return text + (f"  val {held_out(row):.4f}" if held_out(row) is not None else "")

    def show(self, row: dict[str, Any]) -> None:
        text = self.line(row)
        if self.live:
            self.live.update(Text(text, no_wrap=True, overflow="ellipsis"))
            if held_out(row) is not None:
                self.console.print(text, soft_wrap=True)
        elif held_out(row) is not None or time.monotonic() - self.last_plain > PLAIN_EVERY:
            print(f"{self.name}  {text}", file=sys.stderr, flush=True)
            self.last_plain = time.monotonic()
