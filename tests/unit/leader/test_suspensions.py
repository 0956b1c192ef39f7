"""Which agents are told that jobs are suspended: those that have something of them, all of it, each time and anew."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiohttp import web

from depalma import protocol
from depalma.leader.orders import Orders
from depalma.leader.session import AgentSession
from depalma.leader.suspensions import Suspensions
from depalma.model import HostFacts, JobSpec
from depalma.protocol import Suspended
from depalma.state import commands as c
from depalma.state import job_commands as jc
from depalma.state.cluster_state import ClusterState
from depalma.state.machine import Machine

FACTS = HostFacts(4, 4, 8 << 30, 0, "0.1.0", "3.11", "10.0.0.11")


@dataclass
class Reign:
    """A leader of a cluster of two hosts: h1 has tasks of jobs 1 and 2, h2 of job 2."""

    machine: Machine = field(default_factory=Machine)
    term: int = 1

    def __post_init__(self) -> None:
        spec = JobSpec(kind="command", argv=("true",), count=2)
        self.sessions: dict[str, AgentSession] = {}
        for host in ("h1", "h2"):
            self.do(c.AddHost("", host, (), {}, 0, 4, 0, 1.0), c.HostUp(host, "i1", FACTS, 1.0))
            self.connect(host)
        self.do(c.SubmitJob("", spec, 1.0), c.SubmitJob("", spec, 1.0))
        self.do(
            c.AssignTasks(1, "h1", "i1", ((1, 0, 1), (2, 0, 1)), 1.0), c.AssignTasks(1, "h2", "i1", ((2, 1, 1),), 1.0)
        )
        self.suspensions = Suspensions(self, Orders(self), self.sessions)  # type: ignore[arg-type]

    @property
    def state(self) -> ClusterState:
        return self.machine.state

    def do(self, *commands: c.AnyCommand) -> None:
        for command in commands:
            assert isinstance(self.machine.apply(c.encode(command), 1), c.Applied)

    def connect(self, host: str, *, new: bool = True) -> None:
        session = self.sessions[host] = AgentSession(host, "i1", FACTS, web.WebSocketResponse())
        session.suspends_jobs = new

    def follow(self, *commands: c.AnyCommand) -> dict[str, list[tuple[int, ...]]]:
        """Applies commands and follows them up; returns what each agent is told."""
        self.do(*commands)
        for job in self.machine.drain_changes().jobs:
            self.suspensions.changed(job)
        return self.told()

    def told(self) -> dict[str, list[tuple[int, ...]]]:
        found: dict[str, list[tuple[int, ...]]] = {}
        for host, session in self.sessions.items():
            for frame in map(protocol.decode_to_agent, session._outbox):
                assert isinstance(frame, Suspended)
                found.setdefault(host, []).append(frame.jobs)
            session._outbox.clear()
        return found


def test_those_that_have_something_of_the_job_are_told_once() -> None:
    reign = Reign()
    assert reign.follow() == {}
    assert reign.follow(jc.SuspendJobs("", (1,), 2.0)) == {"h1": [(1,)]}
    assert reign.follow(jc.SuspendJobs("", (2,), 2.0)) == {"h1": [(1, 2)], "h2": [(2,)]}
    assert reign.follow(jc.SetJobs("", (1, 2), 2.0, priority=3)) == {}
    assert reign.follow(jc.ResumeJobs("", (1,), 2.0)) == {"h1": [(2,)]}
    assert reign.follow(c.CancelJobs("", (2,), 2.0)) == {"h1": [()], "h2": [()]}


def test_an_agent_that_connects_is_told_what_holds_also_if_it_is_nothing() -> None:
    """It may have heard something else of another leader, or before the job was resumed."""
    reign = Reign()
    reign.follow(jc.SuspendJobs("", (2,), 2.0))
    for host in ("h1", "h2"):
        reign.connect(host)
        reign.suspensions.begin(reign.sessions[host])
    assert reign.told() == {"h1": [(2,)], "h2": [(2,)]}
    assert reign.follow(jc.ResumeJobs("", (2,), 2.0)) == {"h1": [()], "h2": [()]}
    reign.suspensions.begin(reign.sessions["h1"])
    assert reign.told() == {"h1": [()]}


def test_an_older_agent_is_told_nothing() -> None:
    reign = Reign()
    reign.connect("h1", new=False)
    reign.suspensions.begin(reign.sessions["h1"])
    assert reign.follow(jc.SuspendJobs("", (1,), 2.0)) == {}
