"""What was killed and does not die: it waits in the kernel for what does not answer. Standard library only.

Nobody can end such a process, and nobody needs to: it runs no instruction of its own any more (`proctree.is_stuck`).
So the task counts as ended, its slot is free, and its end says what hangs where. The process is gone when its file
system answers, or with the machine.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping

from depalma.agent import proctree
from depalma.agent.spawning import Spawned

#: The code of an end with words that execution.py adds to its own.
CODE = "stuck"


class Stuck:
    """Of one monitor."""

    def __init__(self) -> None:
        self.pids: set[int] = set()  #: they belong to nothing any more
        self._since_s: dict[int, float] = {}  #: since when each key should be dead

    def look(self, living: Mapping[int, Spawned], now: float) -> list[Spawned]:
        """Gives up waiting for what can do nothing more. Returns the tasks that count as ended by that."""
        dying = {
            key: self._since_s.get(key, now)
            for key, spawned in living.items()
            if spawned.status is not None or (spawned.deadline is not None and now >= spawned.deadline)
        }
        self._since_s = dying
        late = [living[key] for key, since_s in dying.items() if now - since_s >= proctree.PATIENCE_S]
        return [spawned for spawned in late if self._give_up(spawned)]

    def _give_up(self, spawned: Spawned) -> bool:
        pids = {pid for pid in spawned.pids() if pid != spawned.pid or spawned.status is None}
        if not pids or not all(proctree.is_stuck(pid) for pid in pids):
            return False
        spawned.hangs = "; ".join(_words(pid, spawned) for pid in sorted(pids) if not _is_dead(pid))
        spawned.dirty = True
        spawned.orphans.clear()
        if spawned.status is None:
            spawned.status, spawned.ended = int(signal.SIGKILL), time.time()
        self.pids |= pids
        return True


def _is_dead(pid: int) -> bool:
    found = proctree.stat(pid)
    return found is None or found.state == "Z"


def _words(pid: int, spawned: Spawned) -> str:
    doing = spawned.words.doing(pid) if spawned.words is not None and pid == spawned.pid else ""
    name = proctree.name(pid)
    if not doing:
        try:
            doing = f"{name} in {os.readlink(f'/proc/{pid}/cwd')}"  # as the kernel remembers it: nobody is asked
        except OSError:
            doing = name
    return f"killed, but process {pid} hangs in the kernel ({doing})"
