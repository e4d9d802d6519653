"""A study on disk: what was asked, with every budget and arm, and the refusal to become another study."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from modexp.config.identity import first_difference, scientific
from modexp.config.root import Config, typed
from modexp.config.study import AdaptConfig, GridConfig, SweepConfig
from modexp.errors import UserError
from modexp.files import exclusive, write_text
from modexp.plan.grid import Arms, StudyPlan, joined, plan_study
from modexp.plan.guard import guard_runs
from modexp.plan.trunk import plan_shared, with_branches
from modexp.wording import budget_text


@dataclasses.dataclass(frozen=True)
class Study:
    """``arms`` holds each arm's scientific fields, flat; budgets, sizes and seeds vary within the study."""

    path: Path
    sweep: SweepConfig
    arms: dict[str, dict[str, Any]]
    precision: str = "auto"  # resolved once, so that no curve mixes two
    data: dict[str, Any] = dataclasses.field(default_factory=dict)  # manifest of the text

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def file(self) -> Path:
        return self.path / "study.yaml"

    def save(self) -> None:
        """Write study.yaml. What another sweep of the study wrote meanwhile is kept: its budgets join ours, and its
        precision must be ours."""
        self.path.mkdir(parents=True, exist_ok=True)
        with exclusive(self.path / ".study.yaml.lock"):
            there = load_study(self.path) if self.file.exists() else self
            if there.precision != self.precision:
                raise UserError(
                    f"{self.path} was just begun in {there.precision} by another sweep, and here it would be"
                    f" {self.precision}",
                    "give the same command again: it goes on as the study was begun",
                )
            budgets = sorted({*there.sweep.budgets, *self.sweep.budgets})
            tree = {
                "sweep": {**dataclasses.asdict(self.sweep), "budgets": budgets},
                "arms": self.arms,
                "precision": self.precision,
                "data": self.data,
            }
            write_text(self.file, OmegaConf.to_yaml(OmegaConf.create(tree)))


VARIES = ("budget.flops", "seed", "trainer.precision")


def fixed_fields(config: Config) -> dict[str, Any]:
    fields = {key: value for key, value in scientific(config).items() if key not in VARIES}
    return {**fields, "size": config.size}  # a size in place of the grid makes another study


def load_study(path: Path) -> Study:
    """What study.yaml holds. UserError if it is missing or damaged."""
    try:
        tree: Any = OmegaConf.to_container(OmegaConf.load(path / "study.yaml"))
        sweep = dict(tree["sweep"])
        grid = typed(GridConfig, sweep.pop("grid"), "grid.")
        adapt = typed(AdaptConfig, sweep.pop("adapt", {}), "adapt.")
        sweep = dataclasses.replace(typed(SweepConfig, sweep), grid=grid, adapt=adapt)
        return Study(path, sweep, tree["arms"], tree["precision"], tree["data"])
    except FileNotFoundError:
        raise UserError(f"{path} holds no study.yaml", "modexp sweep starts a study") from None
    except UserError:
        raise
    except Exception as error:  # whatever YAML and OmegaConf make of a damaged file
        raise UserError(
            f"{path / 'study.yaml'} is damaged ({type(error).__name__})",
            "remove that file alone and sweep again: finished runs are kept",
        ) from None


def join(path: Path, sweep: SweepConfig, arms: Arms) -> Study:
    """The study at ``path`` with this request's budgets and guard added, its target interval and spend limit in place
    of the old; any other scientific change is refused.

    A new study is returned unsaved: the caller resolves its precision and data first.
    """
    wanted = {arm: fixed_fields(at(sweep.budgets[0])) for arm, at in arms.items()}
    if not (path / "study.yaml").exists():
        return Study(path, sweep, wanted)
    study = load_study(path)
    precisions = {at(sweep.budgets[0]).trainer.precision for at in arms.values()} - {"auto"}
    compared = [
        *(("", {"trainer.precision": study.precision}, {"trainer.precision": p}) for p in precisions),
        ("", grid_of(study.sweep), grid_of(sweep)),
        ("arms ", dict.fromkeys(study.arms, True), dict.fromkeys(wanted, True)),
        *((f"arm {arm}: ", study.arms[arm], wanted[arm]) for arm in wanted if arm in study.arms),
    ]
    for where, old, new in compared:
        difference = first_difference(old, new)
        if difference:
            key, was, now = difference
            raise UserError(
                f"{path} is another study: {where}{key} is {was} there and {now} here",
                "give this one a name of its own with study=NAME, or go back to its settings",
            )
    budgets = sorted({*study.sweep.budgets, *sweep.budgets})
    if sweep.share_trunk and budgets != sorted(study.sweep.budgets):
        there = ", ".join(map(budget_text, study.sweep.budgets))
        raise UserError(
            f"{path} shares its trunks among the budgets {there}, by which their sizes and rules were chosen",
            "start a study of another name with study=NAME for other budgets",
        )
    guard = study.sweep.guard or sweep.guard
    changed = dataclasses.replace(study.sweep, budgets=budgets, adapt=sweep.adapt, guard=guard)
    return dataclasses.replace(study, sweep=changed)


def grid_of(sweep: SweepConfig) -> dict[str, Any]:
    grid = {f"grid.{k}": v for k, v in dataclasses.asdict(sweep.grid).items()}
    return {"seeds": sweep.seeds, "adapt.enabled": sweep.adapt.enabled, "share_trunk": sweep.share_trunk, **grid}


def plan_of(sweep: SweepConfig, arms: Arms) -> StudyPlan:
    """All runs that a sweep asks for before anything is known: what adapt adds comes later, and guard after that."""
    if sweep.share_trunk:
        plan = plan_shared(arms, sweep.budgets, sweep.seeds, sweep.grid)
    else:
        plan = plan_study(arms, sweep.budgets, sweep.seeds, sweep.grid)
    plan = joined([plan, guard_runs(plan.runs)] if sweep.guard and not sweep.adapt.enabled else [plan])
    return with_branches(plan) if sweep.share_trunk else plan
