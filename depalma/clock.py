"""Time as a dependency: whatever waits or stamps takes a `Clock`, so that tests and simulation can own it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where a component reads the time."""

    def monotonic(self) -> float:
        """Seconds that never go back; only differences mean anything."""
        ...

    def time(self) -> float:
        """Seconds since the Unix epoch; may jump, so only for people to read."""
        ...


class SystemClock:
    """The clocks of this machine."""

    __slots__ = ()

    def monotonic(self) -> float:
        """Seconds of CLOCK_MONOTONIC: not moved by anybody who sets the wall clock."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since the Unix epoch by this machine's wall clock."""
        return time.time()
