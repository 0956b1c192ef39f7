"""The option `alternatives`: what a task may need instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from depalma.alternatives import Alternative

NAMES = ("cpus", "memory", "gpus", "resources")


def alternatives_of(given: Any, size_bytes: Any) -> tuple[Alternative, ...]:
    """Returns what `[{"cpus": 16}, {"memory": "4G"}]` means. `size_bytes` reads sizes. Errors: ValueError."""
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise ValueError(f"alternatives: {given!r} given; allowed: a list of mappings such as {{'cpus': 16}}")
    return tuple(_one(place, each, size_bytes) for place, each in enumerate(given))


def _one(place: int, given: Any, size_bytes: Any) -> Alternative:
    if isinstance(given, Alternative):
        return given
    where = f"alternatives.{place}"
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: {given!r} given; allowed: a mapping of {', '.join(NAMES)}")
    if unknown := [name for name in given if name not in NAMES]:
        raise ValueError(f"{where}: {unknown[0]!r} given; allowed: {', '.join(NAMES)}")
    values = dict(given)
    if "memory" in values:
        values["memory_bytes"] = size_bytes(values.pop("memory"), f"{where}.memory")
    try:
        return msgspec.convert(values, Alternative)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where}: {error}") from error
