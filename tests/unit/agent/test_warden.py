"""Who ends what is left when agent and monitor cannot: real processes, a pipe and a lock."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from depalma.agent import proctree, wardenlink
from depalma.agent.warden import WORD, Warden
from depalma.agent.wardenlink import WardenLink
from depalma.monitor import boottime

FAR_S = 1000.0
PATIENCE_S = 30.0


class Agent:
    """Its folder with the lock, its warden, and what it has started."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        (root / "lock").write_text(f"{os.getpid()}\n")
        self.link = WardenLink(root)
        self.started: list[subprocess.Popen[bytes]] = []

    def task(self, **env: str) -> subprocess.Popen[bytes]:
        self.started.append(subprocess.Popen(["sleep", "3040"], env={proctree.OWNER: str(self.root), **env}))
        return self.started[-1]

    @property
    def warden(self) -> subprocess.Popen[bytes]:
        assert self.link._process is not None
        return self.link._process

    def die(self) -> None:
        """As the pipe shows it."""
        assert self.warden.stdin is not None
        self.warden.stdin.close()

    def let_go(self) -> None:
        """The monitor is dead too."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(tmp_path)
    yield made
    made.let_go()
    for process in [*made.started, *([made.link._process] if made.link._process else [])]:
        process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def soon(look: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < end, f"not within {PATIENCE_S} s"
        time.sleep(0.01)


def has_read_all(warden: subprocess.Popen[bytes]) -> bool:
    """Returns whether it sleeps until something happens."""
    return psutil.Process(warden.pid).name() == "task-warden" and proctree.stat(warden.pid).state == "S"  # type: ignore[union-attr]


def test_when_both_are_dead_what_they_started_dies_and_nothing_else(agent: Agent, tmp_path: Path) -> None:
    agent.link.hold(boottime() + FAR_S)
    ours, more = agent.task(), agent.task(EXTRA="1")
    other = subprocess.Popen(["sleep", "3041"], env={proctree.OWNER: f"{tmp_path}-2"})
    agent.started.append(other)
    agent.die()
    soon(lambda: proctree.stat(agent.warden.pid) is not None and has_read_all(agent.warden))
    assert ours.poll() is None, "the monitor has the lock, and ends it itself"
    agent.let_go()
    assert agent.warden.wait(PATIENCE_S) == 0
    assert (ours.wait(PATIENCE_S), more.wait(PATIENCE_S)) == (-signal.SIGKILL, -signal.SIGKILL)
    assert other.poll() is None


def test_what_is_left_at_the_end_of_the_lease_dies_whoever_stands_still(agent: Agent) -> None:
    """And what begins under the next lease lives."""
    task = agent.task()  # before the lease, which may be over as soon as it is told
    agent.link.hold(boottime() + 0.3)
    assert task.wait(PATIENCE_S) == -signal.SIGKILL
    agent.link.hold(boottime() + FAR_S)
    later = agent.task()
    soon(lambda: has_read_all(agent.warden))
    assert later.poll() is None
    agent.link.hold(boottime() + 0.3)
    agent.die()  # the monitor stands still: it has the lock
    assert later.wait(PATIENCE_S) == -signal.SIGKILL


def test_one_that_wakes_up_late_reads_the_newest_lease_first(agent: Agent) -> None:
    over_s = boottime() + 0.2
    agent.link.hold(over_s)
    soon(lambda: has_read_all(agent.warden))
    agent.warden.send_signal(signal.SIGSTOP)
    soon(lambda: boottime() > over_s)
    agent.link.hold(boottime() + FAR_S)
    task = agent.task()
    agent.warden.send_signal(signal.SIGCONT)
    agent.link.hold(boottime() + FAR_S)
    soon(lambda: has_read_all(agent.warden))
    assert task.poll() is None


def test_in_good_order_it_goes_and_kills_nothing(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wardenlink, "_END_S", PATIENCE_S)
    agent.link.hold(boottime() + FAR_S)
    task, warden = agent.task(), agent.warden
    agent.link.dismiss()
    assert warden.returncode == 0
    assert task.poll() is None


def test_the_next_agent_of_the_folder_has_seen_to_what_was_left(agent: Agent) -> None:
    agent.link.hold(boottime() + FAR_S)
    task = agent.task()
    (agent.root / "lock").write_text("1\n")
    agent.die()
    assert agent.warden.wait(PATIENCE_S) == 0
    assert task.poll() is None


def test_a_folder_that_is_gone(agent: Agent) -> None:
    agent.link.hold(boottime() + FAR_S)
    task = agent.task()
    (agent.root / "lock").unlink()
    agent.die()
    assert agent.warden.wait(PATIENCE_S) == 0
    assert task.wait(PATIENCE_S) == -signal.SIGKILL


def test_one_that_was_killed_is_started_again(agent: Agent) -> None:
    agent.link.hold(0.0)
    first = agent.warden
    first.kill()
    first.wait()
    task = agent.task()
    agent.link.hold(boottime() + 0.3)
    assert agent.warden.pid != first.pid
    assert task.wait(PATIENCE_S) == -signal.SIGKILL


def test_one_that_stands_still_holds_nobody_up(agent: Agent) -> None:
    agent.link.hold(0.0)
    soon(lambda: has_read_all(agent.warden))
    warden = agent.warden
    warden.send_signal(signal.SIGSTOP)
    for _ in range(9_000):  # more than its pipe takes
        agent.link.hold(boottime() + FAR_S)
    agent.link.dismiss()
    assert warden.returncode == -signal.SIGKILL


def test_one_that_has_stood_still_for_hours_does_not_act_by_an_old_word(agent: Agent) -> None:
    over_s = boottime() + 0.2
    agent.link.hold(over_s)
    first = agent.warden
    soon(lambda: has_read_all(first))
    first.send_signal(signal.SIGSTOP)
    for _ in range(9_000):  # more than its pipe takes
        agent.link.hold(over_s)
    agent.link.hold(boottime() + FAR_S)
    task = agent.task()
    soon(lambda: boottime() > over_s)
    first.send_signal(signal.SIGCONT)
    agent.link.hold(boottime() + FAR_S)
    soon(lambda: has_read_all(agent.warden))
    assert task.poll() is None


def test_one_that_stood_still_while_another_agent_came_ends_nothing_of_that_one(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, say = os.pipe()
    os.write(say, WORD.pack(boottime(), 0, 0))
    os.close(say)
    task = agent.task()
    warden = Warden(said, str(agent.root), os.getpid())
    look = warden._strays

    def late() -> list[tuple[int, int]]:
        (agent.root / "lock").write_text("1\n")
        return look()

    monkeypatch.setattr(warden, "_strays", late)
    try:
        warden.watch()
    finally:
        os.close(said)
    assert task.poll() is None


def test_it_does_not_look_like_the_others(agent: Agent) -> None:
    """Who ends all processes of a name does not end the one that then ends the tasks."""
    agent.link.hold(0.0)
    soon(lambda: psutil.Process(agent.warden.pid).name() == "task-warden")
    command = " ".join(psutil.Process(agent.warden.pid).cmdline())
    assert "depalma" not in command.removeprefix(os.path.realpath(psutil.Process(agent.warden.pid).exe()))
    assert str(agent.root) not in command


def test_where_it_cannot_be_started_the_others_go_on_without_it(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sys._base_executable", "/nowhere/python", raising=False)
    for _ in range(3):
        agent.link.hold(boottime() + FAR_S)
    assert caplog.text.count("there is no warden: ") == 1
    agent.link.dismiss()
    monkeypatch.undo()
    task = agent.task()
    agent.link.hold(boottime() + 0.3)
    assert task.wait(PATIENCE_S) == -signal.SIGKILL
