"""One seeded run of 30 simulated seconds: a cluster under load in a storm, then healed, then judged."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from depalma.consensus.core import Core
from depalma.state.machine import Machine
from depalma.testing.agent_bugs import AgentBug
from depalma.testing.catch_up import CatchUp
from depalma.testing.clock import SkewedClock
from depalma.testing.cluster import Answer, SimCluster
from depalma.testing.job_load import JobLoad
from depalma.testing.ledger import Ledger
from depalma.testing.ledger_load import LedgerLoad
from depalma.testing.storm import Storm

#: virtual seconds of faults, and of the whole run
STORM_S = 20.0
RUN_S = 30.0
#: after everything is repaired: a command is acknowledged and has reached everybody
CONVERGE_S = 5.0


@dataclass(slots=True)
class Report:
    """What a run did. `digest` is equal for equal runs."""

    seed: int
    digest: str = ""
    replicas: int = 3
    load: str = ""
    acknowledged: int = 0
    unknown: int = 0
    reads: int = 0
    #: how many of each kind were injected
    faults: Counter[str] = field(default_factory=Counter)
    terms: int = 0
    virtual_s: float = 0.0


class Load(Protocol):
    """Clients of a cluster, who remember what they were told."""

    @property
    def acknowledged(self) -> int: ...
    @property
    def unknown(self) -> int: ...
    @property
    def reads(self) -> int: ...

    def begin(self) -> None:
        """Start."""
        ...

    def end(self) -> None:
        """Ask nothing more."""
        ...

    def finished(self) -> bool:
        """Whether everything that was begun has come to its end."""
        ...

    def probe(self, leader: str) -> Answer:
        """One more command."""
        ...

    def judge(self) -> None:
        """Raise Violation if what they were told is not what the replicas hold."""
        ...


@dataclass(slots=True)
class Simulation:
    """One run; `go` does it, and leaves everything to be looked at."""

    seed: int
    core_class: type[Core] = Core
    #: whether clients work with the product's state machine (or with a ledger); None: the seed decides
    jobs: bool | None = None
    #: of those runs that have agents
    agent_bug: AgentBug | None = None
    cluster: SimCluster[Any] = field(init=False)
    storm: Storm = field(init=False)
    load: Load = field(init=False)

    def __post_init__(self) -> None:
        random = Random(self.seed)
        chance = random.random()
        jobs = chance < 0.4 if self.jobs is None else self.jobs
        spares = 0 if jobs else random.choice([0, 2])
        self.cluster = SimCluster(
            Machine if jobs else Ledger,
            seed=self.seed,
            size=random.choice([1, 3, 5] if spares else [3, 3, 5]),
            spares=spares,
            state_hash=(lambda machine: machine.state_hash) if jobs else Ledger.state_hash,
            snapshot_every_entries=random.choice([10, 40, 1_000] if jobs else [4, 10, 40, 1_000]),
            keep_entries=random.choice([0, 5, 100]),
            segment_bytes=random.choice([500, 4_000, 1_000_000]),
            group_commands=random.choice([1, 3, 100]),
        )
        self.cluster.core_class = self.core_class
        if random.random() < 0.7:
            self._mix_clocks(random)
        if jobs:
            self.load = load = JobLoad(self.cluster, random)
            if self.agent_bug is not None:
                self.agent_bug.plant(load.hosts)
            self.storm = Storm(self.cluster, random)
        else:
            self.load = ledgers = LedgerLoad(self.cluster, random)
            self.storm = Storm(self.cluster, random, ledgers.change_members if spares else None)
        self.cluster.start()
        self.cluster.run_for(random.choice([0.0, 1.0]))

    def _mix_clocks(self, random: Random) -> None:
        """Every machine has its own idea of how fast time goes and of what time it is."""
        fastest = random.choice([1.05, 1.3])
        for node in self.cluster.nodes.values():
            node.clock = SkewedClock(
                self.cluster.clock,
                rate=random.uniform(1 / fastest, fastest),
                offset_s=random.uniform(0.0, 1e5),
                wall_s=random.uniform(-3_600.0, 3_600.0),
            )

    def go(self) -> Report:
        """Raises Violation if a promise is broken: something acknowledged lost, replicas that differ, two leaders in
        a term, a stale read, damage overlooked, or no agreement in time after everything is repaired."""
        cluster = self.cluster
        try:
            self._rage()
        finally:
            if isinstance(self.load, JobLoad):
                self.load.hosts.masters.close()
        faults = self.storm.faults + (self.load.hosts.faults if isinstance(self.load, JobLoad) else Counter())
        return Report(
            seed=self.seed,
            digest=cluster.digest(),
            replicas=len(cluster.founders),
            load=type(self.load).__name__,
            acknowledged=self.load.acknowledged,
            unknown=self.load.unknown,
            reads=self.load.reads,
            faults=faults + Counter({"disk replaced": self.storm.operator.wiped}),
            terms=max((node.core.term for node in cluster.nodes.values() if node.core), default=0),
            virtual_s=cluster.clock.monotonic(),
        )

    def _rage(self) -> None:
        self.load.begin()
        self.storm.begin()
        self.cluster.run_for(STORM_S - self.cluster.clock.monotonic())
        self.load.end()
        self.storm.end()
        self._converge()
        self.cluster.ensure_same()
        self.load.judge()

    def _converge(self) -> None:
        """A command proposed after the storm is acknowledged and reaches everybody; then everything ends."""
        cluster, last = self.cluster, list[Answer]()
        catch_up = CatchUp()
        cluster.on_send = catch_up.note

        def acknowledged() -> bool:
            if not last or (last[-1].done and last[-1].error is not None):
                leader = cluster.leader()
                if leader is not None:
                    last.append(self.load.probe(leader))
            return bool(last) and last[-1].done and last[-1].error is None

        def equal() -> bool:
            nodes = [cluster.nodes[name] for name in cluster.members() if not cluster.nodes[name].found_damage]
            return len({node.core.applied_index if node.core else -1 for node in nodes}) == 1

        healed_s = cluster.clock.monotonic()
        cluster.wait_until(acknowledged, within_s=CONVERGE_S, what="a command is acknowledged after all is repaired")
        left_s = healed_s + CONVERGE_S - cluster.clock.monotonic()
        cluster.wait_until(equal, within_s=left_s, what="all replicas have applied the same")
        left_s = healed_s + RUN_S - STORM_S - cluster.clock.monotonic()
        cluster.wait_until(
            lambda: self.load.finished() and self.storm.repaired and equal(),
            within_s=left_s,
            what="everything that was begun has ended, and every replica is whole",
        )
        catch_up.judge()
        cluster.run_for(max(0.0, RUN_S - cluster.clock.monotonic()))
        cluster.wait_until(equal, within_s=0.5, what="all replicas have applied the same")


def run(
    seed: int, *, core_class: type[Core] = Core, jobs: bool | None = None, agent_bug: AgentBug | None = None
) -> Report:
    """Run one seed. Raises Violation as `Simulation.go` does; a note on it says the digest of the run until then."""
    simulation = Simulation(seed, core_class, jobs, agent_bug)
    try:
        return simulation.go()
    except Exception as error:
        error.add_note(simulation.cluster.digest())
        raise
