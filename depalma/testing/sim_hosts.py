"""The hosts of a simulated cluster, what goes wrong with them, and what must hold of them at every moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random

from depalma.agent.core import AgentCore
from depalma.model import AttemptRef
from depalma.state.machine import Machine
from depalma.testing.cluster import SimCluster, Violation
from depalma.testing.sim_agents import SimAgent
from depalma.testing.sim_masters import FAST, SETTINGS, SLOW, SimMaster, SimMasters
from depalma.testing.sim_processes import Witness
from depalma.testing.sim_wire import Cuts

#: after it has sent its last word that was heard, an agent whose clock is slow has a lease for so long at most
BELIEVES_FOR_S = SETTINGS.lease_s / SLOW + 0.001
#: and runs something for as long as it takes, beyond that, to look at the clock and to kill
RUNS_FOR_S = BELIEVES_FOR_S + 0.15
_WATCH_S = 0.02


class SimHosts:
    """Three agents and the leaders that they look for."""

    def __init__(self, cluster: SimCluster[Machine], random: Random) -> None:
        self.timeline = cluster.timeline
        self.random = random
        self.witness = Witness()
        self.cuts = Cuts(random)
        names = ("h0", "h1", "h2")
        # In half of the runs it is the worst that may be: masters that wait too short, agents that go on for too long.
        worst = random.random() < 0.5
        self.masters = SimMasters(cluster, random, names, (FAST,) if worst else (SLOW, 1.0, FAST))
        self.masters.on_recorded = self._note_recorded
        self.masters.on_lost = self._note_lost
        self.make_core: Callable[..., AgentCore] = AgentCore
        self.agents = [
            SimAgent(self, name, (SLOW,) if worst else (SLOW, 1.0, FAST), exits=random.random() < 0.3) for name in names
        ]
        if random.random() < 0.3:  # somebody has given another machine the same name
            self.agents.append(SimAgent(self, "twin", (SLOW,), exits=False, host="h0"))
        self.faults: Counter[str] = Counter()
        self._recorded: set[AttemptRef] = set()
        self._busy: set[str] = set()  #: hosts of which a process is frozen
        self._raging = True
        every = [
            self._kill, self._stop, self._lose_power, self._lose_monitor, self._freeze, self._freeze_monitor,
            self._cut, self._cut, self._cut_one_way, self._cut_one_way, self._cut_with_leader, self._weather,
        ]  # fmt: skip
        # Each run has its own few, so that none drowns the others.
        self._kinds = random.sample(every, random.randrange(1, len(every) + 1))
        self._rate = random.choice([0.7, 1.5, 3.0])

    def begin(self) -> None:
        """Start."""
        for agent in self.agents:
            self.timeline.after(self.random.uniform(0.0, 0.1), agent.start)
        self.timeline.after(self.random.uniform(0.0, 0.1), self._misfortune)
        self.timeline.after(_WATCH_S, self._watch)

    def end(self) -> None:
        """Nothing more goes wrong; everybody is there."""
        self._raging = False
        self.cuts.blocked.clear()
        self.cuts.slowest_s = 0.002
        for agent in self.agents:
            self._thaw(agent)
            agent.processes.hurries = True
            if agent.name == agent.host:
                agent.start()
            else:
                agent.retire()

    @property
    def now(self) -> float:
        """The true time."""
        return self.timeline.clock.monotonic()

    @property
    def idle(self) -> bool:
        """Whether no agent has anything to do."""
        return all(agent.idle for agent in self.agents if not agent.retired)

    def within_reach(self, host: str) -> list[SimMaster]:
        """Masters that would accept the host's connection now, also one that does not know that it was deposed."""
        return [
            master
            for master in self.masters.leaders()
            if not self.cuts.cut(host, master.master_id) and not self.cuts.cut(master.master_id, host)
        ]

    def _note_recorded(self, refs: tuple[AttemptRef, ...]) -> None:
        """A command has recorded how these ended: for each attempt that happens once (I2)."""
        for ref in refs:
            if ref in self._recorded:
                raise Violation(f"I2: the end of {ref} was recorded twice")
            self._recorded.add(ref)

    def _note_lost(self, host: str, incarnation: str) -> None:
        """Its work may run elsewhere from now on: nothing of it lives, and it has no lease under which it could.

        The master that asked for it hears of it late, if it stood still; then the host may be there again as another.
        """
        (agent,) = (one for one in self.agents if incarnation.startswith(f"{one.name}-"))
        if agent.is_over(incarnation):
            return
        live = list(agent.processes.live)
        if live or agent.holds_lease(incarnation):
            raise Violation(f"I3: {host} is recorded as lost while it has {live if live else 'a lease'}")

    def _watch(self) -> None:
        """A cut-off agent has nothing running after its lease, and does not believe in it for longer."""
        for agent in self.agents:
            silent_s = self.now - agent.heard_s
            live = list(agent.processes.live)
            if (live and silent_s > RUNS_FOR_S) or (silent_s > BELIEVES_FOR_S and agent.holds_lease()):
                what = f"runs {live}" if live else "believes in its lease"
                raise Violation(f"I3: {agent.name} {what} {silent_s:.2f} s after its last word, {SETTINGS.lease_s:g} s")
        self.timeline.after(_WATCH_S, self._watch)

    # ------------------------------------------------------------ misfortune

    def _misfortune(self) -> None:
        if not self._raging:
            return
        self.random.choice(self._kinds)(self.random.choice(self.agents))
        self.timeline.after(self.random.expovariate(self._rate), self._misfortune)

    def _kill(self, agent: SimAgent) -> None:
        if agent.name not in self._busy:
            self.faults["agent killed"] += 1
            agent.kill("agent died")

    def _stop(self, agent: SimAgent) -> None:
        if agent.name not in self._busy and agent.core is not None:
            self.faults["agent restarted"] += 1
            agent.stop()

    def _lose_power(self, agent: SimAgent) -> None:
        if agent.name not in self._busy:
            self.faults["host lost power"] += 1
            agent.lose_power()

    def _lose_monitor(self, agent: SimAgent) -> None:
        if agent.name not in self._busy:
            self.faults["monitor killed"] += 1
            agent.lose_monitor()

    def _freeze(self, agent: SimAgent) -> None:
        if agent.name not in self._busy and agent.core is not None:
            self.faults["agent frozen"] += 1
            agent.frozen = True
            self._thaw_later(agent)

    def _freeze_monitor(self, agent: SimAgent) -> None:
        if agent.name not in self._busy and agent.core is not None:
            self.faults["monitor frozen"] += 1
            agent.processes.frozen = True
            self._thaw_later(agent)

    def _thaw_later(self, agent: SimAgent) -> None:
        self._busy.add(agent.name)
        self.timeline.after(self._lasts_s(), partial(self._thaw, agent))

    def _thaw(self, agent: SimAgent) -> None:
        self._busy.discard(agent.name)
        if agent.frozen:
            agent.thaw()
        if agent.processes.frozen:
            agent.processes.thaw()

    def _lasts_s(self) -> float:
        """For less than the lease, or for more."""
        return self.random.choice([self.random.uniform(0.05, 0.9), self.random.uniform(0.9, 4.0)])

    def _cut(self, agent: SimAgent) -> None:
        """From all masters, or from one."""
        self.faults["agent cut off"] += 1
        names = self.masters.cluster.names
        apart = names if self.random.random() < 0.7 else (self.random.choice(names),)
        self._block({(agent.name, name) for name in apart} | {(name, agent.name) for name in apart})

    def _cut_one_way(self, agent: SimAgent) -> None:
        self.faults["agent cut off one way"] += 1
        names = self.masters.cluster.names
        ways = {(agent.name, name) for name in names}
        self._block(ways if self.random.random() < 0.5 else {(name, host) for host, name in ways})

    def _cut_with_leader(self, agent: SimAgent) -> None:
        """An agent and the leader hear each other, and nobody else does: the leader is deposed and does not know it.
        Often it has stood still meanwhile: then it believes in itself for longest."""
        cluster, leader = self.masters.cluster, self.masters.cluster.leader()
        if leader is None:
            return
        self.faults["agent cut off with the leader"] += 1
        others = [name for name in cluster.names if name != leader]
        cluster.network.partition([leader], others)
        lasts_s = self.random.uniform(1.0, 4.0)
        self._block({(agent.name, name) for name in others} | {(name, agent.name) for name in others}, lasts_s)
        self.timeline.after(lasts_s, cluster.network.heal)
        node = cluster.nodes[leader]
        if node.frozen or self.random.random() < 0.3:
            return
        cluster.freeze(leader)
        life = node.life
        self.timeline.after(
            self.random.uniform(0.5, 0.95), lambda: cluster.thaw(leader) if node.life == life and node.frozen else None
        )

    def _block(self, ways: set[tuple[str, str]], lasts_s: float = 0.0) -> None:
        """Cuts these ways for a while."""
        self.cuts.blocked |= ways
        self.timeline.after(lasts_s or self._lasts_s(), lambda: self.cuts.blocked.difference_update(ways))

    def _weather(self, _: SimAgent) -> None:
        self.faults["agents' lines slow"] += 1
        self.cuts.slowest_s = self.random.choice([0.002, 0.05, 0.4])
