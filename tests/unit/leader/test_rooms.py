"""What the leader makes of the loads that agents report."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiohttp import web

from depalma.leader.rooms import Rooms
from depalma.leader.session import AgentSession
from depalma.model import HostFacts, JobSpec, Load
from depalma.state import commands as c
from depalma.state.cluster_state import ClusterState
from depalma.state.machine import Machine

FACTS = HostFacts(4, 4, 8 << 30, 0, "0.1.0", "3.11", "10.0.0.11")


@dataclass
class Reign:
    """What rooms need of a reign."""

    machine: Machine = field(default_factory=Machine)
    sessions: list[AgentSession] = field(default_factory=list)

    @property
    def state(self) -> ClusterState:
        return self.machine.state

    def clock(self) -> float:
        return 0.0

    def connected(self) -> list[AgentSession]:
        return self.sessions

    def do(self, *commands: c.AnyCommand) -> None:
        for command in commands:
            assert isinstance(self.machine.apply(c.encode(command), 1), c.Applied)


async def test_what_our_tasks_use_is_not_foreign() -> None:
    """Also a moment after they have ended: the load that comes then was measured while they ran."""
    reign = Reign()
    reign.do(
        c.AddHost("", "h1", (), {}, 0, 4, 0, 1.0),
        c.HostUp("h1", "i1", FACTS, 1.0),
        c.SubmitJob("", JobSpec(kind="command", argv=("x",), count=4), 1.0),
    )
    session = AgentSession("h1", "i1", FACTS, web.WebSocketResponse())
    reign.sessions.append(session)
    rooms = Rooms(reign, reign)  # type: ignore[arg-type]
    session.load = Load(cpu_percent=100.0)
    assert rooms.now()["h1"].foreign == 1.0

    refs = tuple((1, task, 1) for task in range(4))
    reign.do(c.AssignTasks(1, "h1", "i1", refs, 2.0))
    session.load = Load(cpu_percent=100.0)
    assert rooms.now()["h1"].foreign == 0.5
    session.load = Load(cpu_percent=100.0)
    assert rooms.now()["h1"].foreign == 0.25
    reign.do(c.FinishTasks("h1", "i1", tuple(c.Report(*ref, "succeeded") for ref in refs), 3.0))
    session.load = Load(cpu_percent=100.0)
    assert rooms.now()["h1"].foreign < 0.25
    for _ in range(8):
        session.load = Load(cpu_percent=100.0)
        rooms.now()
    assert rooms.now()["h1"].foreign > 0.9

    reign.sessions.clear()
    assert rooms.now() == {}
