"""What the simulated masters do for agents: the product's own reign, sessions, leases and dispatch loop (`leader/`) on
a simulated event loop, around the replica and the state machine of the same simulated process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from random import Random
from typing import Any, cast

from aiohttp import web

from depalma.config import ClusterConfig, HostConfig, MasterConfig, Secrets, Settings
from depalma.consensus import NotLeader, OutcomeUnknown
from depalma.errors import Rejected
from depalma.leader.hub import Hub
from depalma.leader.rates import Rates
from depalma.leader.reign import Reign
from depalma.lease import DRIFT
from depalma.state import commands as c
from depalma.state.cluster_state import ClusterState
from depalma.state.machine import Machine
from depalma.testing.clock import ManualClock, SkewedClock
from depalma.testing.cluster import Answer, SimCluster
from depalma.testing.node import SimNode
from depalma.testing.sim_loop import SimLoop
from depalma.testing.sim_wire import ServerSocket

SLOTS = 2
#: the least that clocks which are off by 5 %, and agents that look ten times a second, leave room for
SETTINGS = Settings(lease_s=1.0, lease_margin=0.3, heartbeat_s=0.2)
#: how wrong a clock may be in its rate
SLOW, FAST = 1 - DRIFT, 1 + DRIFT
#: as the replica gives up on an answer
_ANSWER_S = 10.0


def drifting(base: ManualClock, random: Random, rates: tuple[float, ...]) -> SkewedClock:
    """A clock that goes on whatever happens (CLOCK_BOOTTIME), at one of these rates."""
    rate = random.choice(rates)
    return SkewedClock(base, rate=rate, offset_s=random.uniform(1.0, 1e5))


class SimArchive:
    """Stands for archives that take everything: simulated masters have no files."""

    async def keep_on_majority(self, jobs: Sequence[int]) -> set[int]:
        """See Archive."""
        return set(jobs)


class SimMaster:
    """One life of a master process, as the duties of a leader see it (`leader.context.Context`)."""

    def __init__(self, masters: SimMasters, node: SimNode[Machine]) -> None:
        self.master_id = node.name
        self.config: ClusterConfig = masters.config
        self.secrets = Secrets(token="", agent_token="simulated", raft_secret=b"", folder=Path("/simulated"))
        self.hub = Hub()
        self.clock: Callable[[], float] = masters.clocks[node.name].monotonic
        self.wall = node.clock.time
        self.spent: Callable[[], float] = lambda: 0.0  # planning takes no time here
        self.rates = Rates(self.clock)
        self.archive = SimArchive()
        self.blobs = cast(Any, None)  # no argument is so large
        self.node = node
        self.life = node.life
        self._cluster = masters.cluster
        self._masters = masters
        # What it does not implement needs files, sockets or processes.
        self.loop = SimLoop(masters.cluster.timeline, alive=lambda: self.alive, stands=lambda: node.frozen)  # type: ignore[abstract]
        self.reign = masters.make_reign(self)

    @property
    def alive(self) -> bool:
        """Whether this life has not ended."""
        return self.node.life == self.life and self.node.core is not None

    @property
    def accepts(self) -> bool:
        """Whether it would take an agent's connection now."""
        return self.alive and not self.node.frozen and self.leading

    @property
    def state(self) -> ClusterState:
        """See Context."""
        assert self.node.machine is not None
        return self.node.machine.state

    @property
    def term(self) -> int:
        """See Context."""
        return self.node.core.term if self.node.core is not None else 0

    @property
    def leading(self) -> bool:
        """See Context."""
        return self.node.core is not None and self.node.core.leads_term is not None

    async def record_masters(self) -> None:
        """See Context; the members of these clusters do not change."""

    async def execute(self, command: c.AnyCommand) -> c.Applied:
        """See Context."""
        outcome = await self._answer(self._cluster.propose(self.master_id, c.encode(command)))
        if isinstance(outcome, c.Rejected):
            raise Rejected(outcome.message, code=outcome.code)
        assert isinstance(outcome, c.Applied)
        if isinstance(command, c.FinishTasks) and isinstance(outcome.value, c.FinishOutcome):
            self._masters.on_recorded(outcome.value.recorded)
        if isinstance(command, c.HostLost):
            self._masters.on_lost(command.host, command.incarnation)
        return outcome

    async def barrier(self) -> None:
        """See Context."""
        if not self.leading:
            raise NotLeader(None)
        await self._answer(self._cluster.read(self.master_id, lambda machine: None))

    async def _answer(self, answer: Answer) -> object:
        done: asyncio.Future[None] = self.loop.create_future()

        def here() -> None:
            if not done.done():
                done.set_result(None)

        def listen() -> None:
            self.loop.call_soon(here)

        answer.listen(listen)
        try:
            async with asyncio.timeout(_ANSWER_S):
                await done
        except TimeoutError:
            raise OutcomeUnknown("no answer") from None
        if answer.error is not None:
            raise answer.error
        return answer.value

    # ------------------------------------------------------------ what happens to it

    def leads(self, leads: bool) -> None:
        """As Master does at a change of leadership."""
        self.reign.end()
        self.reign = self._masters.make_reign(self)
        if leads:
            self.reign.begin()

    def applied(self) -> None:
        """As Master does when something was applied."""
        assert self.node.machine is not None
        changes = self.node.machine.drain_changes()
        if self.leading:
            self.reign.changed(changes)

    def accept(self, host: str, socket: ServerSocket) -> None:
        """An agent has connected."""
        self.loop.call_soon(
            lambda: self.loop.create_task(self.reign.sessions.serve(cast(web.WebSocketResponse, socket), host))
        )

    def ask(self, work: Callable[[], Coroutine[Any, Any, None]], answered: Callable[[bool], None]) -> None:
        """Has something done by the process; `answered` hears whether it was, unless the process dies before."""

        async def do() -> None:
            try:
                await work()
            except (NotLeader, OutcomeUnknown, Rejected):
                answered(False)
            else:
                answered(True)

        self.loop.call_soon(lambda: self.loop.create_task(do()))


class SimMasters:
    """The masters of a simulated cluster; each gets its duties when it begins to lead."""

    def __init__(
        self, cluster: SimCluster[Machine], random: Random, hosts: tuple[str, ...], rates: tuple[float, ...]
    ) -> None:
        self.cluster = cluster
        self.make_reign: Callable[[SimMaster], Reign] = Reign
        #: called with the attempts whose end a command has recorded
        self.on_recorded: Callable[[tuple[tuple[int, int, int], ...]], None] = lambda refs: None
        #: called with a host and its incarnation that are recorded as lost
        self.on_lost: Callable[[str, str], None] = lambda host, incarnation: None
        self.clocks: dict[str, SkewedClock] = {name: drifting(cluster.clock, random, rates) for name in cluster.names}
        self.config: ClusterConfig = ClusterConfig(
            masters=tuple(
                MasterConfig(id=n, host=n, port=1, raft_port=2, dir=f"/simulated/{n}") for n in cluster.names
            ),
            hosts=tuple(HostConfig(name=name, slots=SLOTS) for name in hosts),
            settings=SETTINGS,
        )
        self._masters: dict[str, SimMaster] = {}
        cluster.on_leadership = self._leadership
        cluster.on_applied = self._applied

    def close(self) -> None:
        """The simulation is over."""
        for master in self._masters.values():
            master.loop.close()

    def leaders(self) -> list[SimMaster]:
        """Those who take themselves for the leader and would answer, the newest last."""
        found = [master for master in self._masters.values() if master.accepts]
        return sorted(found, key=lambda master: master.term)

    def _leadership(self, name: str, leads: bool, term: int) -> None:
        master, node = self._masters.get(name), self.cluster.nodes[name]
        if master is None or master.life != node.life:
            if not leads:
                return
            if master is not None:
                master.loop.close()
            master = self._masters[name] = SimMaster(self, node)
            node.machine.drain_changes()  # type: ignore[union-attr]  # what a follower takes note of is no news
        master.loop.call_soon(master.leads, leads)

    def _applied(self, name: str) -> None:
        master = self._masters.get(name)
        if master is not None and master.alive:
            master.loop.call_soon(master.applied)
