"""`--or`: what a task may need instead."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import click

from depalma.ctl.values import parse_gpus, parse_size

ALLOWED = "NAME=VALUE with commas between: cpus, memory, gpus, or a resource of hosts"


def parse_alternatives(
    _ctx: click.Context, _parameter: click.Parameter, entries: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns the alternatives as the API takes them. Errors: click.BadParameter."""
    return [_alternative(entry) for entry in entries]


def _alternative(entry: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    resources: dict[str, int] = {}
    for word in entry.split(","):
        name, _, value = (part.strip() for part in word.partition("="))
        if not name or not value:
            raise click.BadParameter(f"{entry!r} given; allowed: {ALLOWED}")
        if name in found or name in resources or (name == "memory" and "memory_bytes" in found):
            raise click.BadParameter(f"{entry!r} says {name} twice")
        try:
            if name == "cpus":
                found["cpus"] = _cpus(value)
            elif name == "memory":
                found["memory_bytes"] = parse_size(value)
            elif name == "gpus":
                found["gpus"] = parse_gpus(value)
            elif value.isascii() and value.isdecimal():
                resources[name] = int(value)
            else:
                raise ValueError(f"{value!r} is not a number")
        except ValueError as error:
            raise click.BadParameter(f"{name}: {error}") from error
    return {**found, **({"resources": resources} if resources else {})}


def _cpus(text: str) -> float:
    try:
        cpus = float(text)
    except ValueError:
        cpus = -1.0
    if not (isfinite(cpus) and cpus > 0):
        raise ValueError(f"{text!r} is not a number above 0")
    return cpus
