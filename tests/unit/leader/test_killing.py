"""Who is told to end the tasks of a cancelled job: each agent that has some, once, and whoever connects later."""

from __future__ import annotations

import time

from aiohttp import web

from depalma import protocol
from depalma.config import ClusterConfig
from depalma.leader.rates import Rates
from depalma.leader.reign import Reign as RealReign
from depalma.leader.session import AgentSession
from depalma.model import JobSpec, Report
from depalma.protocol import Hello, Kill
from depalma.state import commands as c
from depalma.state.machine import Machine
from tests.unit.leader.test_dispatching import FACTS, Reign


def killed(session: AgentSession) -> list[tuple[int, int, int]]:
    frames = [protocol.decode_to_agent(data) for data in session._outbox]
    return [ref for frame in frames if isinstance(frame, Kill) for ref in frame.tasks]


async def test_a_cancelled_job_is_looked_through_once() -> None:
    context = Reign(Machine(), None, ClusterConfig(masters=(), hosts=()), Rates(time.monotonic))  # type: ignore[arg-type]
    reign = RealReign(context)  # type: ignore[arg-type]
    looked: list[int] = []
    kill = reign._kill_cancelled

    def look(job: int) -> None:
        looked.append(job)
        kill(job)

    reign._kill_cancelled = look  # type: ignore[assignment, method-assign]

    async def do(*commands: c.AnyCommand) -> None:
        for command in commands:
            await context.execute(command)
        reign.changed(context.machine.drain_changes())

    sessions = reign.sessions.by_host
    spec = JobSpec(kind="command", argv=("true",), count=3)
    for name in ("h1", "h2"):
        await do(c.AddHost("", name, (), {}, 0, 4, 0, 1.0), c.HostUp(name, "i1", FACTS, 1.0))
    sessions["h1"] = AgentSession("h1", "i1", FACTS, web.WebSocketResponse())
    await do(c.SubmitJob("", spec, 2.0), c.AssignTasks(1, "h1", "i1", ((1, 0, 1), (1, 1, 1)), 3.0))
    await do(c.AssignTasks(1, "h2", "i1", ((1, 2, 1),), 3.0))
    await do(c.CancelJobs("", (1,), 4.0))
    assert killed(sessions["h1"]) == [(1, 0, 1), (1, 1, 1)]

    await do(c.FinishTasks("h1", "i1", (Report(1, 0, 1, "cancelled"),), 5.0))
    later = AgentSession("h2", "i1", FACTS, web.WebSocketResponse())
    reign.sessions._reconcile(later, Hello(protocol.PROTOCOL_VERSION, "h2", "i1", FACTS, 0, ((1, 2, 1),), ()))
    assert killed(later) == [(1, 2, 1)]
    assert looked == [1]

    await do(c.FinishTasks("h1", "i1", (Report(1, 1, 1, "cancelled"),), 6.0))
    await do(c.FinishTasks("h2", "i1", (Report(1, 2, 1, "cancelled"),), 6.0))
    assert context.state.jobs[1].is_final
    assert reign._killed == set()
