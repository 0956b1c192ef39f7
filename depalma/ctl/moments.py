"""Points in time as option values: `2026-11-27T03:00`, `03:00`, `+2h`; of the past, `2d`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import click

from depalma.ctl.values import AnyType, parse_duration

_CLOCK = re.compile(r"^([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?$")


def parse_moment(text: str, now: float) -> float:
    """Returns seconds since the epoch; times without a zone are local. Errors: ValueError."""
    if text.startswith("+"):
        return now + parse_duration(text[1:])
    match = _CLOCK.match(text)
    if match:
        hour, minute, second = (int(part or 0) for part in match.groups())
        today = datetime.fromtimestamp(now).replace(hour=hour, minute=minute, second=second, microsecond=0)
        return (today if today.timestamp() > now else today + timedelta(days=1)).timestamp()
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is not a time (such as 2026-11-27T03:00, 03:00 or +2h)") from None


def parse_past(text: str, now: float) -> float:
    """Returns a time that was: `2d` ago, `03:00` of the last 24 hours, a date. Errors: ValueError."""
    match = _CLOCK.match(text)
    if match:
        hour, minute, second = (int(part or 0) for part in match.groups())
        today = datetime.fromtimestamp(now).replace(hour=hour, minute=minute, second=second, microsecond=0)
        return (today if today.timestamp() <= now else today - timedelta(days=1)).timestamp()
    try:
        return now - parse_duration(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is not a time that was (such as 2d, 03:00 or 2026-11-27T03:00)") from None


class MomentType(AnyType):
    """A point in time."""

    name = "time"

    def __init__(self, parse: Callable[[str, float], float] = parse_moment) -> None:
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value, time.time())
        except ValueError as error:
            self.fail(str(error), param, ctx)


MOMENT = MomentType()
PAST = MomentType(parse_past)
