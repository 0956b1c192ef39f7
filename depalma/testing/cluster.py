"""A whole cluster of replicas in one thread of one process, on virtual time, with simulated network and disks.

The replicas are the real ones (`depalma.consensus.core.Core`), their journal, snapshots and messages too. Runs
repeat exactly for the same seed. Use it with any state machine:

    cluster = SimCluster(MyMachine, seed=7)
    cluster.start()
    leader = cluster.wait_for_leader()
    answer = cluster.propose(leader, b"a command")
    cluster.run_for(1.0)
    assert answer.value is not None
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Generic

from depalma.consensus.core import Core
from depalma.consensus.errors import (
    DiskFailed,
    JournalDamaged,
    MembershipRefused,
    NotLeader,
    Removed,
    SnapshotDamaged,
    TransferFailed,
)
from depalma.consensus.settings import Member, ReplicaSettings, StateMachine
from depalma.consensus.snapshotter import InlineSnapshots
from depalma.testing.clock import ManualClock, SkewedClock, Timeline
from depalma.testing.disk import SimDisk
from depalma.testing.network import SimNetwork, Weather
from depalma.testing.node import TICK_S, MachineT, SimNode


class Violation(AssertionError):
    """The cluster broke a promise."""


@dataclass(slots=True)
class Answer:
    """What became of a proposal or a read: nothing yet, a value, or an error."""

    asked_at: float
    done: bool = False
    value: object = None
    error: BaseException | None = None
    _listeners: list[Callable[[], None]] = field(default_factory=list)

    def give(self, value: object, error: BaseException | None) -> None:
        """It is here."""
        self.done, self.value, self.error = True, value, error
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call when it is here, or at once."""
        if self.done:
            listener()
        else:
            self._listeners.append(listener)


class SimCluster(Generic[MachineT]):
    """Replicas m1, m2, … of a state machine, and the promises that they must keep.

    The first `size` of them found the cluster, the `spares` after them wait for being added to it.
    It raises Violation as soon as two replicas differ at the same index, two lead in one term, or a replica stops by
    itself without a fault that explains it.
    """

    #: what a replica is made of; tests replace it to plant a bug
    core_class: type[Core] = Core

    def __init__(
        self,
        make_machine: Callable[[], MachineT],
        *,
        seed: int = 0,
        size: int = 3,
        spares: int = 0,
        weather: Weather | None = None,
        state_hash: Callable[[MachineT], str] | None = None,
        check_every: int = 1,
        **settings: int,
    ) -> None:
        self.random = Random(seed)
        self.clock = ManualClock()
        self.timeline = Timeline(self.clock)
        self.network = SimNetwork(self.timeline, Random(self.random.random()), weather)
        self.make_machine = make_machine
        self.names = tuple(f"m{i}" for i in range(1, size + spares + 1))
        self.founders = self.names[:size]
        self.nodes = {
            name: SimNode(self, name, SimDisk(Random(self.random.random()), name=name), SkewedClock(self.clock))
            for name in self.names
        }
        self._state_hash = state_hash or _hash_of_snapshot
        self._check_every = check_every
        self._settings = settings
        self._hashes: dict[int, str] = {}
        self._leaders: dict[int, str] = {}
        #: called with the name of each replica that went down
        self.on_crash: Callable[[str], None] = lambda name: None
        #: called with its name when a replica begins (True) or ceases to lead a term, and when it has applied something
        self.on_leadership: Callable[[str, bool, int], None] = lambda name, leads, term: None
        self.on_applied: Callable[[str], None] = lambda name: None
        #: called with sender, receiver and frame of all that is sent, whether it arrives or not
        self.on_send: Callable[[str, str, bytes], None] = lambda sender, receiver, frame: None
        self._trace = hashlib.blake2b(digest_size=16)
        self.network.on_delivery = self._trace_delivery

    def settings_of(self, node: SimNode[MachineT]) -> ReplicaSettings:
        """What the replica is told when it starts."""
        founds = node.name in self.founders and not node.removed
        known = self.founders if node.name in self.founders else (*self.founders, node.name)
        return ReplicaSettings(
            id=node.name,
            members=tuple(member(name) for name in known),
            joining=not founds,
            directory=Path("/simulated"),
            **self._settings,  # type: ignore[arg-type]
        )

    def make_core(self, node: SimNode[MachineT], machine: MachineT) -> Core:
        """A new replica on the node's disk."""
        return self.core_class(
            self.settings_of(node),
            machine,
            disk=node.disk,
            clock=node.clock,
            random=Random(self.random.random()),
            send=node.send,
            snapshots=InlineSnapshots(),
        )

    # -- verbs ---------------------------------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        """Start these replicas, or all; each at its own moment within the next 20 ms."""
        for name in names or self.names:
            self.timeline.after(self.random.uniform(0, TICK_S), partial(self._start, name))

    def crash(self, name: str, *, power: bool = True, silently: bool | None = None) -> None:
        """Kill a replica: with `power` its disk forgets; `silently` its peers are not told that connections closed."""
        node = self.nodes[name]
        if not node.up:
            return
        self._note(f"crash {name} {power}")
        core = node.stop()
        node.disk.crash(power=power)
        if core is not None:
            core.fail_all("crashed")
        if self.network.has(name):
            self.network.stop(name, silently=self.random.random() < 0.3 and power if silently is None else silently)
        self.on_crash(name)

    def restart(self, name: str) -> None:
        """Start a replica that is down; nothing happens if it runs."""
        if not self.nodes[name].up:
            self._start(name)

    def freeze(self, name: str) -> None:
        """Let a replica stand still, as SIGSTOP does: its peers hear nothing, and what comes in waits."""
        node = self.nodes[name]
        if node.up and not node.frozen:
            self._note(f"freeze {name}")
            node.freeze()
            self.network.stall(name)

    def thaw(self, name: str) -> None:
        """Let it go on."""
        node = self.nodes[name]
        if node.frozen:
            self._note(f"thaw {name}")
            self.network.resume(name)
            node.thaw()

    def wipe(self, name: str) -> None:
        """Take the disk of a replica that is down away and give it an empty one."""
        assert not self.nodes[name].up
        self._note(f"wipe {name}")
        self.nodes[name].disk = SimDisk(Random(self.random.random()), name=name)

    def run_for(self, seconds: float) -> None:
        """Let so much virtual time pass."""
        self.timeline.run_for(seconds)

    def wait_until(self, condition: Callable[[], bool], *, within_s: float, what: str) -> None:
        """Let time pass until the condition holds. Raises Violation naming `what` if it does not in time."""
        deadline = self.clock.monotonic() + within_s
        while not condition():
            if self.clock.monotonic() > deadline:
                raise Violation(f"not within {within_s} s: {what}; {self.describe()}")
            self.run_for(0.02)

    def leader(self) -> str | None:
        """The replica that leads in the highest term, if any does."""
        leading = [
            (node.core.leads_term, name) for name, node in self.nodes.items() if node.core and node.core.leads_term
        ]
        return max(leading)[1] if leading else None

    def wait_for_leader(self, *, within_s: float = 5.0) -> str:
        """The leader, once there is one."""
        self.wait_until(lambda: self.leader() is not None, within_s=within_s, what="a leader")
        leader = self.leader()
        assert leader is not None
        return leader

    def propose(self, name: str, command: bytes) -> Answer:
        """Hand a command to a replica; look at the answer after some time."""
        return self._ask(name, lambda core, callback: core.propose(command, callback))

    def members(self) -> tuple[str, ...]:
        """Who the members are, as the one that has most of the log knows it."""
        cores = [node.core for node in self.nodes.values() if node.core is not None]
        if not cores:
            return self.founders
        best = max(cores, key=lambda core: (core.journal.log.last_term, core.journal.log.last_index))
        return tuple(sorted(best.membership.current.ids))

    def change_members(self, name: str, wanted: tuple[str, ...], command: bytes) -> Answer:
        """Ask a replica to make these the members."""
        members = tuple(member(one) for one in wanted)
        return self._ask(name, lambda core, callback: core.change_members(members, command, callback))

    def hand_over(self, name: str, target: str | None = None) -> Answer:
        """Ask a replica to let another one lead."""
        return self._ask(name, lambda core, callback: core.hand_over(target, callback))

    def read(self, name: str, look: Callable[[MachineT], object]) -> Answer:
        """Ask a replica for a linearizable read; the answer's value is `look(machine)` at that moment."""
        node = self.nodes[name]

        def ask(core: Core, callback: Callable[[object, BaseException | None], None]) -> None:
            def look_now(index: object, error: BaseException | None) -> None:
                assert node.machine is not None
                callback(look(node.machine) if error is None else None, error)

            core.barrier(look_now)

        return self._ask(name, ask)

    def describe(self) -> str:
        """One line about every replica."""
        lines = []
        for name, node in self.nodes.items():
            core = node.core
            lines.append(
                f"{name}: term {core.term} leader {core.leader_id} applied {core.applied_index}"
                if core
                else f"{name}: down"
            )
        return f"at {self.clock.monotonic():.3f}: " + "; ".join(lines)

    def digest(self) -> str:
        """Hash over everything that happened so far."""
        return self._trace.hexdigest()

    def ensure_same(self) -> None:
        """Raise Violation unless all members run and hold the same state."""
        members = [self.nodes[name] for name in self.members()]
        seen = {
            (node.core.applied_index, self._state_hash(node.machine)) if node.core and node.machine else None
            for node in members
        }
        if len(seen) != 1 or None in seen:
            raise Violation(f"the replicas differ: {self.describe()}")

    def _ask(self, name: str, ask: Callable[[Core, Callable[[object, BaseException | None], None]], None]) -> Answer:
        answer = Answer(self.clock.monotonic())
        node = self.nodes[name]

        def action(core: Core) -> None:
            try:
                ask(core, answer.give)
            except (NotLeader, MembershipRefused, TransferFailed) as error:
                answer.give(None, error)

        if node.up:
            node.ask(action, answer.give)
        else:
            answer.give(None, NotLeader(None))
        return answer

    def _start(self, name: str) -> None:
        self._note(f"start {name}")
        self.nodes[name].start()

    # -- what must hold ------------------------------------------------------------------------------------------

    def note_leadership(self, name: str, leads: bool, term: int) -> None:
        """Called by a replica that begins or ceases to lead."""
        self._note(f"lead {name} {leads} {term}")
        self.on_leadership(name, leads, term)

    def note_start(self, node: SimNode[MachineT]) -> None:
        """Called by a replica that has opened its disk: it must not have overlooked damage."""
        if node.disk.damage:
            raise Violation(f"{node.name} started without noticing {node.disk.damage}")
        assert node.core is not None
        self.note_applied(node.name, node.core.applied_index)

    def note_applied(self, name: str, index: int) -> None:
        """Called by a replica after it applied something: the state at an index is the same everywhere."""
        self.on_applied(name)
        machine = self.nodes[name].machine
        if machine is None or index % self._check_every:
            return
        found = self._state_hash(machine)
        expected = self._hashes.setdefault(index, found)
        if found != expected:
            raise Violation(f"{name} differs from another replica at command {index}")

    def note_stop(self, name: str, error: BaseException) -> None:
        """A replica stopped by itself: right only if its disk was made to fail, or damaged, or it was removed."""
        self._note(f"stop {name} {type(error).__name__}")
        if isinstance(error, Violation):
            raise error
        disk = self.nodes[name].disk
        failed = isinstance(error, DiskFailed) and disk.ails
        damaged = isinstance(error, (JournalDamaged, SnapshotDamaged)) and disk.damage
        if not (failed or damaged or isinstance(error, Removed)):
            raise Violation(f"{name} stopped: {type(error).__name__}: {error}") from error

    def check_node(self, node: SimNode[MachineT]) -> None:
        """At most one leads in a term; what was applied is in the log: on every replica, at all times."""
        core = node.core
        assert core is not None
        log, engine = core.journal.log, core.engine
        if engine.leading and self._leaders.setdefault(engine.term, node.name) != node.name:
            raise Violation(f"{node.name} and {self._leaders[engine.term]} both lead in term {engine.term}")
        if not engine.applied <= engine.commit_index <= log.last_index:
            raise Violation(
                f"{node.name} has applied {engine.applied} and committed {engine.commit_index}, "
                f"but its log ends at {log.last_index}"
            )

    def _note(self, text: str) -> None:
        self._trace.update(f"{self.clock.monotonic():.6f} {text}\n".encode())

    def _trace_delivery(self, at: float, sender: str, receiver: str, frame: bytes) -> None:
        self._trace.update(b"%.6f %b %b " % (at, sender.encode(), receiver.encode()))
        self._trace.update(frame)


def member(name: str) -> Member:
    """A member as the simulated replicas know it."""
    return Member(id=name, host="simulated", raft_port=int(name[1:]))


def _hash_of_snapshot(machine: StateMachine) -> str:
    own = getattr(machine, "state_hash", None)
    if callable(own):
        return str(own())
    return hashlib.blake2b(b"".join(machine.snapshot()), digest_size=8).hexdigest()
