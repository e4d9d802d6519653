"""The decisions of an adaptive study: what was added, why, and on which numbers; runs/<study>/decisions.jsonl.

The log is the authority: a decision is written before its runs are, and what is written is never decided again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from modexp.errors import UserError
from modexp.files import exclusive, write_text
from modexp.plan.grid import Arms, PlannedRun, StudyPlan, at_shape, joined
from modexp.plan.ladder import Shape
from modexp.plan.run import plan_run
from modexp.wording import budget_text

FILE = "decisions.jsonl"


@dataclass(frozen=True)
class Added:
    """A run, as far as its arm's configuration leaves it open: the shape stands here, whatever the ladder becomes."""

    arm: str
    budget: float
    seed: int
    shape: Shape  # layers, width, heads


@dataclass(frozen=True)
class Decision:
    """``kind``: grid (a budget's first sizes), edge (sizes beyond a grid), seeds, or stop.

    Decisions of one ``round`` rest on the same records: those of the runs of all earlier rounds. ``asked`` holds the
    settings of then, which a later command may change: budgets, interval, spend.
    """

    round: int
    kind: str
    budget: float | None
    arm: str  # empty: all arms
    runs: tuple[Added, ...]
    reason: str
    numbers: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def sentence(self) -> str:
        where = f" {self.arm}" if self.arm else ""
        where += f" at {budget_text(self.budget)}" if self.budget else ""
        runs = {1: ": 1 run"}.get(len(self.runs), f": {len(self.runs)} runs") if self.kind != "stop" else ""
        return f"decision {self.round} {self.kind}{where}{runs}: {self.reason}"


def from_json(value: dict[str, Any]) -> Decision:
    runs = tuple(Added(**{**run, "shape": tuple(run["shape"])}) for run in value["runs"])
    return Decision(**{**value, "runs": runs})


def read(study: Path) -> list[Decision]:
    """The log, oldest first; empty where there is none. UserError if it is damaged."""
    path = study / FILE
    try:
        return [from_json(json.loads(line)) for line in path.read_text().splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__})",
            "bring it back from a copy, or start a study of another name with study=NAME",
        ) from None


def append(study: Path, known: Sequence[Decision], fresh: Sequence[Decision]) -> list[Decision]:
    """``known`` and ``fresh``, written as one: a round is in the log whole or not at all. Where another sweep of the
    study was quicker, its log is what holds."""
    study.mkdir(parents=True, exist_ok=True)
    with exclusive(study / f".{FILE}.lock"):
        there = read(study)
        if there != list(known):
            return there
        log = [*known, *fresh]
        write_text(study / FILE, "".join(json.dumps(d.to_json()) + "\n" for d in log))
        return log


def planned_run(added: Added, arms: Arms) -> PlannedRun:
    config = replace(at_shape(arms[added.arm](added.budget), added.shape), seed=added.seed)
    return PlannedRun(plan_run(config, added.arm), config)


def plan_of_log(log: Sequence[Decision], arms: Arms) -> StudyPlan:
    """All runs decided so far."""
    return joined([StudyPlan(tuple(planned_run(added, arms) for d in log for added in d.runs), ())])
