"""One replica of a simulated cluster: its disk and its clock outlive it, everything else is made anew at each start."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from depalma.consensus.core import Core
from depalma.consensus.errors import JournalDamaged, OutcomeUnknown, Removed, SnapshotDamaged
from depalma.consensus.owners import Callback
from depalma.consensus.settings import StateMachine
from depalma.testing.clock import SkewedClock
from depalma.testing.disk import PowerCut, SimDisk

if TYPE_CHECKING:
    from depalma.testing.cluster import SimCluster

MachineT = TypeVar("MachineT", bound=StateMachine)

TICK_S = 0.02
#: what came in is taken up so much later: one tick for all of it
REACTION_S = 0.0003


class SimNode(Generic[MachineT]):
    """A place where a replica runs, is killed, stands still, and runs again."""

    def __init__(self, cluster: SimCluster[MachineT], name: str, disk: SimDisk, clock: SkewedClock) -> None:
        self.name = name
        self.disk = disk
        self.clock = clock
        self.core: Core | None = None
        self.machine: MachineT | None = None
        #: counts the starts, so that what was planned for an earlier life does not touch this one
        self.life = 0
        #: why it stopped by itself, if it did
        self.stopped_by: BaseException | None = None
        #: whether it has been told that it is no member any more: its operator starts it again to join
        self.removed = False
        #: it stands still, as after SIGSTOP or a suspend
        self.frozen = False
        self._cluster = cluster
        self._tick_planned = False
        #: by source, what happened to it while it stood still
        self._missed: dict[str, list[Callable[[], object]]] = {}
        #: clients do not wait for each other: each request is a source of its own
        self._asks = 0
        #: who asked for something meanwhile
        self._unheard: list[Callback] = []

    @property
    def up(self) -> bool:
        """Whether it runs."""
        return self.core is not None

    @property
    def found_damage(self) -> bool:
        """Whether it stopped because of what it read on its disk: to start it again is no use."""
        return isinstance(self.stopped_by, (JournalDamaged, SnapshotDamaged))

    def start(self) -> None:
        """Start on what the disk holds."""
        self.life += 1
        self.machine = self._cluster.make_machine()
        self._tick_planned = False
        self.stopped_by = None
        core = self._cluster.make_core(self, self.machine)
        life = self.life
        core.on_leadership = lambda leads, term: self._cluster.note_leadership(self.name, leads, term)
        core.on_applied = lambda index: self._cluster.note_applied(self.name, index)
        core.on_peers = lambda peers: self._cluster.network.let_in(self.name, [peer.id for peer in peers])
        self.core = core
        self.attempt(core.open)
        if self.core is None:
            return
        self._cluster.note_start(self)
        self._cluster.network.start(
            self.name,
            on_frame=lambda peer, frame: self._happens(peer, lambda: self._on_frame(peer, frame)),
            on_connected=lambda peer: self._happens(peer, lambda: self.attempt(lambda: core.connected(peer))),
            on_disconnected=lambda peer: self._happens(peer, lambda: self.attempt(lambda: core.disconnected(peer))),
        )
        self._on_timer(life)

    def stop(self) -> Core | None:
        """It is dead from now on; returns what it was."""
        core, self.core = self.core, None
        self.life += 1
        self.frozen = False
        self._missed.clear()
        unheard, self._unheard = self._unheard, []
        for callback in unheard:
            callback(None, OutcomeUnknown("crashed"))
        return core

    def freeze(self) -> None:
        """Stand still: no tick; what comes in waits until `thaw`."""
        self.frozen = True

    def thaw(self) -> None:
        """Go on. What came in meanwhile is taken up piece by piece: in order for each source only."""
        self.frozen = False
        self._unheard = []
        self.plan_tick()
        self._take_up(self.life)

    def ask(self, action: Callable[[Core], None], callback: Callback) -> None:
        """Have something asked of the replica, once it hears; whoever asks a dead one is told that nobody knows."""
        if self.frozen:
            self._unheard.append(callback)
        self._asks += 1
        self._happens(f"client {self._asks}", lambda: self._take(action))

    def attempt(self, action: Callable[[], object]) -> None:
        """Run something of the replica, which may kill it."""
        if self.core is None:
            return
        try:
            action()
        except PowerCut as cut:
            self._cluster.crash(self.name, power=cut.power)
        except Exception as error:  # as the real driver does: whatever comes out of a tick stops the replica
            self.stopped_by = error
            self.removed = self.removed or isinstance(error, Removed)
            self._cluster.note_stop(self.name, error)
            self._cluster.crash(self.name, power=False)

    def send(self, peer: str, frame: bytes) -> None:
        """Hand a frame to the network."""
        self._cluster.on_send(self.name, peer, frame)
        self._cluster.network.send(self.name, peer, frame)

    def plan_tick(self) -> None:
        """Tick soon; several reasons make one tick."""
        if self._tick_planned or self.core is None:
            return
        self._tick_planned = True
        life = self.life
        self._cluster.timeline.after(REACTION_S, lambda: self._tick(life))

    def _happens(self, source: str, event: Callable[[], object]) -> None:
        if self.frozen or source in self._missed:
            self._missed.setdefault(source, []).append(event)
        else:
            event()

    def _take_up(self, life: int) -> None:
        """One piece of what was missed, then soon the next."""
        if self.frozen or life != self.life or not self._missed:
            return
        source = self._cluster.random.choice(sorted(self._missed))
        waiting = self._missed[source]
        event = waiting.pop(0)
        if not waiting:
            del self._missed[source]
        event()
        self._cluster.timeline.after(self._cluster.random.uniform(0.0, REACTION_S), lambda: self._take_up(life))

    def _take(self, action: Callable[[Core], None]) -> None:
        if self.core is not None:
            action(self.core)
            self.plan_tick()

    def _on_frame(self, peer: str, frame: bytes) -> None:
        if self.core is not None:
            self.core.deliver(peer, frame)
            self.plan_tick()

    def _on_timer(self, life: int) -> None:
        if life == self.life and self.core is not None:
            self._cluster.timeline.after(TICK_S, lambda: self._on_timer(life))
            self._tick(life)

    def _tick(self, life: int) -> None:
        if life != self.life or self.core is None:
            return
        self._tick_planned = False
        if self.frozen:
            return
        core = self.core
        self.attempt(lambda: self.plan_tick() if core.tick() else None)
        if self.core is not None:
            self._cluster.check_node(self)
