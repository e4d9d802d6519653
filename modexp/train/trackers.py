"""Trackers: where a run's rows go besides metrics.jsonl. The null tracker is the class itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modexp.config.train import TrackerConfig, WandbTracker


@dataclass(frozen=True)
class RunInfo:
    """What a tracker needs to know of a run."""

    run_dir: Path
    run_id: str  # from the hash of the configuration: the same for every attempt at this run
    name: str
    study: str
    arm: str
    config: dict[str, Any]  # nested: the resolved configuration and the plan


class Tracker:
    """Takes the rows of metrics.jsonl as they are written, and goes nowhere with them."""

    def log(self, row: dict[str, Any]) -> None:
        """One row of metrics.jsonl: ``step``, ``tokens``, ``flops`` and what was measured there."""

    def finish(self, summary: dict[str, Any], exit_code: int = 0) -> None:
        """The run is over: its result, and the exit code it ends with (0: it reached its end)."""


def start(config: TrackerConfig, info: RunInfo, warn: Callable[[str], None]) -> Tracker:
    """The tracker that ``config`` asks for, ready for the next row.

    Call it after metrics.jsonl was cut back to the checkpoint: the rows still in it are part of the run, and
    a tracker that lacks them gets them here. One that fails says so through ``warn``, once, and never raises.
    """
    if isinstance(config, WandbTracker):
        from modexp.train import wandb_tracker  # only here: wandb takes half a second to import

        return wandb_tracker.start(config, info, warn)
    return Tracker()
