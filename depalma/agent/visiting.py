"""The monitor's part in visits: what a user runs inside a task lives below the same monitor, and no longer than it.

A visitor is one more process with its own tree, so the lease, the death of the agent and its own end mean to it what
they mean to tasks. Besides: when the task's main process has ended its visitors are killed, and the task is told of as
over only when nothing of them is left, as with all that it leaves behind. Nothing of a visitor counts as the task's,
though: it has a marker and a session of its own. Standard library only.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from depalma.agent import proctree
from depalma.agent.cgroups import TaskGroup
from depalma.agent.entering import SpawnError
from depalma.agent.limits import Ended, as_of, inside, shim
from depalma.agent.spawning import Spawned

if TYPE_CHECKING:
    from depalma.monitor import Monitor

Bound = Callable[[list[bytes]], list[bytes]]

#: What an end is called that is not one of its own: it was not let in, or its task has ended.
REFUSED, TASK_OVER = "visit_refused", "visit_task_over"


class Unwelcome(Exception):
    """Nothing is started; the words are for the user."""


def begin(monitor: Monitor, message: tuple[Any, ...]) -> None:
    """Starts what a `visit` message asks for; how it ends, or that it does not begin, is told as for tasks."""
    _, key, task, argv, variables, cwd, terminal, apart = message
    fds = [] if terminal else [monitor.channel.received_fds.popleft() for _ in range(3)]
    visitor = Spawned(key, -1, ("", ""))
    visitor.visited = task
    now = time.time()
    try:
        visited = _welcome(monitor, task)
        monitor.spawner.enter(visitor, argv, variables, cwd, terminal or fds, _bound(visited, apart=apart))
    except Unwelcome as refusal:
        monitor.note_exit(key, 0, now, now, str(refusal), REFUSED)
    except SpawnError as error:
        monitor.note_exit(key, error.exit_code << 8, now, now, str(error))
    else:
        visited.visitors.append(visitor)
        visited.dirty = True  # it may have opened what the task writes to
        monitor.take_on(visitor)
    finally:
        for fd in fds:
            os.close(fd)


def _welcome(monitor: Monitor, task: int) -> Spawned:
    """Returns what is to be visited. Errors: Unwelcome."""
    found = monitor.by_key.get(task)
    if not monitor.may_start:
        raise Unwelcome("the host's lease is over")
    if found is None or found.status is not None:
        raise Unwelcome("it does not run any more, or not yet")
    if found.deadline is not None or found.over is not None:
        raise Unwelcome("it is being ended")
    found.visitors = [visitor for visitor in found.visitors if visitor.key in monitor.by_key]
    return found


def _bound(visited: Spawned, *, apart: bool) -> Bound | None:
    """Returns what puts a command under the limits of the task; None if it has none. Errors: Unwelcome.

    `apart`: the task is a process below its worker, which alone knows the limits.
    """
    if visited.watch is not None:
        return partial(shim, visited.watch.limits, visited.watch.group)
    if not apart:
        return None
    # What the task leaves behind becomes a child of the worker, too; the task was there before.
    below = [(now.start, pid) for pid in proctree.children(visited.pid) if (now := proctree.stat(pid))]
    try:
        _, task = min(below)
        return partial(inside, TaskGroup.of(task), as_of(task))
    except (ValueError, OSError):
        raise Unwelcome("its process has not begun; ask again") from None


def remain(spawned: Spawned, living: Mapping[int, Spawned]) -> bool:
    """Kills the visitors of a task that has ended. Returns whether anything of them is left."""
    left = [visitor for visitor in spawned.visitors if visitor.key in living]
    for visitor in left:
        visitor.over = visitor.over or Ended(TASK_OVER, "")
    end_all(left)
    return bool(left)


def end_all(living: Iterable[Spawned]) -> None:
    """Kills the visitors among these."""
    for visitor in living:
        if visitor.visited is not None:
            visitor.end(0.0, polite=False)


def pass_on(monitor: Monitor, message: tuple[Any, ...]) -> None:
    """Sends a user's signal to what he runs."""
    _, key, number = message
    visitor = monitor.by_key.get(key)
    if visitor is not None and visitor.visited is not None and number != signal.SIGKILL:
        visitor.signal(number)
