"""The product's own machine under the simulated cluster: clients, agents and a leader's duties, in bad weather.

What the whole must keep is judged here: each acknowledged job exists once, a task never lives twice at a time, its
recorded result comes from an attempt that really ran to its end, and everything ends after the storm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest

from depalma.consensus.core import Core
from depalma.dispatcher import HostRoom, plan
from depalma.model import AttemptRef, HostFacts, JobSpec, Payload, Report
from depalma.state import commands as c
from depalma.state.cluster_state import ClusterState
from depalma.state.machine import Machine, digest_of
from depalma.testing import Answer, SimCluster

STORM_S = 6.0
HEAL_S = 20.0
FACTS = HostFacts(2, 2, 8 << 30, 0, "0.1.0", "3.11", "simulated")
EPOCH = 1_000_000.0


def result_of(ref: AttemptRef) -> Payload:
    return Payload(inline=b"%d.%d.%d" % ref)


@dataclass
class Witness:
    """What really ran: told by the agents, unknown to the masters."""

    live: dict[tuple[int, int], AttemptRef] = field(default_factory=dict)
    begun: set[AttemptRef] = field(default_factory=set)
    ended: set[AttemptRef] = field(default_factory=set)

    def begin(self, ref: AttemptRef) -> None:
        assert ref[:2] not in self.live, f"{ref} begins while {self.live[ref[:2]]} lives"
        assert ref not in self.begun, f"{ref} begins twice"
        self.live[ref[:2]] = ref
        self.begun.add(ref)

    def end(self, ref: AttemptRef) -> None:
        assert self.live.pop(ref[:2]) == ref


class SimAgent:
    """Runs attempts for a while and reports each until the cluster answered."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.life = 1
        self.term = 0
        self.connected = True
        self.live: dict[AttemptRef, float] = {}
        self.unreported: dict[AttemptRef, Report] = {}
        self.known: set[AttemptRef] = set()
        self.asked: list[Answer] = []

    @property
    def incarnation(self) -> str:
        return f"{self.name}-{self.life}"

    def order(self, term: int, incarnation: str, ref: AttemptRef) -> None:
        """Begins an attempt, unless it is known or the order is not for this life."""
        if term < self.term or incarnation != self.incarnation or ref in self.known:
            return
        self.term = term
        self.known.add(ref)
        self.world.witness.begin(ref)
        self.live[ref] = self.world.now + self.world.random.choice([0.0, 0.02, 0.2])

    def die(self) -> None:
        """Everything it ran is dead; it comes back as a new incarnation."""
        for ref in self.live:
            self.world.witness.end(ref)
        self.live.clear()
        self.unreported.clear()
        self.known.clear()
        self.asked.clear()
        self.life += 1

    def step(self, state: ClusterState) -> None:
        """Ends what is due and reports, to whoever leads."""
        for ref in [ref for ref, due in self.live.items() if due <= self.world.now]:
            self.finish(ref, self.world.random.choice(["succeeded"] * 8 + ["failed", "timed_out"]))
        for ref in list(self.live):
            job = state.jobs.get(ref[0])
            if job is not None and job.cancelled:
                self.finish(ref, "cancelled")
        for answer in [answer for answer in self.asked if answer.done]:
            self.asked.remove(answer)
            if isinstance(answer.value, c.Applied) and isinstance(answer.value.value, c.FinishOutcome):
                for ref in (*answer.value.value.recorded, *answer.value.value.stale):
                    self.unreported.pop(ref, None)
        if not self.connected:
            return
        host = state.hosts.get(self.name)
        if host is None:
            self.world.propose(c.AddHost(f"file:{self.name}", self.name, (), {}, 0, 2, 0, self.world.now))
        elif (host.incarnation, host.state) != (self.incarnation, "up"):
            self.world.propose(c.HostUp(self.name, self.incarnation, FACTS, self.world.now))
        elif self.unreported and len(self.asked) < 3:
            reports = tuple(self.unreported.values())
            answer = self.world.propose(c.FinishTasks(self.name, self.incarnation, reports, self.world.now))
            if answer is not None:
                self.asked.append(answer)

    def finish(self, ref: AttemptRef, outcome: str) -> None:
        self.world.witness.end(ref)
        del self.live[ref]
        if outcome == "succeeded":
            self.world.witness.ended.add(ref)
        self.unreported[ref] = Report(*ref, outcome, 0, result=result_of(ref))


class World:
    """One seeded run."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.cluster = SimCluster(
            Machine,
            seed=seed,
            state_hash=lambda machine: machine.state_hash,
            snapshot_every_entries=self.random.choice([20, 100, 1000]),
            keep_entries=self.random.choice([0, 10, 100]),
        )
        self.witness = Witness()
        self.agents = [SimAgent(self, f"h{number}") for number in range(3)]
        self.requests: dict[str, JobSpec] = {}
        self.open: dict[str, Answer | None] = {}
        self.answers: dict[str, int] = {}
        self.cancelled: set[int] = set()
        self.raging = True
        self.planned: list[tuple[int, c.AssignTasks, Answer]] = []
        self.cluster.on_crash = self.restart_later

    @property
    def now(self) -> float:
        return EPOCH + self.cluster.clock.monotonic()

    def leading(self) -> tuple[Core, Machine] | None:
        name = self.cluster.leader()
        node = self.cluster.nodes[name] if name else None
        return (node.core, node.machine) if node and node.core and node.machine else None

    def propose(self, command: c.AnyCommand) -> Answer | None:
        name = self.cluster.leader()
        return self.cluster.propose(name, c.encode(command)) if name else None

    # ------------------------------------------------------------ who acts

    def client(self) -> None:
        """Submits, and asks again until it is answered; cancels now and then."""
        rng = self.random
        if self.raging and rng.random() < 0.5:
            spec = JobSpec(
                kind="function",
                function="pkg:f",
                count=rng.randint(1, 6),
                retries=rng.choice([0, 1, 5]),
                priority=rng.randint(-1, 1),
                cpus=rng.choice([1, 1, 2]),
                max_running=rng.choice([0, 0, 2]),
                restartable=rng.random() < 0.8,
            )
            request = f"r{len(self.requests)}"
            self.requests[request], self.open[request] = spec, None
        for request, answer in list(self.open.items()):
            if answer is not None and answer.done and isinstance(answer.value, c.Applied):
                self.answers[request] = answer.value.value
                del self.open[request]
            elif answer is None or answer.done or rng.random() < 0.05:  # impatient: asked again while under way
                self.open[request] = self.propose(c.SubmitJob(request, self.requests[request], self.now))
        if self.raging and self.answers and rng.random() < 0.05:
            job = rng.choice(list(self.answers.values()))
            self.propose(c.CancelJobs(f"cancel {job}", (job,), self.now))
        self.cluster.timeline.after(0.05, self.client)

    def duties(self) -> None:
        """The leader's: plan, send what was accepted, make agents and state agree."""
        leading = self.leading()
        if leading is not None:
            core, machine = leading
            term, state = core.leads_term or 0, machine.state
            self.deliver(state, term)
            if not self.planned:
                rooms = {a.name: HostRoom(a.incarnation, 2, 4) for a in self.agents if a.connected}
                means = dict.fromkeys(state.jobs, 0.02)
                for command in plan(state, rooms, means, self.now, term, 50):
                    answer = self.propose(command)
                    if answer is not None:
                        self.planned.append((term, command, answer))
        self.cluster.timeline.after(0.03, self.duties)

    def deliver(self, state: ClusterState, term: int) -> None:
        self.planned = [each for each in self.planned if not each[2].done]
        for agent in self.agents:
            host = state.hosts.get(agent.name)
            if host is not None and agent.connected and self.random.random() < 0.8:
                for ref in sorted(host.attempts):
                    agent.order(term, host.incarnation, ref)

    def work(self) -> None:
        leading = self.leading()
        for agent in self.agents:
            if leading is not None:
                agent.step(leading[1].state)
        self.cluster.timeline.after(0.02, self.work)

    # ------------------------------------------------------------ misfortune

    def misfortune(self) -> None:
        if not self.raging:
            return
        self.random.choice(
            [self.crash_one, self.crash_leader, self.crash_all, self.partition, self.agent_dies, self.agent_is_cut_off]
        )()
        self.cluster.timeline.after(self.random.uniform(0.1, 1.0), self.misfortune)

    def restart_later(self, name: str) -> None:
        self.cluster.timeline.after(self.random.uniform(0.01, 0.8), lambda: self.cluster.restart(name))

    def crash_one(self) -> None:
        self.cluster.crash(self.random.choice(self.cluster.names), power=self.random.random() < 0.7)

    def crash_leader(self) -> None:
        if leader := self.cluster.leader():
            self.cluster.crash(leader)

    def crash_all(self) -> None:
        for name in self.cluster.names:
            self.cluster.crash(name)

    def partition(self) -> None:
        alone = self.random.choice(self.cluster.names)
        self.cluster.network.partition([alone], [name for name in self.cluster.names if name != alone])
        self.cluster.timeline.after(self.random.uniform(0.2, 1.5), self.cluster.network.heal)

    def agent_dies(self) -> None:
        self.random.choice(self.agents).die()

    def agent_is_cut_off(self) -> None:
        """It stops itself when its lease is over; only then do the masters call it lost."""
        agent = self.random.choice(self.agents)
        incarnation, agent.connected = agent.incarnation, False

        def lease_is_over() -> None:
            if agent.incarnation == incarnation:
                agent.die()
            self.propose(c.HostLost(agent.name, incarnation, "silent", self.now))

        def back() -> None:
            agent.connected = True

        self.propose(c.HostSuspect(agent.name, incarnation, "quiet", self.now))
        self.cluster.timeline.after(0.5, lease_is_over)
        self.cluster.timeline.after(self.random.uniform(0.6, 1.5), back)

    # ------------------------------------------------------------ the run

    def run(self) -> None:
        self.cluster.start()
        for duty in (self.client, self.duties, self.work, self.misfortune):
            self.cluster.timeline.after(0.1, duty)
        self.cluster.run_for(STORM_S)
        self.raging = False
        self.cluster.network.heal()
        for name in self.cluster.names:
            self.cluster.restart(name)
        self.cluster.wait_until(self.all_is_over, within_s=HEAL_S, what="every job ends after the storm")
        self.cluster.wait_until(self.all_are_equal, within_s=HEAL_S, what="all replicas are equal")

    def all_is_over(self) -> bool:
        leading = self.leading()
        if leading is None or self.open:
            return False
        jobs = leading[1].state.jobs.values()
        return all(job.is_final for job in jobs) and not any(a.unreported or a.live for a in self.agents)

    def all_are_equal(self) -> bool:
        nodes = self.cluster.nodes.values()
        return len({node.core.applied_index if node.core else -1 for node in nodes}) == 1

    def judge(self) -> Machine:
        """Checks the promises; returns the first replica's machine."""
        self.cluster.ensure_same()
        machines = [node.machine for node in self.cluster.nodes.values() if node.machine is not None]
        assert len({digest_of(machine.state) for machine in machines}) == 1
        machine = machines[0]
        machine.state.check_invariants()
        assert len(set(self.answers.values())) == len(self.answers) == len(self.requests) == len(machine.state.jobs)
        for request, job_id in self.answers.items():
            assert machine.state.jobs[job_id].spec == self.requests[request]
        for job in machine.state.jobs.values():
            for index in range(job.total):
                record = job.outcome(index)
                if record.state == "succeeded":
                    ref = (job.id, index, record.attempt)
                    assert ref in self.witness.ended
                    assert record.result == result_of(ref)
        return machine


@pytest.mark.parametrize("seed", range(20))
def test_promises_hold_in_a_storm(seed):
    """Twenty storms: leaders die, power fails, networks part, agents die or are cut off."""
    world = World(seed)
    world.run()
    machine = world.judge()

    assert len(world.requests) > 20
    assert len(world.witness.begun) > 50
    assert any(job.state() == "succeeded" for job in machine.state.jobs.values())


def test_a_storm_repeats_exactly():
    """The same seed, the same run: or a failing one could not be looked into."""
    runs = []
    for _ in range(2):
        world = World(5)
        world.run()
        runs.append((world.cluster.digest(), world.judge().state_hash))

    assert runs[0] == runs[1]
