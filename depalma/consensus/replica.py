"""A replica on an asyncio loop: the core, ticked when something comes in and every 20 ms, and its connections."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import SystemRandom

from depalma.certificates import CertificateFiles
from depalma.clock import SystemClock
from depalma.consensus.core import Core
from depalma.consensus.disk import FileDisk, disk_errors
from depalma.consensus.errors import (
    Explained,
    MembershipRefused,
    NotLeader,
    OutcomeUnknown,
    ReplicaStopped,
    TransferFailed,
)
from depalma.consensus.identity import Identity, claim
from depalma.consensus.keyring import Keyring
from depalma.consensus.membership import Members
from depalma.consensus.owners import Callback
from depalma.consensus.settings import ReplicaSettings, StateMachine
from depalma.consensus.snapshot import Snapshot
from depalma.consensus.snapshotter import ForkedSnapshots
from depalma.consensus.transport import Mesh

logger = logging.getLogger(__name__)

TICK_S = 0.02


class Replica:
    """One member of the cluster: keeps `machine` equal on all members by applying the same commands in one order.

    Use it on one running loop. `on_fatal` is called once, on the loop, with the reason, when the replica had to
    stop by itself (disk, damaged file, broken invariant): it has then acknowledged nothing that it could not store,
    and the process should end. An exception out of a listener is such a reason too.
    """

    def __init__(
        self,
        settings: ReplicaSettings,
        machine: StateMachine,
        *,
        certificates: CertificateFiles,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._settings = settings
        self._on_fatal = on_fatal
        self._disk = FileDisk(settings.directory)
        self._keyring = Keyring(certificates, settings.id)
        self._mesh = Mesh(
            settings,
            self._keyring,
            on_frame=self._receive,
            on_connected=self._connected,
            on_disconnected=self._disconnected,
        )
        self._machine = machine
        self._core = self._make_core(settings)
        self._leadership_listeners: list[Callable[[bool, int], None]] = []
        self._applied_listeners: list[Callable[[int], None]] = []
        self._loop: asyncio.AbstractEventLoop
        self._running = False
        self._tick_is_due = False
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Open the disk, restore the state, listen: ready to take part, with or without a leader.

        Raises ConfigError for certificates that cannot be used, DirectoryInUse, WrongDirectory, DiskFailed,
        JournalDamaged, SnapshotDamaged, Removed, or OSError if the port is taken.
        """
        self._loop = asyncio.get_running_loop()
        self._keyring.load()
        with disk_errors("opening", str(self._settings.directory)):
            self._disk.open()
        try:
            with disk_errors("opening", str(self._settings.directory)):
                wanted = Identity(self._settings.id, self._settings.cluster, self._settings.joining)
                if claim(self._disk, wanted).joining:
                    self._core = self._make_core(replace(self._settings, joining=True))
            self._core.open()
            self._running = True
            await self._mesh.start()
        except BaseException:
            self._running = True  # so that whatever was opened is closed
            self._shut("the replica could not start")
            raise
        self._timer = self._loop.call_later(0, self._on_timer)

    async def stop(self) -> None:
        """Hand leadership over if this replica leads and can, then close everything. Stopping twice is harmless.

        Who still waits for an answer gets OutcomeUnknown.
        """
        if self.is_leader:
            try:
                logger.info("%s hands over to %s", self._settings.id, await self.hand_over())
            except (TransferFailed, NotLeader, OutcomeUnknown) as error:
                logger.info("%s does not hand over: %s", self._settings.id, error)
        self._shut("the replica was stopped")
        await self._mesh.wait_closed()

    async def propose(self, command: bytes, *, timeout_s: float = 10.0) -> object:
        """Replicate the command; returns what `apply` answered here, once a majority has it on disk.

        Raises NotLeader if it was surely not appended, OutcomeUnknown if leadership was lost or `timeout_s` is
        over, CommandTooLarge, ReplicaStopped.
        """
        return await self._ask(lambda callback: self._core.propose(command, callback), timeout_s)

    async def barrier(self, *, timeout_s: float = 10.0) -> int:
        """Return the applied index at a moment from which on reading the state here is linearizable.

        All who wait at the same time share one round of messages. Raises NotLeader, OutcomeUnknown, ReplicaStopped.
        """
        index = await self._ask(self._core.barrier, timeout_s)
        assert isinstance(index, int)
        return index

    @property
    def members(self) -> Members:
        """Who the members are, by the newest entry in the log here; the last change may not be committed yet."""
        return self._core.membership.current.members

    @property
    def members_recorded(self) -> bool:
        """Whether the log says who the members are, and not only the settings of each."""
        return self._core.membership.current.number > 0

    async def change_members(self, members: Members, command: bytes, *, timeout_s: float = 30.0) -> object:
        """Make these the members, of whom one may be new or missing; returns what `apply` answered to the command.

        Whoever joins has to run and to catch up within `timeout_s`; if it does not, nothing was changed.
        Raises MembershipRefused, NotLeader, OutcomeUnknown, ReplicaStopped.
        """
        joining = {member.id for member in members} - {member.id for member in self.members}
        slow = ", ".join(sorted(joining)) or "the majority"
        late = MembershipRefused("not_ready", f"{slow} did not catch up within {timeout_s:.3g} s; nothing was changed")
        timer = self._loop.call_later(timeout_s, self._core.give_up_change, late)
        try:
            return await self._ask(
                lambda callback: self._core.change_members(members, command, callback), timeout_s + 10.0
            )
        except asyncio.CancelledError:
            self._core.give_up_change(late)
            raise
        finally:
            timer.cancel()

    async def hand_over(self, target: str | None = None, *, timeout_s: float = 5.0) -> str:
        """Let another member lead (None: the one nearest to it); returns its id when this one has given way to it.

        Raises TransferFailed (this replica goes on leading), NotLeader, OutcomeUnknown, ReplicaStopped.
        """
        chosen = await self._ask(lambda callback: self._core.hand_over(target, callback), timeout_s)
        assert isinstance(chosen, str)
        return chosen

    async def snapshot(self, *, timeout_s: float = 600.0) -> Path:
        """Return the file of a durable snapshot that holds everything applied here at this moment, or more.

        Open it at once: the next one takes its place. Raises SnapshotFailed, OutcomeUnknown, ReplicaStopped.
        """
        snapshot = await self._ask(self._core.snapshot, timeout_s)
        assert isinstance(snapshot, Snapshot)
        return Path(self._disk.path(snapshot.name))

    @property
    def is_leader(self) -> bool:
        """Whether this replica leads and has applied all of its past. Another may have been elected already."""
        return self._running and self._core.leads_term is not None

    @property
    def term(self) -> int:
        """The current term."""
        return self._core.term

    @property
    def leader_id(self) -> str | None:
        """The leader, if one is known and reachable."""
        return self._core.leader_id if self._running else None

    @property
    def commit_index(self) -> int:
        """Number of the last command known here to be committed."""
        return self._core.commit_index if self._running else self._core.applied_index

    @property
    def has_joined(self) -> bool:
        """Whether this replica has once held everything that was committed: until then it may not elect."""
        return self._core.journal.joined

    @property
    def applied_index(self) -> int:
        """Number of the last command applied here."""
        return self._core.applied_index

    def add_leadership_listener(self, f: Callable[[bool, int], None]) -> None:
        """Call `f(is_leader, term)` on the loop at each change; True once everything of the past is applied."""
        self._leadership_listeners.append(f)

    def add_applied_listener(self, f: Callable[[int], None]) -> None:
        """Call `f(applied_index)` on the loop after each tick that applied something."""
        self._applied_listeners.append(f)

    def contacts(self) -> dict[str, float]:
        """Seconds since each other member was last heard."""
        return self._mesh.contacts()

    def refused_connections(self) -> dict[str, int]:
        """How many connections were refused since the start, for each reason that there is (tls.Reason)."""
        return {str(reason): count for reason, count in self._mesh.refused.items()}

    def certificate_seconds_left(self) -> float:
        """Seconds until our own certificate ends; negative after that."""
        return self._keyring.seconds_left()

    def _make_core(self, settings: ReplicaSettings) -> Core:
        core = Core(
            settings,
            self._machine,
            disk=self._disk,
            clock=SystemClock(),
            random=SystemRandom(),
            send=self._mesh.send,
            snapshots=ForkedSnapshots(),
        )
        core.on_leadership = self._tell_leadership
        core.on_applied = self._tell_applied
        core.on_peers = self._mesh.set_members
        return core

    async def _ask(self, ask: Callable[[Callback], None], timeout_s: float) -> object:
        if not self._running:
            raise ReplicaStopped("the replica is not running")
        future: asyncio.Future[object] = self._loop.create_future()

        def answer(value: object, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

        ask(answer)
        self._wake()
        late = OutcomeUnknown(f"no answer within {timeout_s} s")
        timer = self._loop.call_later(timeout_s, answer, None, late)
        try:
            return await future
        finally:
            timer.cancel()

    def _receive(self, peer: str, frame: bytes) -> None:
        self._core.deliver(peer, frame)
        self._wake()

    def _connected(self, peer: str) -> None:
        self._core.connected(peer)
        self._wake()

    def _disconnected(self, peer: str) -> None:
        self._core.disconnected(peer)
        self._wake()

    def _wake(self) -> None:
        """Tick as soon as everything that is ready now has been read: so one sync serves it all."""
        if not self._tick_is_due and self._running:
            self._tick_is_due = True
            self._loop.call_soon(self._tick)

    def _on_timer(self) -> None:
        if self._running:
            self._timer = self._loop.call_later(TICK_S, self._on_timer)
            self._tick()

    def _tick(self) -> None:
        self._tick_is_due = False
        if not self._running:
            return
        try:
            more = self._core.tick()
        except Exception as error:
            traceback = None if isinstance(error, Explained) else error
            logger.critical("replica %s stops: %s", self._settings.id, error, exc_info=traceback)
            self._shut(f"the replica stopped: {error}")
            self._on_fatal(error)
            return
        if more:
            self._wake()

    def _shut(self, reason: str) -> None:
        was_running, self._running = self._running, False
        if self._timer is not None:
            self._timer.cancel()
        self._mesh.close()
        if was_running:
            self._core.fail_all(reason)
            self._core.close()
        self._disk.close()

    def _tell_leadership(self, leads: bool, term: int) -> None:
        logger.info("%s %s in term %d", self._settings.id, "leads" if leads else "no longer leads", term)
        for listener in self._leadership_listeners:
            listener(leads, term)

    def _tell_applied(self, index: int) -> None:
        for listener in self._applied_listeners:
            listener(index)
