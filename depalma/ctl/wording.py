"""Values as people read them: times, durations, sizes, and text that cannot disturb a terminal."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def clean(text: str) -> str:
    """Returns the text with control characters written out: names and messages come from other people's jobs."""
    return _CONTROL.sub(_written_out, text)


def _written_out(match: re.Match[str]) -> str:
    character = match.group()
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character, f"\\x{ord(character):02x}")


def duration(seconds: float | None) -> str:
    """Returns `0.4s`, `12s`, `3m20s`, `2h05m`, `4d03h`; `-` for None."""
    if seconds is None:
        return "-"
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def ago(at: float | None, *, now: float | None = None) -> str:
    """Returns how long ago a time (seconds since the epoch) was, such as `3m20s ago`; `-` for None."""
    if at is None:
        return "-"
    return f"{duration((time.time() if now is None else now) - at)} ago"


def moment(at: float | None) -> str:
    """Returns the local date and time of a time in seconds since the epoch; `-` for None."""
    return "-" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def size(size_bytes: float | None) -> str:
    """Returns `512 B`, `1.5 GiB`; `-` for None."""
    if size_bytes is None:
        return "-"
    amount = float(size_bytes)
    for unit in _UNITS:
        if amount < 1024 or unit == _UNITS[-1]:
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"


def count(number: int, noun: str) -> str:
    """Returns `1 task`, `2 tasks`, `0 processes`."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def slots(running: int, available: int) -> str:
    """Returns `2/4`; tasks that were sent ahead and wait on the host stand apart: `4/4 +9`."""
    ahead = running - available
    return f"{available}/{available} +{ahead}" if ahead > 0 else f"{running}/{available}"


def listed(names: Iterable[object], *, limit: int = 0) -> str:
    """Returns the names with commas between; with a limit, the first ones and how many more there are."""
    texts = [str(name) for name in names]
    if limit and len(texts) > limit:
        return f"{', '.join(texts[:limit])} and {len(texts) - limit} more"
    return ", ".join(texts)
