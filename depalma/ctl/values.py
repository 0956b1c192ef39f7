"""Option values: sizes, durations, arrays, environment entries. Each parser names what is allowed when it refuses."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from depalma import gpuparts

_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:I?B)?$", re.IGNORECASE)
_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_CLOCK = re.compile(r"^(?:(\d+)-)?(?:(\d+):)?(\d{1,2}):(\d{1,2})$")
_PARTS = re.compile(r"^(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?$")
_ARRAY = re.compile(r"^(\d{1,18})-(\d{1,18})(?:%(\d{1,18}))?$")
_ENV_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
MAX_TASKS = 10_000_000
ALL = "all"
MAX_DURATION_S = 1_000_000_000  #: what the cluster takes as well: 31 years

if TYPE_CHECKING:
    AnyType = click.ParamType[Any]
else:  # generic in the newest click only
    AnyType = click.ParamType


class Number(click.FloatRange):
    """A number in a range; `nan` and `inf`, which Python reads as numbers, are none. A refusal says what is allowed."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            number = super().convert(value, param, ctx)
        except click.BadParameter:
            number = nan
        if not isfinite(number):
            self.fail(f"{str(value)!r} is not a number{_range(self)}", param, ctx)
        return number


class Whole(click.IntRange):
    """A whole number in a range. A refusal says what is allowed."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{str(value)!r} is not a whole number,{_range(self)}", param, ctx)


def _range(limits: click.IntRange | click.FloatRange) -> str:
    if limits.max is not None:
        return f" {limits.min} to {limits.max}"
    if limits.min is None:
        return ""
    return f" above {limits.min}" if limits.min_open else f" {limits.min} or more"


class Array(NamedTuple):
    """Tasks first … last (both included), at most `max_running` of them at once (0: no limit)."""

    first: int
    last: int
    max_running: int

    @property
    def tasks(self) -> int:
        """Returns how many tasks there are."""
        return self.last - self.first + 1


def parse_size(text: str) -> int:
    """Returns bytes. Errors: ValueError."""
    match = _SIZE.match(text.strip())
    if not match or len(text) > 100:
        raise ValueError(f"{text!r} is not a size (such as 500M or 1.5G)")
    return int(float(match.group(1)) * _FACTORS[match.group(2).upper()])


def parse_duration(text: str) -> float:
    """Returns seconds. Errors: ValueError."""
    seconds = _seconds(text.strip())
    if seconds > MAX_DURATION_S:
        raise ValueError(f"{text!r} is longer than {MAX_DURATION_S} s")
    return seconds


def _seconds(text: str) -> float:
    clock = _CLOCK.match(text)
    if clock:
        days, hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    parts = _PARTS.match(text)
    if not text or not parts:
        raise ValueError(f"{text!r} is not a duration (such as 90, 15m, 1h30m or 01:30:00)")
    days_f, hours_f, minutes_f, seconds_f = (float(part or 0) for part in parts.groups())
    return ((days_f * 24 + hours_f) * 60 + minutes_f) * 60 + seconds_f


def parse_gpus(text: str) -> float:
    """Returns a number of GPUs, or a part of one. Errors: ValueError."""
    try:
        gpus = gpuparts.normal(float(text))
        gpuparts.parts_of(gpus)
    except ValueError:
        raise ValueError(f"{text!r} given; allowed: {gpuparts.ALLOWED}") from None
    return gpus


def parse_array(text: str) -> Array:
    """Returns the tasks of `A-B` or `A-B%N`. Errors: ValueError."""
    match = _ARRAY.match(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not an array (such as 0-99, or 0-99%10 for at most 10 at once)")
    array = Array(int(match.group(1)), int(match.group(2)), int(match.group(3) or 0))
    if array.last < array.first:
        raise ValueError(f"{text!r}: an array rises from its first index to its last")
    if array.tasks > MAX_TASKS:
        raise ValueError(f"{text!r} has {array.tasks:,} tasks; allowed: {MAX_TASKS:,}")
    if match.group(3) and array.max_running < 1:
        raise ValueError(f"{text!r}: at least 1 task at once after the %")
    return array


def parse_env(entries: Sequence[str]) -> dict[str, str]:
    """Returns the variables of `K=V` entries; a bare `K` takes its value from this process. Errors: ValueError."""
    variables = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not _ENV_NAME.match(name):
            raise ValueError(f"{entry!r} is not NAME=VALUE (a name has letters, digits and _)")
        if not equals:
            if name not in os.environ:
                raise ValueError(f"{name!r} has no value, and is not set in this environment")
            value = os.environ[name]
        variables[name] = value
    return variables


def parse_gang(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> int | None:
    """Returns the size of a gang, -1 for all tasks of the job. Errors: click.BadParameter."""
    if text is None or text == ALL:
        return -1 if text else None
    if not text.isdecimal() or len(text) > 18 or not int(text):
        raise click.BadParameter(f"{text!r} is not a number of tasks, or all")
    return int(text)


def parse_counts(_ctx: click.Context, _parameter: click.Parameter, entries: Sequence[str]) -> dict[str, int]:
    """Returns the numbers of `NAME=N` entries. Errors: click.BadParameter."""
    counts = {}
    for entry in entries:
        name, _, number = entry.partition("=")
        if not name or not number.isdecimal() or len(number) > 18:
            raise click.BadParameter(f"{entry!r} is not NAME=NUMBER")
        counts[name] = int(number)
    return counts


class Parsed(AnyType):
    """A click type made of one of the parsers above."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE = Parsed("size", parse_size)
DURATION = Parsed("duration", parse_duration)
ARRAY = Parsed("array", parse_array)
GPUS = Parsed("gpus", parse_gpus)
