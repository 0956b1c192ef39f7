"""Reports go into the log whatever their texts are: a command that it does not take would end one leader after the
other, as agents say what was not recorded again."""

from __future__ import annotations

import time
from dataclasses import fields

from aiohttp import web

from depalma import protocol
from depalma.agent.worker import describe
from depalma.config import ClusterConfig
from depalma.consensus import CommandTooLarge, ReplicaSettings
from depalma.leader.leases import Leases
from depalma.leader.rates import Rates
from depalma.leader.reports import in_parts
from depalma.leader.session import AgentSession
from depalma.leader.sessions import Sessions
from depalma.model import JobSpec, Payload, Report
from depalma.protocol import Reports, ReportsCommitted
from depalma.state import commands as c
from depalma.state.machine import Machine
from depalma.tails import OutputTail
from tests.unit.leader.test_dispatching import FACTS, Reign

(MOST_BYTES,) = (field.default for field in fields(ReplicaSettings) if field.name == "max_command_bytes")


class Bounded(Reign):
    """A master whose log takes what the real one does."""

    async def execute(self, command: c.AnyCommand) -> c.Applied:
        if (size := len(c.encode(command))) > MOST_BYTES:
            raise CommandTooLarge(size, MOST_BYTES)
        return await super().execute(command)


def report(task: int) -> Report:
    """The largest that an agent makes: an error at its limit of 64 KiB, in characters of four bytes."""
    error = describe(ValueError("\U0001f680" * 100_000))
    result, tail = Payload(inline=b"x" * 4096), OutputTail(inline=b"x" * 256)
    return Report(1, task, 1, "failed", error=error, result=result, tail=tail)


async def test_errors_of_wide_characters_are_recorded() -> None:
    """A host of 100 slots whose tasks all end in the same moment: 1.6 million characters, and 6.5 MB."""
    reign = Bounded(Machine(), None, ClusterConfig(masters=(), hosts=()), Rates(time.monotonic))  # type: ignore[arg-type]
    sessions = Sessions(reign, Leases(reign.config.settings.lease_times))  # type: ignore[arg-type]
    session = sessions.by_host["h1"] = AgentSession("h1", "i1", FACTS, web.WebSocketResponse())
    reports = tuple(map(report, range(100)))
    for command in (
        c.AddHost("", "h1", (), {}, 0, 100, 0, 1.0),
        c.HostUp("h1", "i1", FACTS, 1.0),
        c.SubmitJob("", JobSpec(kind="command", argv=("true",), count=100), 2.0),
        c.AssignTasks(1, "h1", "i1", tuple((1, task, 1) for task in range(100)), 3.0),
    ):
        await reign.execute(command)
    await sessions._record(session, Reports(reports))
    assert reign.state.jobs[1].is_final
    frames = [protocol.decode_to_agent(data) for data in session._outbox]
    told = [ref for frame in frames if isinstance(frame, ReportsCommitted) for ref in frame.tasks]
    assert told == [(1, task, 1) for task in range(100)]
    assert len(list(in_parts([Report(1, task, 1, "succeeded") for task in range(1000)]))) == 1
    assert list(in_parts(())) == []
