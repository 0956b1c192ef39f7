"""A real agent, its monitor and a fake leader, and tasks on a file system that does not answer."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path

import pytest

from depalma.agent import proctree
from depalma.model import JobSpec
from depalma.protocol import Assignment
from depalma.testing.fake_leader import AgentProcess, FakeLeader, wait_until


def command(*argv: str, **fields: object) -> JobSpec:
    return JobSpec(kind="command", argv=argv, **{"grace_s": 0.2, **fields})  # type: ignore[arg-type]


async def hung(hanging: Path, count: int) -> list[int]:
    file = hanging.with_name("hanging.waiting")
    await wait_until(lambda: len(file.read_text().split()) >= count, f"{count} tasks that hang")
    return [int(word) for word in file.read_text().split()]


@pytest.mark.long
async def test_tasks_that_hang_cost_their_host_nothing_else(
    leader: FakeLeader, agent: AgentProcess, hanging: Path
) -> None:
    leader.lease_s = 4.0
    await leader.renew()
    monitor = agent.monitor_pid()
    leader.job(1, command("true", cwd=f"{hanging}/folder"))
    await leader.assign(Assignment(1, 0, 1, 1))
    (first,) = await hung(hanging, 1)

    # For longer than the lease: it goes on, and so do the others.
    until_s = asyncio.get_running_loop().time() + 1.5 * leader.lease_s
    index = 0
    while asyncio.get_running_loop().time() < until_s:
        leader.job(2, command("sh", "-c", "sleep 0.1; exit 3"))
        await leader.assign(Assignment(2, index, 1, 1))
        assert (await leader.report((2, index, 1))).exit_code == 3
        index += 1
    assert leader.connected
    assert (1, 0, 1) not in leader.reports

    await leader.kill([(1, 0, 1)], reason="asked to")
    report = await leader.report((1, 0, 1))
    assert report.outcome == "cancelled"
    assert report.error == (
        f"asked to; killed, but process {first} hangs in the kernel (entering the working folder {hanging}/folder)"
    )
    assert proctree.is_stuck(first)
    assert agent.monitor_pid() == monitor

    # A time limit; and a function, whose worker hangs.
    leader.job(3, command("cat", f"{hanging}/data", timeout_s=3.0))
    leader.job(4, JobSpec(kind="function", function="os:stat", timeout_s=3.0, grace_s=0.2))
    await leader.assign(Assignment(3, 0, 1, 1))
    report = await leader.report((3, 0, 1))
    assert (report.outcome, report.error_code) == ("timed_out", "time_limit")
    assert "ran longer than its limit of 3 s; killed, but process" in report.error
    await leader.assign(Assignment(4, 0, 1, 1, pickle.dumps((None, (f"{hanging}/result",), {}))))
    report = await leader.report((4, 0, 1))
    assert (report.outcome, report.error_code) == ("timed_out", "time_limit")
    assert "ran longer than its limit of 3 s; killed, but process" in report.error
    leader.job(5, command("true"))
    for task in range(4):
        await leader.assign(Assignment(5, task, 1, 1))
        assert (await leader.report((5, task, 1))).outcome == "succeeded"
