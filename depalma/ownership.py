"""What the owner of a machine allows: when work may run there, and how it makes way. [pure]"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from msgspec import Struct

#: What is done to tasks when the owner returns, in this order; each a field `NAME_s` of the policy.
STEPS = {"lower": "lowered", "suspend": "suspended", "warn": "warned", "requeue": "requeued"}
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

_DAY_MINUTES = 24 * 60
_WEEK_MINUTES = 7 * _DAY_MINUTES
_MAX_S = 30 * 86_400.0
_MAX_HOURS = 500
_TIMES = re.compile(r"([0-9]{2}):([0-9]{2})-([0-9]{2}):([0-9]{2})")
_HOURS_RULE = "days and times like 'mon-fri 18:00-08:00, sat-sun', or empty for always"


class OwnerPolicy(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When a host may work, and what happens to its tasks when it may not any more.

    All of the first four must allow it. The steps are counted from the owner's return; None = it is not taken.
    """

    idle_s: float = 0.0  #: no input and no login for this long; 0 = does not matter
    cpu_percent: float = 0.0  #: most that all programs but ours use of all processors together; 0 = does not matter
    gpu_percent: float = 0.0  #: most that they use of a GPU; 0 = does not matter
    hours: str = ""  #: `mon-fri 18:00-08:00, sat-sun`, in the machine's own time; empty = always
    lower_s: float | None = 0.0  #: then tasks run at the lowest priority
    suspend_s: float | None = 5.0  #: then they stand still
    warn_s: float | None = 300.0  #: then they go on with a SIGTERM
    requeue_s: float | None = 330.0  #: then they are killed, and run elsewhere
    requeue_all: bool = False  #: also those that are not restartable; they end as lost

    @property
    def watches(self) -> bool:
        """Returns whether the machine must be looked at."""
        return bool(self.idle_s or self.cpu_percent or self.gpu_percent or self.hours)


class Pause(Struct, frozen=True):
    """Since when, until when (None = until it is taken back), and by whom; seconds since the epoch."""

    at: float
    until: float | None = None
    by: str = ""

    def is_over(self, wall: float) -> bool:
        """Returns whether its time has passed."""
        return self.until is not None and wall >= self.until

    @property
    def words(self) -> str:
        """Returns what it is, for people."""
        return f"paused{' by ' + self.by if self.by else ''}"


class BadPolicy(ValueError):
    """A field that is not allowed to be so."""

    def __init__(self, field: str, given: object, allowed: str) -> None:
        super().__init__(f"{field}: {given!r} given; allowed: {allowed}")
        self.field = field
        self.given = given
        self.allowed = allowed


def changed(policy: OwnerPolicy, changes: Mapping[str, object]) -> OwnerPolicy:
    """Returns the policy with other values of some fields. Errors: BadPolicy."""
    for field, value in changes.items():
        _check_type(field, value)
    made = msgspec.structs.replace(policy, **{field: _plain(value) for field, value in changes.items()})
    check(made)
    return made


def _plain(value: object) -> object:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _check_type(field: str, value: object) -> None:
    if field not in OwnerPolicy.__struct_fields__:
        raise BadPolicy("owner", field, ", ".join(OwnerPolicy.__struct_fields__))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if field == "hours":
        fits, allowed = isinstance(value, str), _HOURS_RULE
    elif field == "requeue_all":
        fits, allowed = isinstance(value, bool), "true or false"
    elif field.removesuffix("_s") in STEPS:
        fits, allowed = number or value is None, "seconds, or null: the step is not taken"
    else:
        fits, allowed = number, "a number"
    if not fits:
        raise BadPolicy(f"owner.{field}", value, allowed)


def check(policy: OwnerPolicy) -> None:
    """Checks every field. Errors: BadPolicy, about the first that is wrong."""
    _check_range("idle_s", policy.idle_s, _MAX_S)
    _check_range("cpu_percent", policy.cpu_percent, 100)
    _check_range("gpu_percent", policy.gpu_percent, 100)
    windows(policy.hours)
    before, latest_s = "", 0.0
    for step in STEPS:
        value = getattr(policy, f"{step}_s")
        if value is None:
            continue
        _check_range(f"{step}_s", value, _MAX_S)
        if value < latest_s:
            raise BadPolicy(f"owner.{step}_s", value, f"{before} ({latest_s:g}) or more: the steps have an order")
        before, latest_s = f"{step}_s", value
    if policy.warn_s is not None and policy.requeue_s is None:
        raise BadPolicy("owner.warn_s", policy.warn_s, "null while requeue_s is: the warning is of that")


def _check_range(field: str, value: float, high: float) -> None:
    if not 0 <= value <= high:
        raise BadPolicy(f"owner.{field}", value, f"0 to {high:g}")


# ---------------------------------------------------------------- hours


def windows(hours: str) -> list[tuple[int, int]]:
    """Returns (begin, length) of each window of a week, in minutes from Monday 0:00. Errors: BadPolicy."""
    if not hours.strip():
        return []
    if len(hours) > _MAX_HOURS or not hours.isascii():
        raise BadPolicy("owner.hours", hours[:40], f"at most {_MAX_HOURS} characters, {_HOURS_RULE}")
    found = []
    for part in hours.lower().split(","):
        words = part.split()
        days = _days(words[0]) if words else None
        times = words[1:] if days is not None else words
        if len(times) > 1 or (days is None and not times):
            raise BadPolicy("owner.hours", part.strip(), _HOURS_RULE)
        begin, length = _times(times[0], part) if times else (0, _DAY_MINUTES)
        found += [(day * _DAY_MINUTES + begin, length) for day in (range(7) if days is None else days)]
    return found


def _days(word: str) -> list[int] | None:
    """Returns the days of `mon` or `fri-mon`; None if it is no word for days."""
    first, dash, last = word.partition("-")
    if first not in DAYS or (dash and last not in DAYS):
        return None
    begin = DAYS.index(first)
    count = (DAYS.index(last) - begin) % 7 + 1 if dash else 1
    return [(begin + offset) % 7 for offset in range(count)]


def _times(word: str, part: str) -> tuple[int, int]:
    """Returns begin and length of `18:00-08:00`: what ends before it begins ends on the next day."""
    match = _TIMES.fullmatch(word)
    if match is None:
        raise BadPolicy("owner.hours", part.strip(), _HOURS_RULE)
    hour, minute, end_hour, end_minute = map(int, match.groups())
    begin, end = hour * 60 + minute, end_hour * 60 + end_minute
    if minute > 59 or end_minute > 59 or begin >= _DAY_MINUTES or end > _DAY_MINUTES or begin == end:
        raise BadPolicy("owner.hours", part.strip(), "times from 00:00 to 24:00, the two different")
    return begin, (end - begin) % _DAY_MINUTES or _DAY_MINUTES


def is_open(hours: str, weekday: int, minute: int) -> bool:
    """Returns whether the hours allow work on a weekday (Monday is 0) at a minute of the day, as the clock there shows.

    When clocks are changed it is what they show that counts: an hour that is skipped is no part of a window, one that
    comes twice is in it twice. Errors: BadPolicy.
    """
    now = weekday * _DAY_MINUTES + minute
    found = windows(hours)
    return not found or any((now - begin) % _WEEK_MINUTES < length for begin, length in found)


def described(policy: OwnerPolicy) -> str:
    """Returns the policy in one line for people."""
    rules = [
        f"no input for {_time(policy.idle_s)}" if policy.idle_s else "",
        f"others use at most {policy.cpu_percent:g} % of the processors" if policy.cpu_percent else "",
        f"and {policy.gpu_percent:g} % of a GPU" if policy.gpu_percent else "",
        f"in the hours {policy.hours}" if policy.hours else "",
    ]
    steps = [f"{step} after {_time(value)}" for step in STEPS if (value := getattr(policy, f"{step}_s")) is not None]
    all_too = " (also what is not restartable)" if policy.requeue_all else ""
    return f"works with {', '.join(filter(None, rules)) or 'no condition'}; makes way: {', '.join(steps)}{all_too}"


def _time(seconds: float) -> str:
    for unit_s, unit in ((3600, "h"), (60, "min")):
        if seconds >= unit_s and seconds % unit_s == 0:
            return f"{seconds / unit_s:g} {unit}"
    return f"{seconds:g} s"
