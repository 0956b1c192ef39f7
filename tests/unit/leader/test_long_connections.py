"""What a leader remembers of a connection, and of what came through it, ends with the attempts."""

from __future__ import annotations

import time

from aiohttp import web

from depalma.config import ClusterConfig
from depalma.leader.leases import Leases
from depalma.leader.rates import Rates
from depalma.leader.session import AgentSession
from depalma.leader.sessions import Sessions
from depalma.model import JobSpec, Report
from depalma.protocol import Reports
from depalma.state import commands as c
from depalma.state.machine import Machine
from tests.unit.leader.test_dispatching import FACTS, Reign


async def test_what_is_over_is_forgotten() -> None:
    """A report that comes again is of a job that is over: nothing is learned from it."""
    reign = Reign(Machine(), None, ClusterConfig(masters=(), hosts=()), Rates(time.monotonic))  # type: ignore[arg-type]
    sessions = Sessions(reign, Leases(reign.config.settings.lease_times))  # type: ignore[arg-type]
    session = sessions.by_host["h1"] = AgentSession("h1", "i1", FACTS, web.WebSocketResponse())
    for command in (
        c.AddHost("", "h1", (), {}, 0, 4, 0, 1.0),
        c.HostUp("h1", "i1", FACTS, 1.0),
        c.SubmitJob("", JobSpec(kind="command", argv=("true",), count=2), 2.0),
        c.AssignTasks(1, "h1", "i1", ((1, 0, 1), (1, 1, 1)), 3.0),
    ):
        await reign.execute(command)
    first, second = Report(1, 0, 1, "cancelled", started_at=3.0, finished_at=4.0), Report(1, 1, 1, "cancelled")
    sessions.orders.kill(session, [(1, 0, 1), (1, 1, 1)], outcome="moved", reason="a test")
    sessions.orders.kill(session, [(1, 1, 1)], outcome="cancelled", reason="a test")

    await sessions._record(session, Reports((first,)))
    assert session.killed.keys() == {((1, 1, 1), "moved"), ((1, 1, 1), "cancelled")}
    assert reign.rates.mean_s == {1: 1.0}

    await sessions._record(session, Reports((second,)))
    assert session.killed == {}
    reign.rates.forget_job(1)
    await sessions._record(session, Reports((first, second)))
    assert reign.rates.mean_s == {}

    reign.rates.mean_s[7] = 1.0
    reign.rates.begin()
    assert reign.rates.mean_s == {}
