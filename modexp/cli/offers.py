"""What completion offers for an argument, by its metavar: settings, sweeps, studies, runs, files.

Each function returns words and a few words about each. Nothing is listed here that stands elsewhere: what a setting may
be is asked of the check that would refuse it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any

from modexp.cli.compose import SWEEP_KEYS, fields_of, installed_conf, known_sweeps, refuse_owned, shipped
from modexp.config.root import GROUPS, Config
from modexp.config.study import AdaptConfig, GridConfig, SweepConfig
from modexp.errors import ModexpError, UserError

Words = dict[str, str]
Places = list[tuple[type, Field[Any]]]  # the dataclasses that declare a setting
SWEEP_GROUPS = {"grid": GridConfig, "adapt": AdaptConfig}


@dataclass(frozen=True)
class Asked:
    """The beginning of a word, the words before it and what they mean, the command, the help of the argument."""

    prefix: str
    words: list[str]
    args: argparse.Namespace
    command: str
    help: str

    @property
    def runs_dir(self) -> Path:
        return Path(getattr(self.args, "runs_dir", None) or "runs")


# ---- settings ------------------------------------------------------------------------------------------------


def settings(asked: Asked) -> Words:
    """``model.capacity=``, and behind the ``=`` what may stand there; of ``a,b`` the last."""
    key, equals, value = asked.prefix.partition("=")
    keys = keys_of(asked)
    if equals:
        head, comma, _ = value.rpartition(",")
        return {f"{key}={head}{comma}{word}": about for word, about in values(key, keys.get(key, []), asked).items()}
    found = {}
    for name, places in keys.items():
        group = name.partition(".")[0]
        if "." in name and "." not in asked.prefix and group in keys:
            found[f"{group}."] = "its settings"  # beside group=, so that no shell ends the word behind the dot
        else:
            found[f"{name}="] = default_of(places)
    return found


def keys_of(asked: Asked) -> dict[str, Places]:
    """The settings that the command takes; of a group those of the kind that is chosen, or of all kinds."""
    chosen = dict(word.split("=", 1) for word in asked.words if "=" in word)
    keys: dict[str, Places] = {f.name: [(Config, f)] for f in fields(Config)}
    for group in GROUPS:
        keys |= {f"{group}.{n}": places for n, places in fields_of(group, chosen.get(group, "")).items() if n != "kind"}
    if not is_of_sweep(asked):
        return keys
    keys = {key: places for key, places in keys.items() if key != "model" and not is_owned(key)}
    for field in fields(SweepConfig):
        if field.name in SWEEP_KEYS and field.name != "grid":
            keys[field.name] = [(SweepConfig, field)]
    return keys | {f"{group}.{f.name}": [(s, f)] for group, s in SWEEP_GROUPS.items() for f in fields(s)}


def is_of_sweep(asked: Asked) -> bool:
    if asked.command == "modexp bench step":
        return any(word in known_sweeps() or word.endswith(".yaml") for word in asked.words)
    return asked.command in ("modexp plan", "modexp sweep")


def is_owned(key: str) -> bool:
    """Whether a sweep sets it itself."""
    try:
        refuse_owned([key], ("study", "runs_dir", "budget.convention"))
    except UserError:
        return True
    return False


def default_of(places: Places) -> str:
    defaults = dict.fromkeys(str(f.default) for _, f in places if f.default is not MISSING)
    return f"default {' or '.join(defaults)}" if len(defaults) == 1 else ""


def values(key: str, places: Places, asked: Asked) -> Words:
    if key in GROUPS:
        return group_files(key)
    if key == "study":
        return studies(asked)
    if key == "adapt" or any(field.type == "bool" for _, field in places):
        return {"true": "", "false": ""} if "." in key and key not in SWEEP_GROUPS else {"on": "", "off": ""}
    if key == "size":
        return {"auto": "where the budget buys 20 tokens a parameter"}
    return {choice: "" for place in places for choice in choices(key, *place)}


def group_files(group: str) -> Words:
    """The files in conf/, ours and those of installed kinds, with what their first line says."""
    return {
        path.stem: first_comment(path)
        for folder in (shipped("conf"), *installed_conf())
        for path in sorted((folder / group).glob("*.yaml"))
    }


def first_comment(path: Path) -> str:
    with open(path) as file:
        line = file.readline().strip()
    return line.lstrip("# ") if line.startswith("#") else ""


def choices(key: str, schema: type, field: Field[Any]) -> list[str]:
    """The words among which a setting must choose, by what its own check says to a wrong one."""
    try:
        if field.type == "str" or "str" in str(field.type).split(" | "):
            schema(**{field.name: "?"})
    except UserError as error:
        if error.key == key:
            return [choice for choice in error.choices if " " not in choice]  # not "a number"
    except Exception:  # a check that expects a number
        pass
    return []


# ---- what lies on disk ---------------------------------------------------------------------------------------


def sweeps(asked: Asked) -> Words:
    return {name: first_comment(path) for name, path in known_sweeps().items()} | paths(asked, ".yaml", ".yml")


def studies(asked: Asked) -> Words:
    from modexp.runs import run_dirs

    folders = sorted(asked.runs_dir.glob("*/"))
    return {f.name: "" for f in folders if not f.name.startswith(".") and ((f / "study.yaml").exists() or run_dirs(f))}


def runs(asked: Asked) -> Words:
    """Folders down to runs, whose name ends the word."""
    return {
        (folder if (Path(folder) / "plan.json").exists() else f"{folder}/"): ""
        for folder in (name.rstrip("/") for name in paths(asked))
    }


def names_of_runs(asked: Asked) -> Words:
    return arms_by_run(asked)


def arms(asked: Asked) -> Words:
    return dict.fromkeys(arms_by_run(asked).values(), "")


def arms_by_run(asked: Asked) -> dict[str, str]:
    """Of the study that is named, or the latest."""
    from modexp.analysis.records import latest_study
    from modexp.runs import run_dirs

    known = studies(asked)
    named = getattr(asked.args, "study", None) or next((word for word in asked.words if word in known), None)
    found = {}
    with suppress(ModexpError):
        for run in run_dirs(asked.runs_dir / named if named else latest_study(asked.runs_dir)):
            with suppress(ModexpError):
                found[run.name] = run.plan()["plan"]["arm"]
    return found


def paths(asked: Asked, *endings: str) -> Words:
    """Folders, and files of these endings."""
    folder, slash, begin = asked.prefix.rpartition("/")
    found = {}
    for path in sorted(Path(f"{folder}{slash}" or ".").glob("*")):
        if path.name.startswith(".") and not begin.startswith("."):
            continue
        if path.is_dir():
            found[f"{folder}{slash}{path.name}/"] = ""
        elif path.name.endswith(endings or ("/",)):
            found[f"{folder}{slash}{path.name}"] = ""
    return found


# ---- what the code knows -------------------------------------------------------------------------------------


def conventions(asked: Asked) -> Words:
    from modexp.flops.ledger import CONVENTIONS

    return dict.fromkeys([*CONVENTIONS, *(["all"] if "all" in asked.help else [])], "")


def gpus(asked: Asked) -> Words:
    from modexp.plan.cost import GPUS

    return dict.fromkeys(GPUS, "")


def axes(asked: Asked) -> Words:
    from modexp.analysis.points import AXES

    return {name: axis.label for name, axis in AXES.items()}


def kinds(asked: Asked) -> Words:
    head, comma, _ = asked.prefix.rpartition(",")
    return {f"{head}{comma}{name}": about for name, about in group_files("model").items()}


OFFERS: dict[str, Callable[[Asked], Words]] = {
    "key=value": settings,
    "SWEEP": sweeps,
    "STUDY": studies,
    "RUN": runs,
    "NAME": names_of_runs,
    "ARM": arms,
    "DIR": paths,
    "FILE": lambda asked: paths(asked, ""),
    "FILE.csv": lambda asked: paths(asked, ".csv", ".tsv"),
    "CONVENTION": conventions,
    "GPU": gpus,
    "AXIS": axes,
    "KIND,...": kinds,
}
