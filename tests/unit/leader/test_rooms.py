"""What the leader makes of the loads that agents report, and of what else it knows of hosts."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiohttp import web

from depalma.leader.holdings import Holdings
from depalma.leader.rooms import GPU_REST_S, LOOK_S, Rooms
from depalma.leader.session import AgentSession
from depalma.model import GpuLoad, HostFacts, Load
from depalma.state import commands as c
from depalma.state.cluster_state import ClusterState
from depalma.state.machine import Machine


@dataclass
class Reign:
    """What rooms need of a reign."""

    machine: Machine = field(default_factory=Machine)
    sessions: list[AgentSession] = field(default_factory=list)
    now_s: float = 0.0
    holdings: Holdings = field(default_factory=Holdings)
    step_s: float = LOOK_S
    news: int = 0

    @property
    def state(self) -> ClusterState:
        return self.machine.state

    @property
    def orders(self) -> Reign:
        return self

    def clock(self) -> float:
        self.now_s += self.step_s
        return self.now_s

    def connected(self) -> list[AgentSession]:
        return self.sessions

    def do(self, *commands: c.AnyCommand) -> None:
        for command in commands:
            assert isinstance(self.machine.apply(c.encode(command), 1), c.Applied)


def connect(reign: Reign, name: str, address: str) -> AgentSession:
    facts = HostFacts(4, 4, 8 << 30, 0, "0.1.0", "3.11", address)
    reign.do(c.AddHost("", name, (), {}, 0, 4, 0, 1.0), c.HostUp(name, "i1", facts, 1.0))
    session = AgentSession(name, "i1", facts, web.WebSocketResponse())
    reign.sessions.append(session)
    return session


async def test_a_load_counts_once_and_not_all_at_once() -> None:
    """One measurement alone does not turn a host over; the same one is not counted twice."""
    reign = Reign()
    session = connect(reign, "h1", "10.0.0.11")
    rooms = Rooms(reign, reign)  # type: ignore[arg-type]
    assert rooms.now()["h1"].foreign == 0.0
    session.load = Load(cpu_percent=100.0, foreign_cpu_percent=80.0, tasks_cpu_percent=20.0)
    assert rooms.now()["h1"].foreign == 0.4
    assert rooms.now()["h1"].foreign == 0.4
    session.load = Load(cpu_percent=100.0, foreign_cpu_percent=80.0, tasks_cpu_percent=20.0)
    assert rooms.now()["h1"].foreign == 0.4 + 0.5 * 0.4
    reign.sessions.clear()
    assert rooms.now() == {}


async def test_agents_of_one_machine_are_not_foreign_to_each_other() -> None:
    """What the tasks of one use is no reason to give less to the other."""
    reign = Reign()
    first, second = connect(reign, "h1", "10.0.0.11"), connect(reign, "h2", "10.0.0.11")
    other = connect(reign, "h3", "10.0.0.12")
    first.load = Load(cpu_percent=100.0, tasks_cpu_percent=90.0, foreign_cpu_percent=10.0)
    second.load = other.load = Load(cpu_percent=100.0, tasks_cpu_percent=0.0, foreign_cpu_percent=100.0)
    shares = {name: round(room.foreign, 6) for name, room in Rooms(reign, reign).now().items()}  # type: ignore[arg-type]
    assert shares == {"h1": 0.1, "h2": 0.1, "h3": 1.0}


async def test_rooms_tell_what_hosts_hold() -> None:
    """As far as it was noted; only so much is remembered, and what was noted last stays."""
    reign = Reign()
    connect(reign, "h1", "10.0.0.11")
    reign.holdings.note("h1", ["first", "second"])
    reign.holdings.note("h2", ["other"])
    rooms = Rooms(reign, reign)  # type: ignore[arg-type]
    assert set(rooms.now()["h1"].holds) == {"first", "second"}
    reign.holdings.note("h1", [*(str(number) for number in range(999)), "first"])
    held = rooms.now()["h1"].holds
    assert (len(held), "first" in held, "second" in held) == (1000, True, False)


async def test_what_a_host_is_told_to_fetch_shows_in_rooms_that_are_kept() -> None:
    reign = Reign(step_s=0.0, now_s=1.0)
    connect(reign, "h1", "10.0.0.11")
    rooms = Rooms(reign, reign)  # type: ignore[arg-type]
    before = rooms.now()
    assert list(before["h1"].holds) == []
    reign.holdings.note("h1", ["first"])
    assert rooms.now() is before
    assert list(before["h1"].holds) == ["first"]


async def test_a_gpu_is_not_busy_for_a_task_that_was_over_before_rooms_were_made_again() -> None:
    """Rooms are kept for a while; what its host still measures then is our own task."""
    reign = Reign(step_s=0.0, now_s=1.0)
    session = connect(reign, "h1", "10.0.0.11")
    session.load = Load(gpus=(GpuLoad("A", 1.0),))
    rooms = Rooms(reign, reign)  # type: ignore[arg-type]
    rooms.now()
    reign.now_s += GPU_REST_S
    rooms.now()
    taken = reign.state.hosts["h1"].taken
    taken[0] = 100
    rooms.note_assigned(session)
    taken.clear()
    session.load = Load(gpus=(GpuLoad("A", 99.0),))
    reign.now_s += LOOK_S
    assert (rooms.now()["h1"].busy_gpus, rooms.busy) == ((), False)
    reign.now_s += GPU_REST_S
    assert (rooms.now()["h1"].busy_gpus, rooms.busy) == ((0,), True)


async def test_gpus_that_something_else_uses() -> None:
    """Only once no task of ours has had them for as long as a measurement may be old."""
    reign = Reign()
    session = connect(reign, "h1", "10.0.0.11")
    rooms = Rooms(reign, reign)  # type: ignore[arg-type]
    taken = reign.state.hosts["h1"].taken
    taken[1] = 50  # a task of ours has half of it
    session.load = Load(gpus=(GpuLoad("A", 99.0), GpuLoad("B", 99.0), GpuLoad("C", 1.0)))
    assert rooms.now()["h1"].busy_gpus == ()
    reign.now_s += GPU_REST_S
    assert rooms.now()["h1"].busy_gpus == (0,)
    taken.clear()
    assert rooms.now()["h1"].busy_gpus == (0,)
    reign.now_s += GPU_REST_S
    assert rooms.now()["h1"].busy_gpus == (0, 1)
    session.load = Load(gpus=(GpuLoad("A", 3.0), GpuLoad("B", 99.0), GpuLoad("C", 1.0)))
    assert rooms.now()["h1"].busy_gpus == (1,)


async def test_rooms_are_kept_until_something_changes() -> None:
    """A round costs nothing for each host as long as no host, no session and no load is another one."""
    reign = Reign()
    first = connect(reign, "h1", "10.0.0.11")
    rooms = Rooms(reign, reign)  # type: ignore[arg-type]
    reign.step_s = 0.0
    reign.now_s = 1.0
    before = rooms.now()
    assert rooms.now() is before

    reign.do(c.SetHost("", "h1", 9.0, slots=7))
    assert rooms.now()["h1"].slots == 7, "the state has changed"
    connect(reign, "h2", "10.0.0.12")
    reign.news += 1
    assert rooms.now().keys() == {"h1", "h2"}, "an agent has come"
    first.no_ahead_until = 2.0
    reign.news += 1
    assert rooms.now()["h1"].ahead == 0, "it gave tasks back"
    assert rooms.now() is rooms.now()
    first.load = Load(cpu_percent=50.0)
    reign.now_s += LOOK_S
    after = rooms.now()
    assert after["h1"].load.cpu_percent == 50.0, "loads may have changed"
    assert after["h1"].ahead == 0
    reign.now_s = 3.0
    assert rooms.now()["h1"].ahead > 0, "it may have tasks ahead again"
