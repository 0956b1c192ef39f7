"""One seeded run: a cluster under load in bad weather, then healed, then judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from depalma.consensus.core import Core
from depalma.consensus.errors import MembershipRefused
from depalma.testing.cluster import Answer, SimCluster, Violation
from depalma.testing.ledger import Ledger
from depalma.testing.network import Weather

#: virtual seconds of faults, then the time within which all must be equal again
STORM_S = 8.0
HEAL_S = 10.0


@dataclass(slots=True)
class Report:
    """What a run did. `digest` is equal for equal runs."""

    seed: int
    digest: str = ""
    acknowledged: int = 0
    unknown: int = 0
    reads: int = 0
    faults: int = 0
    terms: int = 0
    virtual_s: float = 0.0


@dataclass(slots=True)
class Storm:
    """Clients and misfortune for one cluster, all from one seed."""

    cluster: SimCluster[Ledger]
    random: Random
    asked: dict[bytes, Answer] = field(default_factory=dict)
    #: command → its number, as the cluster answered
    acknowledged: dict[bytes, int] = field(default_factory=dict)
    highest: int = 0
    reads: int = 0
    faults: int = 0
    raging: bool = True
    _kinds: list[Callable[[], None]] = field(default_factory=list)
    #: misfortunes a second
    _rate: float = 1.0
    _open: list[tuple[bytes, Answer]] = field(default_factory=list)
    #: answer, replica, and how many commands the read has to show at least
    _reads: list[tuple[Answer, str, int]] = field(default_factory=list)

    def begin(self) -> None:
        """Start clients and misfortune. Each run has its own few kinds of it, so that none drowns the others."""
        every = [
            self._crash_one,
            self._crash_leader,
            self._crash_all,
            self._cut_power_soon,
            self._disk_fails,
            self._partition,
            self._cut_one_way,
            self._swing_voter,
            self._change_sides,
            self._close_connection,
            self._bad_weather,
            self.cluster.network.heal,
        ]
        if len(self.cluster.names) > len(self.cluster.founders) or self.random.random() < 0.3:
            every += [self._change_members] * 3
        every.append(self._hand_over)
        self._kinds = self.random.sample(every, self.random.randrange(1, len(every) + 1))
        self._rate = self.random.choice([1.0, 3.0, 8.0])
        self._client()
        self._misfortune()

    def end(self) -> None:
        """No more faults and no more commands: everything is repaired."""
        self.raging = False
        self.cluster.network.heal()
        self.cluster.network.weather = Weather(late=0.0)
        for name in self.cluster.names:
            self.cluster.nodes[name].disk.repair()
            self.cluster.restart(name)

    def collect(self) -> None:
        """Note what was acknowledged, and judge the reads that are done."""
        for command, answer in self._open:
            if answer.done and answer.error is None:
                assert isinstance(answer.value, int)
                self.acknowledged[command] = answer.value
                self.highest = max(self.highest, answer.value)
        self._open = [item for item in self._open if not item[1].done]
        for answer, name, must_show in self._reads:
            if answer.done and answer.error is None:
                assert isinstance(answer.value, int)
                self.reads += 1
                if answer.value < must_show:
                    raise Violation(f"a read on {name} shows {answer.value} commands after {must_show} were answered")
        self._reads = [item for item in self._reads if not item[0].done]

    def _client(self) -> None:
        """Propose and read, mostly at the leader, sometimes at anybody."""
        if not self.raging:
            return
        self.collect()
        cluster = self.cluster
        name = cluster.leader() if self.random.random() < 0.8 else None
        name = name or self.random.choice(cluster.names)
        for _ in range(self.random.randrange(1, 5)):
            command = b"%d" % len(self.asked)
            self.asked[command] = cluster.propose(name, command)
            self._open.append((command, self.asked[command]))
        if self.random.random() < 0.2:
            self._reads.append((cluster.read(name, lambda ledger: len(ledger.entries)), name, self.highest))
        cluster.timeline.after(self.random.expovariate(25), self._client)

    def _misfortune(self) -> None:
        if not self.raging:
            return
        self.random.choice(self._kinds)()
        self.faults += 1
        self.cluster.timeline.after(self.random.expovariate(self._rate), self._misfortune)

    def _some(self) -> str:
        return self.random.choice(self.cluster.names)

    def _restart_later(self, name: str) -> None:
        delay = self.random.choice([0.001, self.random.uniform(0.01, 0.2), self.random.uniform(0.1, 1.5)])
        self.cluster.timeline.after(delay, lambda: self.cluster.restart(name))

    def _crash_one(self) -> None:
        name = self._some()
        self.cluster.crash(name, power=self.random.random() < 0.7)
        self._restart_later(name)

    def _crash_leader(self) -> None:
        name = self.cluster.leader() or self._some()
        self.cluster.crash(name)
        self._restart_later(name)

    def _crash_all(self) -> None:
        for name in self.cluster.names:
            self.cluster.crash(name)
            self._restart_later(name)

    def _cut_power_soon(self) -> None:
        """In the middle of one of the next disk operations."""
        name = self._some()
        disk = self.cluster.nodes[name].disk
        disk.power_cut_in = self.random.choice([0, 1, self.random.randrange(12), self.random.randrange(60)])
        disk.kills_only = self.random.random() < 0.4

    def _disk_fails(self) -> None:
        name = self._some()
        disk = self.cluster.nodes[name].disk
        if self.random.random() < 0.5:
            disk.fails_syncs = True
        else:
            disk.capacity_bytes = sum(disk.size(file) for file in disk.names()) + self.random.randrange(200)

    def _partition(self) -> None:
        alone = self._some()
        self.cluster.network.partition([alone], [name for name in self.cluster.names if name != alone])
        self.cluster.timeline.after(self.random.uniform(0.1, 2.0), self.cluster.network.heal)

    def _cut_one_way(self) -> None:
        sender, receiver = self.random.sample(self.cluster.names, 2)
        self.cluster.network.block(sender, receiver)

    def _swing_voter(self) -> None:
        """Two do not see each other; the third, on whom both depend, crashes again and again."""
        one, other, voter = self.random.sample(self.cluster.names, 3)
        self.cluster.network.partition([one], [other])
        self.cluster.network.close(one, other)
        self._crash_leader()
        for _ in range(self.random.randrange(1, 6)):
            action = self.random.choice([self._bounce, self._cut_power_in_next_write, self._cut_power_in_next_write])
            self.cluster.timeline.after(self.random.uniform(0.0, 0.4), partial(action, voter))
        self.cluster.timeline.after(self.random.uniform(0.5, 2.0), self.cluster.network.heal)

    def _change_sides(self) -> None:
        """Two elect without the leader; one of them dies over its next write, and returns on the other side."""
        leader = self.cluster.leader() or self._some()
        voter, other = self.random.sample([name for name in self.cluster.names if name != leader], 2)
        self._split([leader], [voter, other])
        self.cluster.timeline.after(self.random.uniform(0.0, 0.1), partial(self._cut_power_in_next_write, voter))
        self.cluster.timeline.after(self.random.uniform(0.1, 0.6), lambda: self._split([other], [leader, voter]))
        self.cluster.timeline.after(self.random.uniform(1.0, 2.0), self.cluster.network.heal)

    def _split(self, one_side: list[str], other_side: list[str]) -> None:
        if not self.raging:
            return
        self.cluster.network.heal()
        self.cluster.network.partition(one_side, other_side)
        for name in one_side:
            for other in other_side:
                self.cluster.network.close(name, other)
        for name in self.cluster.names:
            self.cluster.restart(name)

    def _cut_power_in_next_write(self, name: str) -> None:
        if self.raging:
            self.cluster.nodes[name].disk.power_cut_in = self.random.randrange(3)

    def _bounce(self, name: str) -> None:
        if self.raging:
            self.cluster.crash(name, silently=False)
            self.cluster.restart(name)

    def _change_members(self) -> None:
        """One joins or leaves: whoever, at whoever leads."""
        leader = self.cluster.leader()
        if leader is None:
            return
        members = self.cluster.members()
        name = self._some()
        wanted = tuple(one for one in members if one != name) if name in members else (*members, name)
        if wanted:
            command = b"%d members" % len(self.asked)
            self.asked[command] = self.cluster.change_members(leader, wanted, command)
            self._open.append((command, self.asked[command]))
            self.cluster.timeline.after(self.random.uniform(0.1, 3.0), lambda: self._give_up_change(leader))

    def _give_up_change(self, name: str) -> None:
        core = self.cluster.nodes[name].core
        if core is not None:
            core.give_up_change(MembershipRefused("not_ready", "given up"))

    def _hand_over(self) -> None:
        leader = self.cluster.leader()
        if leader is not None:
            self.cluster.hand_over(leader, self.random.choice([None, self._some()]))

    def _close_connection(self) -> None:
        self.cluster.network.close(*self.random.sample(self.cluster.names, 2))

    def _bad_weather(self) -> None:
        slow = self.random.choice([0.002, 0.01, 0.08])
        self.cluster.network.weather = Weather(
            delay_s=(0.0002, slow), loss=self.random.choice([0.0, 0.0, 0.02, 0.2]), late=self.random.random()
        )


def run(seed: int, *, core_class: type[Core] = Core, lying_disks: bool = False) -> Report:
    """Run one seed. Raises Violation if a promise is broken: an acknowledged command lost, replicas that differ, two
    leaders in a term, a stale read, or no agreement in time after everything is repaired."""
    random = Random(seed)
    cluster = SimCluster(
        Ledger,
        seed=seed,
        size=random.choice([1, 3, 3, 5]) if seed % 2 else 3,
        spares=2 if seed % 2 else 0,
        snapshot_every_entries=random.choice([10, 40, 1_000]),
        keep_entries=random.choice([0, 5, 100]),
        segment_bytes=random.choice([500, 4_000, 1_000_000]),
        group_commands=random.choice([1, 3, 100]),
    )
    cluster.core_class = core_class
    for node in cluster.nodes.values():
        node.disk.lies = lying_disks
    storm = Storm(cluster, random)
    cluster.on_crash = storm._restart_later
    cluster.start()
    cluster.run_for(random.choice([0.0, 1.0]))
    storm.begin()
    cluster.run_for(STORM_S)
    storm.end()
    _converge(cluster, storm)
    _judge(cluster, storm)
    return Report(
        seed=seed,
        digest=cluster.digest(),
        acknowledged=len(storm.acknowledged),
        unknown=len(storm.asked) - len(storm.acknowledged),
        reads=storm.reads,
        faults=storm.faults,
        terms=max((node.core.term for node in cluster.nodes.values() if node.core), default=0),
        virtual_s=cluster.clock.monotonic(),
    )


def _converge(cluster: SimCluster[Ledger], storm: Storm) -> None:
    """A command proposed after the storm is acknowledged, and reaches everybody."""
    last: list[Answer] = []

    def acknowledged() -> bool:
        if not last or (last[-1].done and last[-1].error is not None):
            leader = cluster.leader()
            if leader is not None:
                last.append(cluster.propose(leader, b"last %d" % len(last)))
        return bool(last) and last[-1].done and last[-1].error is None

    def equal() -> bool:
        cores = [cluster.nodes[name].core for name in cluster.members()]
        return len({core.applied_index if core else -1 for core in cores}) == 1

    cluster.wait_until(acknowledged, within_s=HEAL_S, what="a command is acknowledged after everything is repaired")
    cluster.wait_until(equal, within_s=HEAL_S, what="all replicas have applied the same")
    storm.collect()


def _judge(cluster: SimCluster[Ledger], storm: Storm) -> None:
    cluster.ensure_same()
    machine = cluster.nodes[cluster.members()[0]].machine
    assert machine is not None
    held = machine.entries
    lost = [command for command, number in storm.acknowledged.items() if held[number - 1 : number] != [command]]
    if lost:
        raise Violation(f"{len(lost)} of {len(storm.acknowledged)} acknowledged commands are lost, first {lost[0]!r}")
    if len(set(held)) != len(held):
        raise Violation("a command was applied twice")
