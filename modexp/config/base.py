"""What every configuration dataclass shares: which fields are science, and sentences for values out of range."""

from __future__ import annotations

from dataclasses import field
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
    require(value in choices, key, value, "is not a choice", f"choose one of: {', '.join(choices)}")


def neutral(default: Any) -> Any:
    """A scientific field that changes nothing at its default: only other values enter a run's identity, so that runs
    and studies made before the field existed keep theirs."""
    return field(default=default, metadata={"neutral": default})
