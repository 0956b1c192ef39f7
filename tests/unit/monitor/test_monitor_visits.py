"""What users run inside tasks, as the supervisor has it: it is there as long as its task, and no longer."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from depalma.agent.cgroups import own_places
from depalma.agent.visiting import REFUSED, TASK_OVER
from depalma.monitor import boottime

#: Leaves its group and its session, ignores signals, and is nobody's child.
HIDES = "trap '' TERM HUP INT; setsid sleep 3010 & (setsid sh -c 'trap \"\" TERM; sleep 3010' &); sleep 3010 & wait"


class Visitor:
    """One visit: this side's ends of its pipes."""

    def __init__(self, monitor: Any, key: int, task: int, *argv: str, cwd: str = "/", apart: bool = False) -> None:
        self.monitor = monitor
        self.key = key
        far_in, self.stdin = os.pipe()
        self.stdout, far_out = os.pipe()
        self.stderr, far_err = os.pipe()
        words = [os.fsencode(word) for word in argv]
        message = ("visit", key, task, words, (1, {b"WHO": b"visitor"}), cwd, "", apart)
        monitor.channel.queue(message, far_in, far_out, far_err)
        assert monitor.channel.flush()

    def end(self) -> tuple[int, str, str]:
        """Returns exit code, error and code of its end."""
        ended = self.monitor.listen(lambda: self.monitor.exits.get(self.key), f"end of {self.key}")
        return os.waitstatus_to_exitcode(ended[1]), ended[4], ended[5]

    def output(self) -> bytes:
        """Returns all that it wrote; it must be over."""
        with open(self.stdout, "rb", closefd=False) as file:
            return file.read()

    def close(self) -> None:
        for fd in (self.stdin, self.stdout, self.stderr):
            os.close(fd)


@pytest.fixture
def visit(monitor):
    made = []

    def begin(key: int, task: int, *argv: str, **options: Any) -> Visitor:
        made.append(Visitor(monitor, key, task, *argv, **options))
        return made[-1]

    yield begin
    for visitor in made:
        visitor.close()


@pytest.fixture
def task(monitor):
    """A task that runs, with key 1."""
    monitor.lease()
    monitor.spawn(1, "sleep", "3011")
    monitor.listen(lambda: monitor.sleeping() == 1, "task")
    return monitor


def test_it_runs_beside_the_task_and_ends_with_its_own_code(task, visit, tmp_path):
    visitor = visit(100, 1, "sh", "-c", "pwd; echo $WHO; cat; exit 3", cwd=str(tmp_path))
    os.write(visitor.stdin, b"\0in\xff")
    os.close(visitor.stdin)
    visitor.stdin = os.dup(visitor.stdout)

    assert visitor.end() == (3, "", "")
    assert visitor.output() == os.fsencode(tmp_path) + b"\nvisitor\n\0in\xff"
    assert visit(101, 1, "nosuch").end() == (127, "nosuch: command not found", "")
    assert visit(102, 1, "true", cwd="/nosuch").end()[:2] == (126, "working folder /nosuch: No such file or directory")
    assert 1 not in task.exits, "the task goes on"


def test_all_of_it_is_dead_before_its_task_is_told_of(task, visit):
    visitor = visit(100, 1, "sh", "-c", HIDES)
    task.listen(lambda: task.sleeping() == 4, "its tree")

    task.say(("kill", 1, 0.0))

    assert visitor.end() == (-signal.SIGKILL, "", TASK_OVER)
    assert task.exit(1) == (-signal.SIGKILL, "")
    assert task.below() == []
    order = [ended[0] for message in task.heard if message[0] == "exits" for ended in message[1]]
    assert order == [100, 1]


def test_it_neither_prolongs_a_task_nor_changes_how_that_ends(task, visit):
    task.spawn(2, "sh", "-c", "while ! test -e done; do sleep 0.02; done; exit 5", slot=1, cwd=str(task.root))
    task.listen(lambda: len(task.below()) >= 2, "second task")
    visit(100, 2, "sh", "-c", HIDES)
    task.listen(lambda: task.sleeping() >= 4, "its tree")

    (task.root / "done").touch()

    assert task.exit(2) == (5, "")
    task.listen(lambda: len(task.below()) == 1, "end of the visit, and of nothing else")
    assert 1 not in task.exits


def test_what_it_leaves_behind_ends_with_it_and_not_with_the_task(task, visit):
    visitor = visit(100, 1, "sh", "-c", "setsid sleep 3010 & (setsid sleep 3010 &); sleep 0.1; exit 0")

    assert visitor.end() == (0, "", "")

    assert task.sleeping() == 1, "only the task"
    assert 1 not in task.exits


def test_the_lease_ends_it_too(task, visit):
    visit(100, 1, "sh", "-c", HIDES)
    task.listen(lambda: task.sleeping() == 4, "its tree")
    task.lease(0.2)
    task.listen(lambda: not task.below(), "end of everything")
    assert visit(101, 1, "true").end() == (0, "the host's lease is over", REFUSED)


def test_who_comes_too_late_or_too_early_is_not_let_in(task, visit):
    assert visit(100, 7, "true").end() == (0, "it does not run any more, or not yet", REFUSED)
    task.spawn(2, "true", slot=0)  # waits for the slot
    assert visit(101, 2, "true").end() == (0, "it does not run any more, or not yet", REFUSED)
    task.spawn(3, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done", slot=1)
    spool = task.root / "spool" / "1.out"
    task.listen(lambda: spool.exists() and spool.stat().st_size, "third task")
    task.say(("kill", 3, 30.0))
    assert visit(102, 3, "true").end() == (0, "it is being ended", REFUSED)


def test_signals_are_passed_on_to_visitors_only(task, visit):
    visitor = visit(100, 1, "sh", "-c", "trap 'echo got; exit 4' USR1; echo ready; while :; do sleep 0.02; done")
    assert os.read(visitor.stdout, 100) == b"ready\n"
    task.say(*(("signal", key, int(signal.SIGUSR1)) for key in (1, 100, 77)))
    assert visitor.end()[0] == 4
    assert visitor.output() == b"got\n"
    task.say(("ping", 1))
    task.listen(lambda: ("pong", 1) in task.heard, "answer")
    assert 1 not in task.exits


def test_it_stands_still_with_its_task(task, visit):
    visitor = visit(100, 1, "sleep", "3012")
    pid = task.listen(lambda: [p.pid for p in task.below() if p.cmdline()[1:] == ["3012"]], "visit")[0]

    task.say(("suspend", 1, "job"))
    task.listen(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "stillness")
    task.say(("resume", 1, "job"))
    task.listen(lambda: psutil.Process(pid).status() == psutil.STATUS_SLEEPING, "going on")
    task.say(("suspend", 1, "job"))
    task.listen(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, "stillness")
    task.say(("kill", 100, 5.0))

    assert visitor.end()[0] == -signal.SIGTERM


def test_a_terminal_becomes_its_own(task):
    master, slave = os.openpty()
    words = [b"sh", b"-c", b"test -t 0 -a -t 1 -a -t 2 && echo own >/dev/tty && exit 6"]
    task.say(("visit", 100, 1, words, (1, {}), "/", os.ttyname(slave), False))
    assert task.exit(100) == (6, "")
    assert os.read(master, 100) == b"own\r\n"
    os.close(master)
    os.close(slave)


def test_the_limits_of_the_task_are_its_own(monitor, visit):
    limits = (256 << 20, 50.0, 0, 77, 0, 0)
    monitor.lease()
    files = (f"{monitor.root}/output/1.out", f"{monitor.root}/output/1.err")
    words = [b"sh", b"-c", b"cat /proc/self/cgroup; ulimit -n; exec sleep 3013"]
    monitor.say(("spawn", 1, words, 1, {}, "", files, 0, False, limits, ("", ""), b""))
    monitor.listen(lambda: monitor.sleeping() == 1, "task")

    visitor = visit(100, 1, "sh", "-c", "cat /proc/self/cgroup; ulimit -n")

    assert visitor.end() == (0, "", "")
    said = visitor.output().decode()
    assert said == (monitor.root / "spool" / "0.out").read_text()
    assert said.endswith("\n77\n")
    if any(kind in own_places() for kind in ("memory", "v2")) and "/k1\n" not in said:
        pytest.skip("this machine lets us make no control group: only the rlimits were compared")


#: As a worker with an isolated function: the task is a process of its own below it, which knows its limits.
WORKER = """
import os, resource, time
if os.fork() == 0:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_NOFILE, (55, 55))
    open("ready", "w").close()
time.sleep(3014)
"""


def test_of_a_function_in_a_process_of_its_own_too(monitor, visit, tmp_path):
    monitor.lease()
    words = [os.fsencode(sys.executable), b"-S", b"-c", WORKER.encode()]
    monitor.say(("spawn", 1, words, 1, {}, str(tmp_path), ("", ""), -1, False, (), ("", "")))
    monitor.listen(Path(tmp_path, "ready").exists, "task")

    visitor = visit(100, 1, "sh", "-c", "ulimit -n", apart=True)

    assert visitor.end() == (0, "", "")
    assert visitor.output() == b"55\n"
    monitor.spawn(2, "sleep", "3015")
    monitor.listen(lambda: monitor.sleeping() == 1, "worker without a task")
    assert visit(101, 2, "true", apart=True).end() == (0, "its process has not begun; ask again", REFUSED)


def test_an_agent_that_dies_takes_it_along(supervise, tmp_path):
    monitor = supervise(tmp_path)
    monitor.listen(lambda: monitor.heard, "its first word")
    monitor.say(("lease", boottime() + 60))
    monitor.spawn(1, "sleep", "3016")
    visitor = Visitor(monitor, 100, 1, "sh", "-c", HIDES)
    monitor.listen(lambda: monitor.sleeping() == 4, "trees")
    below = monitor.below()
    monitor.close()
    visitor.close()
    assert [process for process in below if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
