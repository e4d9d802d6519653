"""From words on the command line to configurations: the only place, with `modexp train`, that knows Hydra."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any

import modexp
from modexp.config.root import GROUPS, SCALARS, Config, did_you_mean, from_tree, schema_of, typed
from modexp.config.study import AdaptConfig, BudgetConfig, GridConfig, SweepConfig
from modexp.errors import UserError

# parts of Hydra's own configuration that only a job under Hydra needs: a quarter of the time of composing
WITHOUT = [f"~hydra/{group}" for group in ("env", "help", "hydra_help", "launcher", "output", "sweeper")]
SWEEP_KEYS = ("budgets", "seeds", "grid", "adapt", "guard", "share_trunk")


def shipped(folder: str) -> Path:
    """``conf`` or ``sweeps``: inside an installed package, or beside it in a source tree."""
    package = Path(modexp.__file__).resolve().parent
    inside = package / folder
    return inside if inside.exists() else package.parent / folder


def number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def plain_budget(override: str) -> str:
    """``budget=6e18`` is what a person types; Hydra would look for a file of that name."""
    key, _, value = override.partition("=")
    return f"budget.flops={value}" if key == "budget" and number(value) is not None else override


def installed_conf() -> list[Path]:
    """The folder of YAML files, ``<module>_conf`` or ``conf`` beside the module, of every installed kind of model."""
    from importlib.metadata import entry_points
    from importlib.util import find_spec

    folders: list[Path] = []
    for point in entry_points(group="modexp.kinds"):
        spec = find_spec(point.module.partition(".")[0])
        if spec and spec.origin:
            beside = Path(spec.origin).parent
            folders += [f for f in (beside / f"{spec.name}_conf", beside / "conf") if f.is_dir()][:1]
    return folders


def searchpath() -> list[str]:
    """That, as Hydra's override."""
    folders = installed_conf()
    return [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders)}]"] if folders else []


def is_shipped(override: str) -> bool:
    """False for the choice of a file that is none of ours, and so an installed kind's: these take time to find."""
    group, _, name = override.partition("=")
    return group not in GROUPS or (shipped("conf") / group / f"{name}.yaml").exists()


def compose(overrides: list[str], config_dir: Path | None = None) -> Any:
    """The composed tree of conf/config.yaml."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    try:
        with initialize_config_dir(str(config_dir or shipped("conf")), version_base="1.3"):
            search = [] if all(map(is_shipped, overrides)) else searchpath()
            return hydra_compose("config", overrides=[*WITHOUT, *search, *map(plain_budget, overrides)])
    except Exception as error:
        raise explained(error) from None


def explained(error: Exception) -> Exception:
    """Hydra's and OmegaConf's errors as one sentence with a next step; anything else as it is."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    text = str(error)
    if found := re.search(r"Could not override '([^']+)'", text):
        key = found[1]
        group, _, name = key.partition(".")
        kinds = GROUPS.get(group)
        homes = (
            [k for k, schema in kinds.items() if name in schema.__dataclass_fields__] if isinstance(kinds, dict) else []
        )
        if homes:
            return UserError(f"{key} is not a setting of this {group}", f"it belongs to {group}={' or '.join(homes)}")
        return UserError(f"{key} is not a setting", did_you_mean(key, all_keys()))
    if found := re.search(r"Could not (?:find|load) '([^']+)'", text):
        if plugin := re.fullmatch(r"hydra/(launcher|sweeper)/(([a-z]+)\w*)", found[1]):
            group, name, package = plugin.groups()
            return UserError(f"hydra/{group}={name} is not installed", f"pip install hydra-{package}-{group}")
        options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        return UserError(f"{found[1]} is not in conf/", f"choose one of: {', '.join(options)}" if options else "")
    if "override must be a string or a list" in text:
        return UserError("a group of settings takes the name of a file in conf/", f"groups: {', '.join(GROUPS)}")
    if isinstance(error, OmegaConfBaseException):
        key = error.full_key or ""
        return UserError(f"{key}: {str(error.msg or error).splitlines()[0]}" if key else text.splitlines()[0])
    if isinstance(error, HydraException):
        first = text.splitlines()[0]
        return UserError(first, "overrides are written key=value, a list as 'key=[a,b]'")
    return error


def all_keys() -> list[str]:
    keys = [*GROUPS, *SCALARS, *(f"{group}.{name}" for group in GROUPS for name in fields_of(group))]
    return list(dict.fromkeys(keys))


def fields_of(group: str, choice: str = "") -> dict[str, list[tuple[type, Field[Any]]]]:
    """The settings of a group and where they are declared: in the kind ``choice``, or in any where that is none."""
    kinds = GROUPS[group]
    schemas = list(kinds.values()) if isinstance(kinds, dict) else [kinds]
    if choice:
        with suppress(UserError):  # a file of another name than its kind
            schemas = [schema_of(group, {"kind": choice})]
    found: dict[str, list[tuple[type, Field[Any]]]] = {}
    for schema in schemas:
        for field in fields(schema):
            found.setdefault(field.name, []).append((schema, field))
    return found


def configuration(overrides: list[str]) -> Config:
    return from_tree(compose(overrides))


# ---- sweep files ---------------------------------------------------------------------------------------------


def plain_adapt(override: str) -> str:
    """``adapt=on`` is what a person types for ``adapt.enabled=true``."""
    key, _, value = override.partition("=")
    return f"adapt.enabled={value}" if key == "adapt" else override


def find_sweep(name: str) -> Path:
    """A path, or the name of a file in ./sweeps or among the shipped sweeps."""
    places = [Path(name), Path("sweeps") / f"{name}.yaml", shipped("sweeps") / f"{name}.yaml"]
    for place in places:
        if place.suffix in (".yaml", ".yml") and place.is_file():
            return place
    raise UserError(f"there is no sweep file {name}", f"known: {', '.join(known_sweeps())}")


def known_sweeps() -> dict[str, Path]:
    """Sweep files by name: those in ./sweeps, and the shipped ones."""
    files = [*shipped("sweeps").glob("*.yaml"), *Path("sweeps").glob("*.yaml")]
    return {path.stem: path for path in sorted(files, key=lambda path: path.stem)}


def load_sweep(name: str, budgets: list[float], overrides: list[str]) -> tuple[str, SweepConfig]:
    """A study's name and its sweep, with the command line's budgets, ``seeds=``, ``grid.*=`` and other overrides."""
    from omegaconf import OmegaConf

    path = find_sweep(name)
    overrides = [o.removeprefix("sweep.") for o in overrides]  # sweep.share_trunk=true says share_trunk=true
    own = [o for o in overrides if o.partition("=")[0].split(".")[0] in SWEEP_KEYS]
    rest = [o for o in overrides if o not in own]
    refuse_owned(rest, ("study", "runs_dir", "budget.convention"))
    if any(o.partition("=")[0] == "model" for o in rest):
        raise UserError("model is set by the sweep's arms", "use model.KEY=VALUE, or another sweep file")
    name = next((o.partition("=")[2] for o in rest if o.startswith("study=")), name)
    try:
        file: Any = OmegaConf.load(path)
        if isinstance(file.get("adapt"), bool):  # `adapt: on`
            file.adapt = {"enabled": file.adapt}
        tree = OmegaConf.merge(file, OmegaConf.from_dotlist([*map(plain_adapt, own)]))
    except Exception as error:
        where = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read: {where}", "it is YAML, as in sweeps/isoflop.yaml") from None
    container = OmegaConf.to_container(tree)
    if not isinstance(container, dict):
        raise UserError(f"{path} holds no settings", "see sweeps/isoflop.yaml")
    values = {str(key): value for key, value in container.items()}
    values["overrides"] = [*(values.get("overrides") or []), *(o for o in rest if not o.startswith("study="))]
    if budgets:
        values["budgets"] = budgets
    groups = {group: values.pop(group, None) or {} for group in ("adapt", "grid")}
    for group, example in (("adapt", "adapt=on, or adapt.spend=3"), ("grid", "grid.points=5")):
        if not isinstance(groups[group], dict):
            raise UserError(f"{group}={groups[group]} is not a group of settings", f"write {example}")
    adapt = typed(AdaptConfig, groups["adapt"], "adapt.")
    idle = next((o for o in own if o.startswith("adapt.") and not adapt.enabled), "")
    if idle and not idle.startswith("adapt.enabled"):
        raise UserError(f"{idle} says nothing to a study that does not adapt", "add adapt=on")
    growth = "depth" if adapt.enabled else "even"
    grid = typed(GridConfig, {"growth": growth, **groups["grid"]}, "grid.")
    sweep = replace(typed(SweepConfig, values), grid=grid, adapt=adapt)
    refuse_owned([o for o in sweep.overrides if o not in rest], ("budget.convention",))
    for overrides in sweep.arms.values():
        refuse_owned(overrides, ())
    return (Path(name).stem if name.endswith((".yaml", ".yml")) else name), sweep


def refuse_owned(overrides: list[str], allowed: tuple[str, ...]) -> None:
    """Overrides of what a sweep sets itself, run by run or for all runs alike, would be ignored or mix the arms."""
    cures = {"seed": "seeds=[0,1]", "name": "study=NAME", "study": "study=NAME on the command line"}
    cures |= {
        "runs_dir": "runs_dir=DIR on the command line",
        "budget.convention": "it on the command line, for all arms",
        "optim.lr_scale": "guard=on, or another optim.lr",
    }
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key not in allowed and (key in cures or key.startswith("budget")):
            raise UserError(f"{key} is set by the sweep", f"use {cures.get(key, '--budget 6e18')}")


def arms_of(study: str, sweep: SweepConfig) -> dict[str, Callable[[float], Config]]:
    """For each arm its configuration at a budget."""

    def at(base: Config) -> Callable[[float], Config]:
        return lambda budget: replace(base, budget=BudgetConfig(budget, base.budget.convention))

    return {
        arm: at(replace(configuration([*sweep.overrides, *overrides]), study=study))
        for arm, overrides in sweep.arms.items()
    }


def budgets_of(words: list[str]) -> list[float]:
    """``--budget 6e18 --budget 2e19,1e20``."""
    values = []
    for word in ",".join(words).split(","):
        value = number(word)
        if word and (value is None or not 0 < value < float("inf")):
            raise UserError(f"--budget {word} is not a number of FLOPs", "write it as --budget 6e18")
        if word:
            values.append(float(word))
    return sorted(set(values))
