"""Virtual time: a clock that moves only when told to, and a list of what happens when it does."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class ManualClock:
    """A `depalma.clock.Clock` that stands still until it is moved.

    >>> clock = ManualClock()
    >>> clock.advance(1.5)
    >>> clock.monotonic()
    1.5
    """

    __slots__ = ("_now", "epoch")

    def __init__(self, *, epoch: float = 1_700_000_000.0) -> None:
        self._now = 0.0
        #: what `time` shows when `monotonic` shows 0
        self.epoch = epoch

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._now

    def time(self) -> float:
        """Seconds since the Unix epoch: the chosen start plus `monotonic`."""
        return self.epoch + self._now

    def advance(self, seconds: float) -> None:
        """Move on. Raises ValueError for a step back."""
        if seconds < 0:
            raise ValueError(f"time does not go back by {-seconds} s")
        self._now += seconds


class SkewedClock:
    """A clock of one machine: it runs at its own rate, shows its own time of day, and may jump forward.

    >>> clock = SkewedClock(base := ManualClock(), rate=1.1)
    >>> base.advance(10.0)
    >>> clock.monotonic()
    11.0
    """

    __slots__ = ("_base", "_jumped_s", "_offset_s", "_rate", "_wall_s")

    def __init__(self, base: ManualClock, *, rate: float = 1.0, offset_s: float = 0.0, wall_s: float = 0.0) -> None:
        self._base = base
        self._rate = rate
        self._offset_s = offset_s
        self._wall_s = wall_s
        self._jumped_s = 0.0

    def monotonic(self) -> float:
        """Seconds by this clock, from an origin of its own."""
        return self._offset_s + self._jumped_s + self._base.monotonic() * self._rate

    def time(self) -> float:
        """Seconds since the Unix epoch: wrong by `wall_s` and by what rate and jumps have made of it."""
        return self._base.epoch + self._wall_s + self._jumped_s + self._base.monotonic() * self._rate

    def true_s(self, until_s: float) -> float:
        """True seconds until this clock shows `until_s`, unless it jumps; never less than 0."""
        return max(0.0, (until_s - self.monotonic()) / self._rate)

    def jump(self, seconds: float) -> None:
        """Go forward at once, as after a suspend. Raises ValueError for a step back."""
        if seconds < 0:
            raise ValueError(f"time does not go back by {-seconds} s")
        self._jumped_s += seconds

    def leave_out(self, seconds: float) -> None:
        """Take back so many seconds of the true time, in which nobody has looked at the clock: it stood still."""
        self._jumped_s -= seconds * self._rate


class Timeline:
    """Things that will happen, on a ManualClock that it moves from one to the next.

    What is due at the same instant happens in the order in which it was planned, so a run repeats exactly.
    """

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self._planned: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Plan an action `delay_s` seconds from now."""
        self._count += 1
        heapq.heappush(self._planned, (self.clock.monotonic() + delay_s, self._count, action))

    def run_for(self, seconds: float) -> None:
        """Let so much time pass, doing what comes due."""
        until = self.clock.monotonic() + seconds
        while self._planned and self._planned[0][0] <= until:
            at, _, action = heapq.heappop(self._planned)
            self.clock.advance(max(0.0, at - self.clock.monotonic()))
            action()
        self.clock.advance(max(0.0, until - self.clock.monotonic()))
