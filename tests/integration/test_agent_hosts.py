"""What a real agent process does when the cluster wants its host otherwise: other slots, drained, removed, moved."""

from __future__ import annotations

import base64
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from depalma.model import JobSpec, Report
from depalma.protocol import Assignment, Refused, Welcome
from depalma.testing.fake_leader import AgentProcess, FakeLeader, wait_until

#: Says that it began, goes on until it is warned, says so, and tidies up.
WARNED = """
trap 'echo warned >>witness; sleep 0.3; echo tidy >>witness; exit 0' TERM
echo began >>witness
while :; do sleep 0.05; done
"""


@pytest.fixture(scope="module")
def agent_settings() -> dict[str, Any]:
    return {"slots": 1}


def words(file: Path) -> list[str]:
    return file.read_text().split() if file.exists() else []


async def test_a_task_that_is_moved_is_warned_has_its_grace_and_is_reported_so(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    leader.job(1, JobSpec(kind="command", argv=("sh", "-c", WARNED), cwd=str(tmp_path), grace_s=10.0))
    await leader.assign(Assignment(1, 0, 1, 1))
    await wait_until(lambda: words(tmp_path / "witness") == ["began"], "start")
    await leader.kill([(1, 0, 1)], "returned", "drained")  # what has started is not taken back
    await leader.kill([(1, 0, 1)], "moved", "host h1 is being drained: new kernel")

    report = await leader.report((1, 0, 1))

    assert words(tmp_path / "witness") == ["began", "warned", "tidy"]
    assert (report.outcome, report.exit_code) == ("moved", 0)
    assert report.error == "host h1 is being drained: new kernel"
    assert report.started_at is not None


async def test_a_task_that_ignores_the_warning_is_killed_after_its_grace(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    ignores = "trap '' TERM; echo began >>witness; while :; do sleep 0.05; done"
    leader.job(1, JobSpec(kind="command", argv=("sh", "-c", ignores), cwd=str(tmp_path), grace_s=0.3))
    await leader.assign(Assignment(1, 0, 1, 1))
    await wait_until(lambda: words(tmp_path / "witness"), "start")
    asked_s = time.monotonic()
    await leader.kill([(1, 0, 1)], "moved", "drained")

    report = await leader.report((1, 0, 1))

    assert time.monotonic() - asked_s >= 0.3
    assert (report.outcome, report.signal) == ("moved", signal.SIGKILL)


async def test_other_slots_hold_at_once_and_after_a_restart_of_the_line(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    leader.job(1, JobSpec(kind="command", argv=("sh", "-c", WARNED), cwd=str(tmp_path), grace_s=0.1))
    await leader.assign(*[Assignment(1, task, 1, 1) for task in range(3)])
    await wait_until(lambda: len(words(tmp_path / "witness")) == 1, "the first task")

    await leader.send(Welcome(leader.term, "fake", leader.lease_s, leader.heartbeat_s, (leader.url,), 3))

    await wait_until(lambda: len(words(tmp_path / "witness")) == 3, "three tasks at once")
    await leader.kill([(1, 0, 1), (1, 1, 1), (1, 2, 1)])
    for task in range(3):
        await leader.report((1, task, 1))
    # The next welcome says nothing of slots: the agent's own file counts again.
    await leader.drop()
    await wait_until(lambda: len(leader.hellos) >= 2 and leader.connected, "second connection")
    leader.beats.clear()
    await wait_until(lambda: leader.beats and leader.beats[-1].free_slots == 1, "one slot")


async def test_an_agent_that_was_killed_leaves_its_reports_to_its_supervisor(
    leader: FakeLeader, agent: AgentProcess
) -> None:
    """The task had ended, and no master had committed it: that it ran is told with the death of the agent."""
    leader.commits = False
    done = await leader.run(JobSpec(kind="command", argv=("true",)))
    agent.signal(signal.SIGKILL)

    await wait_until(lambda: leader.gone, "word from the monitor")

    (told,) = leader.gone
    records = [base64.b64decode(record) for record in told["reports"]]
    reports = [report for record in records for report in msgspec.msgpack.decode(record, type=tuple[Report, ...])]
    assert reports == [done]


async def test_the_agent_of_a_removed_host_ends_its_work_and_says_so_by_its_exit_code(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    leader.job(1, JobSpec(kind="command", argv=("sh", "-c", WARNED), cwd=str(tmp_path)))
    await leader.assign(Assignment(1, 0, 1, 1))
    await wait_until(lambda: words(tmp_path / "witness"), "start")

    await leader.send(Refused("host h1 was removed from the cluster", stop=True))

    assert await agent.exit_code() == 3
    assert [gone["reason"] for gone in leader.gone] == ["the agent left"]
    assert "the cluster refuses this agent: host h1 was removed from the cluster" in agent.log.read_text()


async def test_a_host_without_a_fixed_address_tells_that_of_its_connection(
    leader: FakeLeader, agent: AgentProcess
) -> None:
    """So a machine that was carried to another network is shown where it is."""
    assert leader.hellos[-1].facts.address == "127.0.0.1"
