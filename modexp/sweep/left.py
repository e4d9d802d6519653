"""What a study has taken and what it will still take, from the records of its runs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]

OVER = ("done", "diverged")


@dataclass(frozen=True)
class Left:
    """FLOPs under the study's convention; seconds of one device, None where nothing tells how fast one is."""

    flops_planned: float
    flops_consumed: float
    flops_left: float
    seconds_spent: float
    seconds_left: float | None
    longest: float  # seconds left of the longest run

    def wall_seconds(self, slots: int) -> float | None:
        """Of the whole study, ``slots`` runs at a time."""
        return None if self.seconds_left is None else max(self.seconds_left / slots, self.longest)

    @property
    def spend(self) -> str:
        return (
            f"{self.flops_consumed:.3g} of {self.flops_planned:.3g} FLOPs consumed"
            f" ({self.flops_consumed / self.flops_planned:.0%}) in {self.seconds_spent / 3600:.3g} device-hours"
        )


def left_of(rows: Sequence[Record]) -> Left:
    rest = [row for row in with_left(rows) if row["status"] not in OVER]
    times = [row["seconds_left"] for row in rest]
    known = [seconds for seconds in times if seconds is not None]
    return Left(
        flops_planned=sum(planned(row) for row in rows),
        flops_consumed=sum(consumed(row) for row in rows),
        flops_left=sum(row["flops_left"] for row in rest),
        seconds_spent=spent_on(rows)
        + sum(own_tokens(row) / row["tokens_per_s"] for row in rest if row.get("tokens_per_s")),
        seconds_left=sum(known) if len(known) == len(times) else None,
        longest=max(known, default=0.0),
    )


def with_left(rows: Sequence[Record]) -> list[dict[str, Any]]:
    """The records with ``flops_left`` and ``seconds_left`` of one device, which is None where nothing tells."""
    measured = sum(consumed(row) for row in rows if row["status"] in OVER)
    pace = spent_on(rows) / measured if measured and spent_on(rows) else None
    found = []
    for row in rows:
        left = (0, 0.0) if row["status"] in OVER else (planned(row) - consumed(row), seconds_left(row, pace))
        found.append({**row, **dict(zip(("flops_left", "seconds_left"), left, strict=True))})
    return found


def spent_on(rows: Sequence[Record]) -> float:
    """Seconds that the runs which are over have taken."""
    return sum(row["wall_seconds"] or row["train_seconds"] or 0.0 for row in rows if row["status"] in OVER)


def seconds_left(row: Record, pace: float | None = None) -> float | None:
    """Of a run: at its own speed once it has one, else as predicted, else by ``pace``, seconds a FLOP of other runs."""
    if row.get("tokens_per_s"):
        return (row["tokens_planned"] - row["tokens"]) / row["tokens_per_s"]
    if row["predicted_seconds"]:
        return row["predicted_seconds"] * (1 - consumed(row) / planned(row))
    return None if pace is None else pace * (planned(row) - consumed(row))


def planned(row: Record) -> float:
    """FLOPs of a run without what its trunk trains for it."""
    return row["flops_planned"] - row.get("flops_shared", 0)


def consumed(row: Record) -> float:
    return max(0, row["flops_consumed"] - row.get("flops_shared", 0))


def own_tokens(row: Record) -> float:
    return row["tokens"] * consumed(row) / row["flops_consumed"] if row["flops_consumed"] else 0.0
