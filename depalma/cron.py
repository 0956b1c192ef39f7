"""Times of day as cron says them: `MINUTE HOUR DAY MONTH WEEKDAY`. [pure]

Day and weekday are alternatives when both are given, as in every cron. A time that a change of the clocks leaves out
does not come on that day; one that comes twice is taken once, the first time.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo

from msgspec import Struct

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_SHORT = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
#: Name, least, most, words of each field.
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day", 1, 31, ()),
    ("month", 1, 12, ("", *_MONTHS)),
    ("weekday", 0, 7, _DAYS),
)
_PART = re.compile(r"(\*|\w+(?:-\w+)?)(?:/(\d{1,2}))?", re.ASCII)
#: Long enough for the 29th of February, also around a year like 2100.
_SEARCH_DAYS = 366 * 9


class BadCron(ValueError):
    """No time of day; says the field and what is allowed."""


class Cron(Struct, frozen=True):
    """When something is due."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  #: 0 = Sunday
    either: bool  #: day or weekday, not both
    text: str = ""  #: as it was given

    def next_after(self, after: float, zone: tzinfo) -> float:
        """Returns the first time later than `after`, in seconds since the epoch. Errors: BadCron if there is none."""
        start = datetime.fromtimestamp(after, zone)
        day = start.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
        for _ in range(_SEARCH_DAYS):
            if self._has(day):
                for hour in self.hours:
                    for minute in self.minutes:
                        local = day.replace(hour=hour, minute=minute, tzinfo=zone)
                        found = local.astimezone(UTC)
                        # A time that does not exist comes back as another one.
                        if found.timestamp() > after and found.astimezone(zone).replace(tzinfo=None, fold=0) == (
                            local.replace(tzinfo=None)
                        ):
                            return found.timestamp()
            day += timedelta(days=1)
        raise BadCron(f"cron: {self.text[:80]!r} given; allowed: a day that some time comes")

    def _has(self, day: datetime) -> bool:
        if day.month not in self.months:
            return False
        in_days, in_week = day.day in self.days, (day.weekday() + 1) % 7 in self.weekdays
        return in_days or in_week if self.either else in_days and in_week


def parse(text: str) -> Cron:
    """Returns what the words mean. Errors: BadCron."""
    words = _SHORT.get(text.strip().lower(), text).split()
    if len(words) != 5:
        allowed = "five fields (minute hour day month weekday), or " + ", ".join(_SHORT)
        raise BadCron(f"cron: {text[:80]!a} given; allowed: {allowed}")
    minutes, hours, days, months, weekdays = (_field(word, *field) for word, field in zip(words, _FIELDS, strict=True))
    either = not words[2].startswith("*") and not words[4].startswith("*")
    return Cron(
        tuple(sorted(minutes)),
        tuple(sorted(hours)),
        frozenset(days),
        frozenset(months),
        frozenset(day % 7 for day in weekdays),
        either,
        text,
    )


def _field(text: str, name: str, least: int, most: int, words: tuple[str, ...]) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        low = high = -1
        if match and match[1] == "*":
            low, high = least, most
        elif match:
            first, _, last = match[1].partition("-")
            low = _number(first, words)
            high = _number(last, words) if last else most if match[2] else low
        step = int(match[2]) if match and match[2] else 1
        if not least <= low <= high <= most or step < 1:
            example = f" (or like {words[1]})" if words else ""
            raise BadCron(
                f"cron: {name}: {part[:40]!a} given; allowed: {least} to {most}{example}, *, A-B, */N, or several"
            )
        found.update(range(low, high + 1, step))
    return found


def _number(text: str, words: tuple[str, ...]) -> int:
    if text.isdigit():
        return int(text)
    return words.index(text.lower()) if text and text.lower() in words else -1
