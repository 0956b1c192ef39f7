"""What a real agent tells of its host's load: of now with its heartbeats, of the last hour when it is asked."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from depalma.model import JobSpec
from depalma.protocol import Assignment
from depalma.testing.fake_leader import AgentProcess, FakeLeader, wait_until


async def test_heartbeats_carry_the_load_and_it_is_remembered_over_incarnations_and_leaders(tmp_path: Path) -> None:
    some = 4.0 / (os.cpu_count() or 1)  # percent of all CPUs
    async with FakeLeader() as leader:
        agent = AgentProcess(tmp_path, [leader.url])
        agent.start()
        try:
            await wait_until(lambda: leader.connected, "connection")
            assert leader.hellos[-1].tells_history
            leader.job(1, JobSpec(kind="command", argv=(sys.executable, "-c", "while True: pass")))
            await leader.assign(Assignment(1, 0, 1, 1))
            await wait_until(
                lambda: leader.beats and leader.beats[-1].load.tasks_cpu_percent > some, "load by the task"
            )
            before = await leader.ask_load(300)
            assert before.step_s == 5
            assert before.began_at == pytest.approx(time.time(), abs=60)

            await leader.renew()  # cut off from one leader, everything killed, a new incarnation at the next one

            after = await leader.ask_load(300)
            assert after.began_at == pytest.approx(before.began_at, abs=1.0)  # two clocks are read for it
            samples = sum(point.samples for point in after.points)
            assert samples >= sum(point.samples for point in before.points)
            assert max(point.max.tasks_cpu_percent for point in after.points) > some
            await wait_until(lambda: leader.beats and leader.beats[-1].load.tasks_cpu_percent == 0, "end of the task")
            assert (await leader.ask_load(3600)).step_s == 60
        finally:
            await agent.stop()
