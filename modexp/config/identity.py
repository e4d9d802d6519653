"""What makes two runs the same run: the fields that change its numbers, flattened, compared and hashed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any


def scientific(config: Any, prefix: str = "") -> dict[str, Any]:
    """Flat ``key: value`` of every scientific field of a configuration dataclass; neutral ones at their default are
    left out."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        if not field.metadata.get("scientific", True):
            continue
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= scientific(value, f"{prefix}{field.name}.")
        elif "neutral" not in field.metadata or value != field.metadata["neutral"]:
            flat[prefix + field.name] = value
    return flat


def digest(flat: dict[str, Any]) -> str:
    """Twelve hex digits that stand for a flat configuration."""
    return hashlib.sha256(json.dumps(flat, sort_keys=True, default=str).encode()).hexdigest()[:12]


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first key (in order of name) at which two flat configurations differ, with both values."""
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            return key, old.get(key), new.get(key)
    return None
