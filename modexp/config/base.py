"""What every configuration dataclass shares: which fields are science, and sentences for values out of range."""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any

from modexp.errors import UserError


def unscientific(default: Any) -> Any:
    """A field that cannot change what a run computes (device, cadence, where files lie).

    Such fields are left out of a run's identity, so a run may be resumed with other values.
    """
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata={"scientific": False})
    return field(default=default, metadata={"scientific": False})


def require(ok: bool, key: str, value: object, rule: str, next_step: str = "") -> None:
    """Raise the sentence ``key=value rule`` unless ``ok``."""
    if not ok:
        raise UserError(f"{key}={value} {rule}", next_step)


def one_of(key: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        error = UserError(f"{key}={value} is not a choice", f"choose one of: {', '.join(choices)}")
        error.key, error.choices = key, choices
        raise error


def refuse_unread(config: Any, unread: dict[str, tuple[str, str]]) -> None:
    """Raise for a setting of the model that was changed from its default although nothing reads it.

    ``unread`` maps it to the setting because of which, and to the one under which it would be read.
    """
    defaults = {f.name: f.default for f in fields(config)}
    for key, (because, reader) in unread.items():
        value, default = getattr(config, key), defaults[key]
        cure = f"leave it at {'null' if default is None else default}, or set {reader}"
        require(value == default, f"model.{key}", value, f"is read by nothing under {because}", cure)


def neutral(default: Any) -> Any:
    """A scientific field that changes nothing at its default: only other values enter a run's identity, so that runs
    and studies made before the field existed keep theirs."""
    return field(default=default, metadata={"neutral": default})
