"""The third who holds the lease: it ends what is left of an agent when neither agent nor monitor can.

What it guarantees:
- When agent and monitor are both dead, whatever they started for tasks is killed at once.
- When the lease is over and some moments later something is left (both stand still, or one does and the other is dead),
  that is killed too.

It knows the processes by their environment (`proctree.OWNER`), as the next agent of the folder would, and what is below
those and below the monitor. It decides nothing else and tells nobody anything. It is started by `wardenlink.py` so that
it does not look like the other two: what kills those by name leaves it. Standard library only.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import math
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable

#: What the agent says: until when tasks may live (CLOCK_BOOTTIME; 0: there are none; NaN: it ends in good order), and
#: the monitor: its process and when that began. 0: there is none.
WORD = struct.Struct("<dqq")
#: How often it is looked whether the monitor is dead too, once the agent is.
_LOOK_S = 0.02
_WORDS = 1 << 16  #: more than the largest pipe holds: one that has stood still must not act by an old one
#: The clock may jump over a deadline while the machine sleeps; this is how soon it is looked at again.
_DOZE_S = 1.0
_KILL_AGAIN_S = 0.05
_PR_SET_NAME = 15


class Warden:
    """Of one agent process. `said`: the pipe from it; `root`: its folder."""

    def __init__(self, said: int, root: str, agent: int) -> None:
        self._said = said
        self._root = root
        self._agent = agent
        self._until_s = 0.0
        self._monitor, self._monitor_start = 0, 0
        self._agent_lives = True

    def watch(self) -> None:
        """Its whole life."""
        while self._agent_lives and not math.isnan(self._until_s):
            self._hear(_DOZE_S)
            self._end_strays_if_over()
        while not math.isnan(self._until_s):
            lock = self._lock()
            if lock >= 0:
                self._end_strays(lambda: True)
                return  # the lock goes with this process
            if self._is_followed():
                return  # the next agent of the folder has the lock, and has ended what was left
            self._end_strays_if_over()  # the monitor may stand still
            time.sleep(_LOOK_S)

    def _hear(self, most_s: float) -> None:
        """Takes the last that the agent has said; waits for it, but not beyond the deadline."""
        left_s = max(0.0, self._until_s - _boottime()) if self._until_s else most_s
        if not self._agent_lives or not select.select([self._said], [], [], min(left_s, most_s))[0]:
            return
        # Words go into the pipe whole.
        data = os.read(self._said, _WORDS * WORD.size)
        if data:
            self._until_s, self._monitor, self._monitor_start = WORD.unpack(data[-WORD.size :])
        else:
            self._agent_lives = False

    def _end_strays_if_over(self) -> None:
        if self._is_over():
            self._end_strays(self._is_over)
            if self._is_over():
                self._until_s = 0.0  # nothing lives, and nothing begins before the agent has said so

    def _is_over(self) -> bool:
        self._hear(0.0)
        if self._until_s == 0.0 or not _boottime() >= self._until_s:  # a NaN is not
            return False
        return self._agent_lives or not self._is_followed()

    def _end_strays(self, may: Callable[[], bool]) -> None:
        """Kills until nothing is left, for as long as it may.

        It is asked between the look and the kill: whatever began under a newer lease did so after the agent had said
        so, and is not among what was seen before.
        """
        from depalma.agent import proctree

        while True:
            seen = self._strays()
            if not seen or not may():
                return
            for pid, start in seen:
                proctree.send_same(pid, start, signal.SIGKILL)
            time.sleep(_KILL_AGAIN_S)

    def _strays(self) -> list[tuple[int, int]]:
        """Returns processes and when they began."""
        from depalma.agent import proctree

        tops = marked = proctree.strays(self._root)
        monitor = proctree.stat(self._monitor) if self._monitor else None
        if monitor is not None and monitor.start == self._monitor_start:
            tops = [*marked, self._monitor]  # itself it may live: it holds the lock
        below = {child for pid in tops for child, _ in proctree.descendants(pid)}
        # Without those that are dead and not reaped, as by a monitor that stands still, or can do nothing more.
        able = [pid for pid in below.union(marked) if not proctree.is_stuck(pid)]
        return [(pid, now.start) for pid in able if (now := proctree.stat(pid)) is not None]

    # ------------------------------------------------------------ the lock that agent and monitor share

    def _lock(self) -> int:
        """Returns the lock of the folder, -1 if somebody has it. A folder that is gone is nobody's."""
        try:
            handle = os.open(os.path.join(self._root, "lock"), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return sys.maxsize
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return -1
        return handle

    def _is_followed(self) -> bool:
        """Returns whether another agent has the lock. It has said so before anything began under it."""
        return self._holder() not in ("", str(self._agent))

    def _holder(self) -> str:
        """Returns the process id of the last agent that took the lock; empty while it is being written."""
        try:
            with open(os.path.join(self._root, "lock")) as file:
                return file.read(100).strip()
        except OSError:
            return ""


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _first_line(handle: int) -> bytes:
    """Reads no byte beyond it."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(handle, 1)
        if not byte:
            sys.exit(0)  # the agent died before it could say anything, so it has started nothing
        line += byte
    return line


def main() -> None:
    """Entry: the pipe is standard input; its first line says where the package is, the folder and the agent."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_NAME, b"task-warden", 0, 0, 0)
    where = json.loads(_first_line(0))
    sys.path.insert(0, where["package"])
    import depalma.agent.proctree  # noqa: F401  now: the files of the package may be replaced later

    Warden(0, where["root"], where["agent"]).watch()


if __name__ == "__main__":
    main()
