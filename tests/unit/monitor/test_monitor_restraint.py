"""The supervisor holds trees back: they stand still, at the lowest priority, and the lease still ends them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

#: A tree that hides: a session of its own, an orphan, and one that is made anew all the time.
HIDES = "setsid sleep 3101 & (setsid env -i sleep 3101 &); while :; do sleep 0.01; done"
#: As busy as can be, forking all the time.
FORKS = "import os\nwhile True:\n    if os.fork() == 0: os._exit(0)\n    os.wait()"


@pytest.fixture
def monitor(monitor):
    monitor.lease()
    return monitor


def states(monitor) -> list[str]:
    found = []
    for child in monitor.below():
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(child.status())
    return found


def ticks(monitor) -> float:
    """Returns the processor time of all that is below."""
    total = 0.0
    for child in monitor.below():
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(child.cpu_times())
    return total


def is_still(monitor) -> bool:
    """A parent whose child was stopped between vfork and exec waits for it, and is shown as in the disk: also one whose
    child goes, so that one must have been seen too."""
    before, seen = monitor.below(), set(states(monitor))
    is_so = psutil.STATUS_STOPPED in seen and seen <= {psutil.STATUS_STOPPED, psutil.STATUS_DISK_SLEEP}
    return is_so and monitor.below() == before


def moves(monitor) -> bool:
    return psutil.STATUS_STOPPED not in states(monitor) and bool(states(monitor))


def test_a_whole_tree_stands_still_and_goes_on(monitor) -> None:
    monitor.spawn(1, "sh", "-c", HIDES, slot=0)
    monitor.spawn(2, sys.executable, "-c", FORKS, slot=1)
    monitor.listen(lambda: monitor.sleeping() >= 2 and len(monitor.below()) >= 4, "trees")

    monitor.say(("suspend", None, "owner"))
    monitor.listen(lambda: is_still(monitor), "stillness")
    before = ticks(monitor)
    monitor.say(("ping", 1))
    monitor.listen(lambda: ("pong", 1) in monitor.heard, "answer")
    assert is_still(monitor)
    assert ticks(monitor) == before

    monitor.say(("resume", None, "owner"))
    monitor.listen(lambda: moves(monitor), "movement")
    assert monitor.exits == {}


def test_a_tree_stands_still_while_anybody_wants_it(monitor) -> None:
    """The user suspends one job, the owner comes and goes: the job stays as the user wants it."""
    monitor.spawn(1, "sleep", "3101", slot=0)
    monitor.spawn(2, "sleep", "3101", slot=1)
    monitor.listen(lambda: monitor.sleeping() == 2, "tasks")
    stopped = [psutil.STATUS_STOPPED]

    def still(count: int) -> Callable[[], bool]:
        return lambda: states(monitor).count(psutil.STATUS_STOPPED) == count and monitor.sleeping() == 2

    monitor.say(("suspend", 1, "user"))
    monitor.listen(still(1), "one stopped")
    monitor.say(("suspend", None, "owner"))
    monitor.listen(still(2), "both stopped")
    monitor.say(("resume", None, "owner"))
    monitor.listen(still(1), "one stopped")
    monitor.say(("suspend", None, "owner"))
    monitor.listen(still(2), "both stopped")
    monitor.say(("resume", 1, "user"), ("ping", 1))
    monitor.listen(lambda: ("pong", 1) in monitor.heard, "answer")
    assert states(monitor) == stopped * 2
    monitor.say(("resume", None, "owner"))
    monitor.listen(still(0), "both going")


def test_one_task_stands_still_with_what_hides_and_can_only_be_its(monitor) -> None:
    monitor.spawn(1, "sh", "-c", HIDES, slot=0)
    monitor.listen(lambda: monitor.sleeping() >= 2 and len(monitor.below()) >= 4, "tree")
    monitor.say(("suspend", 1, "user"))
    monitor.listen(lambda: is_still(monitor), "stillness")
    monitor.spawn(2, "sleep", "3101", slot=1)
    monitor.listen(lambda: states(monitor).count(psutil.STATUS_SLEEPING) == 1, "the other task, going")
    monitor.say(("resume", 1, "user"))
    monitor.listen(lambda: moves(monitor), "movement")


def test_what_a_task_has_stopped_itself_is_not_let_go(monitor) -> None:
    monitor.spawn(1, "sh", "-c", "sleep 3101 & kill -STOP $!; while :; do sleep 0.01; done")
    monitor.listen(lambda: states(monitor).count(psutil.STATUS_STOPPED) == 1, "its stopped child")
    monitor.say(("suspend", None, "owner"))
    monitor.listen(lambda: is_still(monitor), "stillness")
    monitor.say(("resume", None, "owner"))
    monitor.listen(lambda: states(monitor).count(psutil.STATUS_STOPPED) == 1, "all but one going")


def test_what_stands_still_and_is_told_to_end_can(monitor, tmp_path: Path) -> None:
    """It gets the signal, time to tidy up, and is not stopped again meanwhile."""
    script = "trap 'sleep 0.3; echo tidy >>witness; exit 7' TERM; echo began >>witness; while :; do sleep 0.02; done"
    monitor.spawn(1, "sh", "-c", script, cwd=str(tmp_path))
    witness = tmp_path / "witness"
    monitor.listen(witness.exists, "start")
    monitor.say(("suspend", None, "owner"))
    monitor.listen(lambda: is_still(monitor), "stillness")
    monitor.say(("kill", 1, 20.0))
    assert monitor.exit(1)[0] == 7
    assert witness.read_text().split() == ["began", "tidy"]


def test_nothing_starts_while_everything_stands_still(monitor) -> None:
    monitor.say(("suspend", None, "owner"))
    monitor.spawn(1, "true", slot=0)
    monitor.spawn(2, "true", slot=0)
    monitor.say(("ping", 1))
    monitor.listen(lambda: ("pong", 1) in monitor.heard, "answer")
    assert monitor.exits == {}
    monitor.say(("recall", 5, 0))
    monitor.listen(lambda: ("recalled", 5, [1, 2]) in monitor.heard, "both back")
    monitor.spawn(3, "true", slot=0)
    monitor.say(("resume", None, "owner"))
    assert monitor.exit(3)[0] == 0


def test_a_tree_that_stands_still_dies_with_the_lease(monitor) -> None:
    monitor.spawn(1, "sh", "-c", "trap '' TERM; " + HIDES)
    monitor.listen(lambda: monitor.sleeping() >= 2, "tree")
    monitor.say(("suspend", None, "owner"), ("suspend", 1, "user"))
    monitor.listen(lambda: is_still(monitor), "stillness")
    monitor.lease(0.3)
    monitor.listen(lambda: not monitor.below(), "end of the tree")


def test_a_tree_that_stands_still_dies_with_its_agent(monitor) -> None:
    monitor.spawn(1, "sh", "-c", HIDES)
    monitor.listen(lambda: monitor.sleeping() >= 2, "tree")
    monitor.say(("suspend", None, "owner"))
    monitor.listen(lambda: is_still(monitor), "stillness")
    below = monitor.below()
    monitor.channel.close()
    assert monitor.process.wait(30) == 0
    assert not [process for process in below if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_an_orderly_stop_lets_what_stands_still_tidy_up(monitor, tmp_path: Path) -> None:
    script = "trap 'echo tidy >>witness; exit 0' TERM; echo began >>witness; while :; do sleep 0.02; done"
    monitor.spawn(1, "sh", "-c", script, cwd=str(tmp_path))
    witness = tmp_path / "witness"
    monitor.listen(witness.exists, "start")
    monitor.say(("suspend", None, "owner"))
    monitor.listen(lambda: is_still(monitor), "stillness")
    monitor.say(("stop", "stopped", 10.0))
    monitor.process.wait(30)
    assert witness.read_text().split() == ["began", "tidy"]


def test_priorities_are_lowered_for_every_thread_and_come_back(monitor) -> None:
    script = "import threading, time\nfor _ in range(3): threading.Thread(target=time.sleep, args=(3101,)).start()"
    monitor.spawn(1, sys.executable, "-c", script, slot=0)
    monitor.spawn(2, "sh", "-c", HIDES, slot=1)
    monitor.listen(lambda: len(monitor.below()) >= 4, "trees")

    def nices() -> set[int]:
        found = set()
        for child in monitor.below():
            with contextlib.suppress(psutil.NoSuchProcess, OSError):
                found |= {os.getpriority(os.PRIO_PROCESS, thread.id) for thread in child.threads()}
        return found

    own = psutil.Process(monitor.process.pid).nice()
    monitor.listen(lambda: nices() == {own}, "the usual priority")
    monitor.say(("lower", True))
    monitor.listen(lambda: nices() == {19}, "the lowest priority")
    assert psutil.Process(monitor.process.pid).nice() == own
    first = monitor.below()[0]  # that of the processor comes first, that of the disk a moment later
    monitor.listen(lambda: first.ionice().ioclass == psutil.IOPRIO_CLASS_IDLE, "the lowest priority at the disk")
    monitor.say(("lower", False))
    if os.geteuid() == 0:
        monitor.listen(lambda: nices() == {own}, "the usual priority")
    os.kill(monitor.process.pid, signal.SIGCONT)  # it is there, and still listens
    monitor.say(("ping", 2))
    monitor.listen(lambda: ("pong", 2) in monitor.heard, "answer")
