"""Agents of a simulated cluster of the product's own masters, and the duties of a leader towards them.

The agents are models: what matters is that they run attempts for a while, die, are cut off and report. What really ran
is written down by a Witness, of which the masters know nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

from depalma.consensus.core import Core
from depalma.dispatcher import HostRoom, plan
from depalma.model import AttemptRef, HostFacts, Payload, Report
from depalma.state import commands as c
from depalma.state.cluster_state import ClusterState
from depalma.state.machine import Machine
from depalma.testing.cluster import Answer, SimCluster, Violation

SLOTS = 2
_FACTS = HostFacts(SLOTS, 2, 8 << 30, 0, "0.1.0", "3.11", "simulated")
#: tasks of jobs that call this never fail by themselves
SURE = "pkg:sure"
#: an agent that hears nothing kills what it runs after so long; then masters may call it lost
LEASE_S = 0.5


def result_of(ref: AttemptRef) -> Payload:
    """What an attempt returns: something that no other attempt does."""
    return Payload(inline=b"%d.%d.%d" % ref)


class Witness:
    """What really ran. Raises Violation for two live attempts of a task, and for one that begins twice (I3, I4)."""

    def __init__(self) -> None:
        self.live: dict[tuple[int, int], AttemptRef] = {}
        #: task → its newest attempt
        self.newest: dict[tuple[int, int], int] = {}
        self.succeeded: set[AttemptRef] = set()
        self.begun = 0

    def begin(self, ref: AttemptRef) -> None:
        """An attempt begins."""
        task = ref[:2]
        if task in self.live:
            raise Violation(f"I3: attempt {ref} begins while {self.live[task]} lives")
        if ref[2] <= self.newest.get(task, 0):
            raise Violation(f"I4: attempt {ref} begins after attempt {self.newest[task]}")
        self.live[task] = ref
        self.newest[task] = ref[2]
        self.begun += 1

    def end(self, ref: AttemptRef, *, succeeded: bool = False) -> None:
        """It is dead."""
        if self.live.pop(ref[:2]) != ref:
            raise Violation(f"{ref} ends, but it does not live")
        if succeeded:
            self.succeeded.add(ref)


class SimAgent:
    """Runs attempts for a while and reports each until the cluster has answered."""

    def __init__(self, hosts: SimHosts, name: str) -> None:
        self.name = name
        self.master: str | None = None
        self.connected = True
        self.live: dict[AttemptRef, float] = {}
        self.unreported: dict[AttemptRef, Report] = {}
        self._hosts = hosts
        self._random = hosts.random
        self._life = 1
        self._term = 0
        self._known: set[AttemptRef] = set()
        self._asked: list[Answer] = []

    @property
    def incarnation(self) -> str:
        """One life of the agent."""
        return f"{self.name}-{self._life}"

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing is left to report."""
        return not self.live and not self.unreported

    def order(self, term: int, incarnation: str, ref: AttemptRef) -> None:
        """Begin an attempt, unless it is known or the order is of a leader of the past or for another life."""
        if term < self._term or incarnation != self.incarnation or ref in self._known:
            return
        self._term = term
        self._known.add(ref)
        self._hosts.witness.begin(ref)
        self.live[ref] = self._hosts.now + self._random.choice([0.0, 0.02, 0.2])

    def die(self) -> None:
        """Everything it ran is dead; it comes back as a new incarnation."""
        for ref in self.live:
            self._hosts.witness.end(ref)
        self.live.clear()
        self.unreported.clear()
        self._known.clear()
        self._asked.clear()
        self._life += 1

    def step(self, state: ClusterState) -> None:
        """End what is due, and tell its master what it has to know."""
        for ref in [ref for ref, due in self.live.items() if due <= self._hosts.now]:
            job = state.jobs.get(ref[0])
            outcomes = ["succeeded"] * 8 + ["failed", "timed_out"]
            sure = job is None or job.spec.function == SURE
            self._finish(ref, "succeeded" if sure else self._random.choice(outcomes))
        for ref in list(self.live):
            job = state.jobs.get(ref[0])
            if job is not None and job.cancelled:
                self._finish(ref, "cancelled")
        self._asked = [answer for answer in self._asked if not answer.done]
        if self.connected:
            self._report(state)

    def _report(self, state: ClusterState) -> None:
        host, propose = state.hosts.get(self.name), self._hosts.propose
        if host is None:
            propose(self.master, lambda at: c.AddHost(f"file:{self.name}", self.name, (), {}, 0, SLOTS, 0, at))
        elif (host.incarnation, host.state) != (self.incarnation, "up"):
            incarnation = self.incarnation
            propose(self.master, lambda at: c.HostUp(self.name, incarnation, _FACTS, at))
        elif self.unreported and len(self._asked) < 3:
            incarnation, reports = self.incarnation, tuple(self.unreported.values())
            answer = propose(self.master, lambda at: c.FinishTasks(self.name, incarnation, reports, at))
            if answer is not None:
                self._asked.append(answer)
                answer.listen(lambda: self._on_answer(incarnation, answer))

    def _on_answer(self, incarnation: str, answer: Answer) -> None:
        outcome = answer.value.value if isinstance(answer.value, c.Applied) else None
        if isinstance(outcome, c.FinishOutcome):
            self._hosts.note_recorded(outcome.recorded)
            if incarnation == self.incarnation:
                for ref in (*outcome.recorded, *outcome.stale):
                    self.unreported.pop(ref, None)

    def _finish(self, ref: AttemptRef, outcome: str) -> None:
        self._hosts.witness.end(ref, succeeded=outcome == "succeeded")
        del self.live[ref]
        self.unreported[ref] = Report(*ref, outcome, 0, result=result_of(ref))


class SimHosts:
    """Three agents, and what every leader does: plan, send what was accepted, call the silent ones lost."""

    def __init__(self, cluster: SimCluster[Machine], random: Random) -> None:
        self.cluster = cluster
        self.random = random
        self.witness = Witness()
        self.agents = [SimAgent(self, f"h{number}") for number in range(3)]
        self.faults: Counter[str] = Counter()
        self._recorded: set[AttemptRef] = set()
        self._plans: dict[str, list[Answer]] = {}
        self._raging = True

    def begin(self) -> None:
        """Start."""
        for duty in (self._lead, self._work, self._misfortune):
            self.cluster.timeline.after(self.random.uniform(0.0, 0.1), duty)

    def end(self) -> None:
        """No agent dies any more; those that live go on."""
        self._raging = False

    @property
    def idle(self) -> bool:
        """Whether no agent has anything to do."""
        return all(agent.idle for agent in self.agents)

    @property
    def now(self) -> float:
        """The agents' time: the true one."""
        return self.cluster.clock.monotonic()

    def propose(self, master: str | None, make: Callable[[float], c.AnyCommand]) -> Answer | None:
        """Have a master propose what `make(at)` gives, stamped with that master's time of day."""
        if master is None:
            return None
        return self.cluster.propose(master, c.encode(make(self.cluster.nodes[master].clock.time())))

    def note_recorded(self, refs: tuple[AttemptRef, ...]) -> None:
        """A master has answered that it recorded how these ended: for each attempt that happens once (I2)."""
        for ref in refs:
            if ref in self._recorded:
                raise Violation(f"I2: the end of {ref} was recorded twice")
            self._recorded.add(ref)

    def _leaders(self) -> list[tuple[int, str, Core, Machine]]:
        """Everybody who takes itself for the leader; the newest last."""
        found = []
        for name, node in self.cluster.nodes.items():
            if node.core is not None and node.core.leads_term and not node.frozen and node.machine is not None:
                found.append((node.core.leads_term, name, node.core, node.machine))
        return sorted(found, key=lambda each: each[0])

    def _lead(self) -> None:
        """A leader's duties. One that was deposed and does not know it does them too."""
        for term, name, _, machine in self._leaders():
            agents = [agent for agent in self.agents if agent.connected and agent.master == name]
            for agent in agents:
                host = machine.state.hosts.get(agent.name)
                if host is not None and self.random.random() < 0.8:
                    for ref in sorted(host.attempts):
                        agent.order(term, host.incarnation, ref)
            waiting = [answer for answer in self._plans.get(name, ()) if not answer.done]
            if not waiting:
                rooms = {agent.name: HostRoom(agent.incarnation, SLOTS, 4) for agent in agents}
                means = dict.fromkeys(machine.state.jobs, 0.02)
                at = self.cluster.nodes[name].clock.time()
                for command in plan(machine.state, rooms, means, at, term, 50):
                    waiting.append(self.cluster.propose(name, c.encode(command)))
            self._plans[name] = waiting
        self.cluster.timeline.after(0.04, self._lead)

    def _work(self) -> None:
        leaders = {name: machine for _, name, _, machine in self._leaders()}
        newest = list(leaders)[-1:]
        for agent in self.agents:
            if agent.master not in leaders or self.random.random() < 0.2:
                agent.master = newest[0] if newest else None
            if agent.master is not None:
                agent.step(leaders[agent.master].state)
        self.cluster.timeline.after(0.03, self._work)

    def _misfortune(self) -> None:
        if not self._raging:
            return
        agent = self.random.choice(self.agents)
        if self.random.random() < 0.5:
            self.faults["agent died"] += 1
            agent.die()
        elif agent.connected:
            self.faults["agent cut off"] += 1
            self._cut_off(agent)
        self.cluster.timeline.after(self.random.uniform(0.5, 3.0), self._misfortune)

    def _cut_off(self, agent: SimAgent) -> None:
        """It stops itself when its lease is over; only then do masters call it lost."""
        incarnation, agent.connected = agent.incarnation, False

        def lease_is_over() -> None:
            if agent.incarnation == incarnation:
                agent.die()
            self.propose(self.cluster.leader(), lambda at: c.HostLost(agent.name, incarnation, "silent", at))

        def back() -> None:
            agent.connected = True

        self.propose(self.cluster.leader(), lambda at: c.HostSuspect(agent.name, incarnation, "quiet", at))
        self.cluster.timeline.after(LEASE_S, lease_is_over)
        self.cluster.timeline.after(self.random.uniform(LEASE_S + 0.1, 3 * LEASE_S), back)
