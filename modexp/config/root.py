"""The whole configuration of one run, and the way from Hydra's tree (or a YAML file) to it and back."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modexp.config.base import require, unscientific
from modexp.config.data import DATA_KINDS, DataConfig, PythonData
from modexp.config.model import BaselineConfig, ModelConfig
from modexp.config.slurm import SlurmConfig
from modexp.config.study import LAUNCHER_KINDS, BudgetConfig, LauncherConfig
from modexp.config.train import (
    OPTIM_KINDS,
    SCHEDULE_KINDS,
    TRACKER_KINDS,
    NoTracker,
    OptimConfig,
    ScheduleConfig,
    TrackerConfig,
    TrainerConfig,
)
from modexp.errors import UserError
from modexp.kinds import KINDS
from modexp.kinds import kind as model_kind

if TYPE_CHECKING:
    from omegaconf import DictConfig  # imported late, here and below: half of the time that a command takes to start


@dataclass(frozen=True)
class Config:
    """Everything one run needs. Frozen: a validated configuration never changes underfoot."""

    model: ModelConfig = field(default_factory=BaselineConfig)
    data: DataConfig = field(default_factory=PythonData)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    tracker: TrackerConfig = field(default_factory=NoTracker, metadata={"scientific": False})
    launcher: LauncherConfig | SlurmConfig = field(default_factory=LauncherConfig, metadata={"scientific": False})
    size: str = unscientific("auto")  # fills the model's shape, which is what counts
    depth: float = 1.0  # layers of the ladder's shapes over sqrt(d_model) / 2; 1 again once the shape is filled
    seed: int = 0
    study: str = unscientific("train")  # folder of the run under runs_dir
    name: str | None = unscientific(None)  # folder of the run under the study; None: made from the plan
    runs_dir: str = unscientific("runs")

    def __post_init__(self) -> None:
        require(0.25 <= self.depth <= 4, "depth", self.depth, "is not in [0.25, 4]", "1 is the usual shape")
        require(0 <= self.seed < 2**31, "seed", self.seed, "is not in [0, 2^31)")
        for key in ("study", "name"):
            value = getattr(self, key)
            ok = value is None or (value not in ("", ".", "..") and not set(value) & set("/\\\0"))
            require(ok, key, value, "is not a plain folder name")


# One dataclass a group, or one for each `kind` of it.
GROUPS: dict[str, dict[str, Any] | Any] = {
    "model": {name: kind.config for name, kind in KINDS.items()},  # and those of installed packages
    "data": DATA_KINDS,
    "optim": OPTIM_KINDS,
    "schedule": SCHEDULE_KINDS,
    "trainer": TrainerConfig,
    "budget": BudgetConfig,
    "tracker": TRACKER_KINDS,
    "launcher": LAUNCHER_KINDS,
}
SCALARS = ("size", "depth", "seed", "study", "name", "runs_dir")


def did_you_mean(word: str, choices: list[str]) -> str:
    """The nearest choices as a next step; all of them when none is near and they are few."""
    near = difflib.get_close_matches(word, choices, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(near) + "?"
    return "known: " + ", ".join(choices) if len(choices) <= 24 else ""


def typed(schema: type, values: Mapping[str, Any] | DictConfig, prefix: str = "") -> Any:
    """An instance of the dataclass ``schema`` holding ``values``; unknown keys and wrong types are sentences."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = [f.name for f in dataclasses.fields(schema)]
    for key in map(str, values):
        if key not in known:
            choices = [f"{prefix}{name}" for name in known]
            raise UserError(f"{prefix}{key} is not a setting", did_you_mean(f"{prefix}{key}", choices))
    for setting, value in values.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            finite = not isinstance(number, float) or math.isfinite(number)
            require(finite, f"{prefix}{setting!s}", value, "is not a finite number")
    try:
        return OmegaConf.to_object(OmegaConf.merge(node_of(schema), values))
    except OmegaConfBaseException as error:
        key = f"{prefix}{error.full_key}" if error.full_key else prefix.rstrip(".")
        sentence = str(error.msg or error).splitlines()[0]
        if "ListConfig" in sentence:
            wrong = f"{key} is a list" if "not a ListConfig" in sentence else f"{key}: a list stands in its place"
            raise UserError(wrong.lstrip(": "), "a list is written 'key=[a,b]', and in a file [a, b]") from None
        raise UserError(f"{key}: {sentence}", "give a value of the type that stands there by default") from None


@cache
def node_of(schema: type) -> DictConfig:
    """The dataclass as OmegaConf holds it, which a merge copies."""
    from omegaconf import DictConfig, OmegaConf

    node = OmegaConf.structured(schema)
    for part in [node, *(node._get_node(f.name) for f in dataclasses.fields(schema))]:
        if isinstance(part, DictConfig):
            OmegaConf.set_readonly(part, False)  # frozen dataclasses are read-only nodes; we are still merging
    return node


def schema_of(group: str, values: Mapping[str, Any]) -> type:
    kinds = GROUPS[group]
    if not isinstance(kinds, dict):
        return kinds
    kind = str(values.get("kind"))
    if group == "model":
        return model_kind(kind).config
    if kind not in kinds:
        raise UserError(f"{group}.kind={kind} is not known", f"choose one of: {', '.join(kinds)}")
    return kinds[kind]


def from_tree(tree: Mapping[str, Any] | DictConfig) -> Config:
    """The typed configuration that a composed tree describes."""
    from omegaconf import DictConfig, OmegaConf

    known = [*GROUPS, *SCALARS]
    values = OmegaConf.to_container(tree, resolve=True) if isinstance(tree, DictConfig) else dict(tree)
    assert isinstance(values, dict)
    for key in map(str, values):
        if key not in known:
            raise UserError(f"{key} is not a setting", did_you_mean(key, known))
    parts: dict[str, Any] = {}
    for group in GROUPS:
        node = values.get(group)
        if not isinstance(node, dict):
            raise UserError(f"{group}={node} is not a group of settings", f"leave {group} as conf/ has it")
        parts[group] = typed(schema_of(group, node), node, f"{group}.")
    scalars = typed(_Scalars, {key: values[key] for key in SCALARS if key in values})
    return Config(**parts, **dataclasses.asdict(scalars))


@dataclass(frozen=True)
class _Scalars:
    """Types of the settings that stand at the root."""

    size: str = "auto"
    depth: float = 1.0
    seed: int = 0
    study: str = "train"
    name: str | None = None
    runs_dir: str = "runs"


def to_tree(config: Config) -> dict[str, Any]:
    """Plain nested dictionary: the inverse of :func:`from_tree`."""
    return dataclasses.asdict(config)


def save(config: Config, path: Path) -> None:
    from omegaconf import OmegaConf

    from modexp.files import write_text

    write_text(path, OmegaConf.to_yaml(OmegaConf.create(to_tree(config))))


def load(path: Path) -> Config:
    """The configuration stored at ``path`` (a run's config.yaml)."""
    from omegaconf import OmegaConf

    try:
        return from_tree(OmegaConf.load(path))  # type: ignore[arg-type]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", "name a run directory that holds config.yaml") from None
    except UserError as error:
        raise UserError(f"{path}: {error.sentence}", error.next_step) from None
    except Exception as error:
        raise UserError(f"{path} cannot be read as YAML ({type(error).__name__})") from None
