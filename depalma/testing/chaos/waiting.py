"""Waiting for something, with a deadline and the last thing that was seen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class TooLate(AssertionError):
    """It did not happen in time."""


def wait_until(
    look: Callable[[], T], until: Callable[[T], object] = bool, *, within_s: float, what: str, every_s: float = 0.01
) -> T:
    """Returns what `look` sees once `until` accepts it. Errors: TooLate, which says what was last seen."""
    deadline = time.monotonic() + within_s
    while True:
        seen = look()
        if until(seen):
            return seen
        if time.monotonic() > deadline:
            raise TooLate(f"{what}: not within {within_s:g} s; last seen: {seen!r}")
        time.sleep(every_s)
