"""What becomes of tasks when neither agent nor monitor can end them: the warden does, and the next agent."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil

from depalma.model import JobSpec
from depalma.protocol import Assignment
from depalma.testing.fake_leader import AgentProcess, FakeLeader, wait_until

#: A process of a session of its own, and one that hides its environment and whose parent is dead.
HIDING = "setsid sleep 3042 & echo $! >>pids; (env -i sleep 3042 & echo $! >>pids); echo $$ >>pids; wait"
MARKED = "setsid sleep 3042 & echo $! >>pids; : ; echo $$ >>pids; wait"


def wardens(agent: AgentProcess) -> list[psutil.Process]:
    """Returns the warden, or none: it may just be starting."""
    found = []
    for child in psutil.Process(agent.pid).children():
        try:
            if child.name() == "task-warden" and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


class Task:
    """A task that has written down its processes, on an agent with its monitor and its warden."""

    def __init__(self, agent: AgentProcess, folder: Path) -> None:
        self.agent = agent
        self.pids = folder / "pids"
        (self.warden,) = wardens(agent)
        self.monitor = psutil.Process(agent.monitor_pid())

    @classmethod
    async def begin(cls, leader: FakeLeader, agent: AgentProcess, folder: Path, script: str) -> Task:
        leader.job(1, JobSpec(kind="command", argv=("sh", "-c", script), cwd=str(folder)))
        await leader.assign(Assignment(1, 0, 1, 1))
        wanted = script.count("echo")
        pids = folder / "pids"
        await wait_until(lambda: pids.exists() and pids.read_text().count("\n") == wanted, "all of the task")
        await wait_until(lambda: wardens(agent), "warden")
        return cls(agent, folder)

    def alive(self) -> list[int]:
        """Returns which of its processes live."""
        found = []
        for pid in map(int, self.pids.read_text().split()):
            try:
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(self.pids.parent):
                    found.append(pid)
            except psutil.NoSuchProcess:
                continue
        return found

    async def lose_agent_and_monitor(self, *, warden: bool) -> None:
        """Both in the same moment, with or without the warden."""
        self.agent.signal(signal.SIGSTOP)
        if warden:
            self.warden.kill()
        os.kill(self.monitor.pid, signal.SIGKILL)
        self.agent.signal(signal.SIGKILL)
        await self.agent.exit_code()


async def test_agent_and_monitor_killed_together_leave_nothing(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    task = await Task.begin(leader, agent, tmp_path, MARKED)
    await task.lose_agent_and_monitor(warden=False)
    await wait_until(lambda: not task.alive(), "end of the task")
    await wait_until(lambda: not task.warden.is_running(), "end of the warden")


async def test_all_three_killed_together_are_cleaned_up_by_the_next(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    task = await Task.begin(leader, agent, tmp_path, MARKED)
    await task.lose_agent_and_monitor(warden=True)
    assert task.alive()

    before = len(leader.hellos)
    agent.start()
    await wait_until(lambda: len(leader.hellos) > before, "new agent")

    assert not task.alive()


async def test_when_the_monitor_stands_still_and_the_agent_dies_the_lease_ends_all(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    leader.lease_s = 4.0
    await leader.renew()  # a lease that was given is not taken back
    task = await Task.begin(leader, agent, tmp_path, HIDING)
    task.monitor.suspend()
    try:
        agent.signal(signal.SIGKILL)
        await wait_until(lambda: not task.alive(), "end of the task")
    finally:
        task.monitor.resume()


async def test_it_goes_with_its_agent_and_comes_again_when_it_is_killed(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    task = await Task.begin(leader, agent, tmp_path, MARKED)
    task.warden.kill()
    await wait_until(lambda: [one for one in wardens(agent) if one.pid != task.warden.pid], "another one")
    assert task.alive(), "nothing happens to tasks"
    (again,) = wardens(agent)
    agent.signal(signal.SIGTERM)
    assert await agent.exit_code() == 0
    assert not again.is_running()
    assert not task.alive()
