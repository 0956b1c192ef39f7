"""Whose a process is that has become a child of the monitor because its parent is dead. Standard library only."""

from __future__ import annotations

import os
import signal

from depalma.agent import proctree
from depalma.agent.spawning import NURSERY, Spawned, marker

#: A worker that was forked for the monitor is adopted by then, or is none.
_ADOPT_WITHIN_S = 5.0


def judge(pid: int, living: dict[int, Spawned], unknown: dict[int, set[int]]) -> None:
    """Attributes an orphan to the task it came from: by its group, its session, or its marker.

    One that shows none of them is noted in `unknown`, with all that it may belong to, and killed when nothing of that
    is left.
    """
    now = proctree.stat(pid)
    if now is None or now.state == "Z" or any(pid in spawned.orphans for spawned in living.values()):
        return
    for spawned in living.values():
        if spawned.pid in (now.pgrp, now.session):
            spawned.orphans.add(pid)
            return
    # Last: the kernel may have whoever reads it wait for what hangs while it maps a file.
    mark = proctree.environment_value(pid, proctree.MARKER)
    for spawned in living.values():
        if mark == marker(spawned.key):
            if spawned.slot != NURSERY:
                spawned.orphans.add(pid)
                return
            if now.session == pid and proctree.age_s(now) < _ADOPT_WITHIN_S:
                return  # a worker that was just forked
            mark = ""  # it may come from any worker that was forked there
    # It hid its environment: it may belong to any task that lived when it was first seen.
    tasks = {key for key, spawned in living.items() if spawned.slot != NURSERY}
    candidates = unknown.setdefault(pid, tasks)
    candidates &= living.keys()
    if not candidates or mark.startswith(marker(0)[:-1]):
        proctree.send_tree(pid, signal.SIGKILL)
        proctree.send(pid, os.getpid(), signal.SIGKILL)
