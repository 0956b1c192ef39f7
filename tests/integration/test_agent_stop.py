"""An agent that is told to stop at a bad moment: real processes before a fake leader."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from pathlib import Path

import psutil

from depalma.model import JobSpec
from depalma.protocol import Assignment
from depalma.testing.fake_leader import AgentProcess, FakeLeader, wait_until


async def test_a_monitor_that_dies_while_its_agent_stops_leaves_nothing(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    script = "trap 'touch told' TERM; touch begun; while :; do sleep 0.1; done"
    leader.job(1, JobSpec(kind="command", argv=("sh", "-c", script), cwd=str(tmp_path)))
    await leader.assign(Assignment(1, 0, 1, 1))
    await wait_until((tmp_path / "begun").exists, "task")
    monitor = psutil.Process(agent.monitor_pid())
    (task,) = monitor.children()
    agent.signal(signal.SIGTERM)
    await wait_until((tmp_path / "told").exists, "polite word to the task, which gives it two seconds")

    with contextlib.suppress(psutil.NoSuchProcess):  # where this test stood still meanwhile
        monitor.kill()

    assert await agent.exit_code() == 0
    left = task.is_running()
    if left:
        task.kill()
    assert not left


async def test_sigterm_stops_in_order_also_while_the_agent_waits_for_its_folder(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path, ["http://127.0.0.1:9"])
    agent.root.mkdir(parents=True, exist_ok=True)
    lock = os.open(agent.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        agent.start()
        await wait_until(lambda: handles(agent.pid, signal.SIGTERM), "an agent that can be told")
        agent.signal(signal.SIGTERM)
        await wait_until(lambda: "told to stop" in agent.log.read_text(), "word of it")
        os.close(lock)
        lock = -1
        assert await agent.exit_code() == 0
    finally:
        if lock >= 0:
            os.close(lock)
        await agent.stop()
    assert "a part of the agent failed" not in agent.log.read_text()


def handles(pid: int, number: int) -> bool:
    """Returns whether a process has a handler for a signal."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:")]
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)
