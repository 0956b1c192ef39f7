"""Values that no proposer would send, by the type of the field: for every command there is, and for those to come."""

from __future__ import annotations

import math
import random
from typing import Any

import msgspec

from depalma.state import commands as c

_NUMBERS: tuple[Any, ...] = (-1, 0, 1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63))
_FLOATS: tuple[Any, ...] = (math.nan, math.inf, -math.inf, -1.0, 0.0, 5e-324, 1e308, 2e11, -0.0)
_TEXTS = ("", "h1", "*", " ", "\0", "\n", "x" * 100_000, "\u202e", "-", "..", "a/b", "ü", "1" * 64, "\x7f", "nan")


def wild(command: c.AnyCommand, rng: random.Random) -> c.AnyCommand:
    """Returns the command with something wild in one to three of its fields; what comes out can be encoded."""
    fields = [field.name for field in msgspec.structs.fields(type(command))]
    for name in rng.sample(fields, min(len(fields), rng.choice([1, 1, 2, 3]))):
        changed = msgspec.structs.replace(command, **{name: _other(getattr(command, name), rng)})
        try:
            c.decode(c.encode(changed))
        except (msgspec.MsgspecError, OverflowError):
            continue  # not of the field's type: no command at all (test_damaged_bytes_are_refused_alike)
        command = changed
    return command


def _other(value: Any, rng: random.Random) -> Any:
    """Returns another value of about the same type."""
    match value:
        case bool():
            return not value
        case int():
            return rng.choice(_NUMBERS)
        case float():
            return rng.choice(_FLOATS)
        case str():
            return rng.choice(_TEXTS)
        case bytes():
            return rng.choice([b"", b"\xc1", value[:-1], value * 2, b"\0" * 70_000])
        case tuple() | list():
            many = [*value] * rng.choice([0, 2, 2, 20])
            return type(value)(many if rng.random() < 0.5 else [_other(inner, rng) for inner in value])
        case dict():
            key = rng.choice(_TEXTS)
            return rng.choice([{}, {key: rng.choice(_TEXTS)}, {key: rng.choice(_NUMBERS)}, {key: rng.choice(_FLOATS)}])
        case msgspec.Struct():
            name = rng.choice([field.name for field in msgspec.structs.fields(type(value))])
            return msgspec.structs.replace(value, **{name: _other(getattr(value, name), rng)})
    return rng.choice([None, *_NUMBERS, *_FLOATS, *_TEXTS, (), ("",), {}])
