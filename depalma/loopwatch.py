"""How long the event loop could not turn: a heartbeat of its own, and how late it came."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import deque

PERIOD_S = 0.02
#: Upper bounds of the histogram; what is shorter than the first is the noise of any machine.
BOUNDS_S = (0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
_SLOT_S = 10.0
_SLOTS = 6


class LoopWatch:
    """Counts stalls from `start` to `stop`. A stall is told too short by at most PERIOD_S."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)  #: by the bound that is not exceeded; the last: longer than all
        self.total_s = 0.0
        self._worst: deque[tuple[int, float]] = deque(maxlen=_SLOTS)  #: time slot, worst stall in it
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins on the running loop."""
        self._due = time.monotonic() + PERIOD_S
        self._timer = asyncio.get_running_loop().call_later(PERIOD_S, self._beat)

    def stop(self) -> None:
        """Ends."""
        if self._timer is not None:
            self._timer.cancel()

    def worst_s(self) -> float:
        """Returns the longest stall of the last minute, in seconds."""
        oldest = _slot(time.monotonic()) - _SLOTS
        return max((stall for slot, stall in self._worst if slot > oldest), default=0.0)

    def _beat(self) -> None:
        now = time.monotonic()
        self._note(now, max(0.0, now - self._due))
        self._due = now + PERIOD_S
        self._timer = asyncio.get_running_loop().call_later(PERIOD_S, self._beat)

    def _note(self, now: float, stall: float) -> None:
        self.counts[bisect_left(BOUNDS_S, stall)] += 1
        self.total_s += stall
        slot = _slot(now)
        if self._worst and self._worst[-1][0] == slot:
            stall = max(stall, self._worst.pop()[1])
        self._worst.append((slot, stall))


def _slot(now: float) -> int:
    return int(now / _SLOT_S)
