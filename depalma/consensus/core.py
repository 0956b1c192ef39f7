"""One replica without a loop, a socket or a thread: the same code runs for real and in simulation.

The driver hands in frames (`deliver`) and time (`tick`); the core hands frames to `send` and answers to callbacks,
both only after everything they follow from is on disk.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from random import Random

from depalma import __version__
from depalma.clock import Clock
from depalma.consensus import envelope, membership
from depalma.consensus.acquaintance import Acquaintances
from depalma.consensus.council import Council
from depalma.consensus.disk import Disk, disk_errors
from depalma.consensus.election import Timing
from depalma.consensus.engine import Engine
from depalma.consensus.errors import (
    ApplyFailed,
    CommandTooLarge,
    ConsensusError,
    NotLeader,
    OutcomeUnknown,
    Removed,
    SnapshotDamaged,
    SnapshotFailed,
)
from depalma.consensus.journal import Journal
from depalma.consensus.log import FIRST_INDEX
from depalma.consensus.membership import Members, Membership
from depalma.consensus.messages import BadMessage, Introduce, Message, decode, encode
from depalma.consensus.owners import Callback
from depalma.consensus.reads import Reads
from depalma.consensus.settings import MIB, ReplicaSettings, Roster, StateMachine
from depalma.consensus.snapshot import Snapshot, SnapshotStore, open_log, reconcile
from depalma.consensus.snapshot_format import Header
from depalma.consensus.snapshotter import SnapshotWriter, uncollected

logger = logging.getLogger(__name__)

#: how much of the log is kept behind a snapshot at most
KEEP_BYTES = 32 * MIB
#: appended but not yet committed; more proposals wait in memory
UNCOMMITTED_BYTES = 32 * MIB
SNAPSHOT_RETRY_S = 30.0


class Core:
    """One replica. Not thread safe; every method but `open` and `close` needs `open` first.

    Any exception out of `tick` means that the replica must stop: it has then sent and answered nothing that is not
    on disk, and whoever waits for an answer has to be told that the outcome is unknown (`fail_all`).
    """

    engine_class = Engine
    journal_class = Journal
    reads_class = Reads

    def __init__(
        self,
        settings: ReplicaSettings,
        machine: StateMachine,
        *,
        disk: Disk,
        clock: Clock,
        random: Random,
        send: Callable[[str, bytes], None],
        snapshots: SnapshotWriter,
    ) -> None:
        self._settings = settings
        self._machine = machine
        self._clock = clock
        self._random = random
        self._transmit = send
        self._writer = snapshots
        self._disk = disk
        self._store = SnapshotStore(disk)
        #: the log on disk, and the Raft that decides about it; to look at, not to touch
        self.journal = self.journal_class(disk, segment_bytes=settings.segment_bytes)
        self.engine: Engine
        self.membership = Membership(self.journal.log, () if settings.joining else settings.members)
        self._council: Council
        self._is_open = False
        self._was_member = False
        self._acquaintances = Acquaintances(settings.id, settings.members, self.membership)
        #: connected since the last tick
        self._new_peers: set[str] = set()
        #: number of the last command applied
        self.applied_index = 0
        #: the term in which this replica leads and has applied all of its past; None while it does not
        self.leads_term: int | None = None
        self.on_leadership: Callable[[bool, int], None] = lambda leads, term: None
        self.on_applied: Callable[[int], None] = lambda index: None
        #: told whom to be connected with, this replica excepted, whenever that changes
        self.on_peers: Callable[[Members], None] = lambda members: None
        self._inbox: list[tuple[str, bytes]] = []
        self._outbox: list[tuple[str, Message]] = []
        self._queue: deque[tuple[bytes, Callback]] = deque()
        #: log index → bytes and callbacks of the entry's commands, appended in the reign that lasts
        self._pending: dict[int, tuple[int, list[Callback] | None]] = {}
        self._uncommitted_bytes = 0
        self._answers: list[tuple[Callback, object, BaseException | None]] = []
        self._news: list[tuple[bool, int]] = []
        self._reads: Reads
        self._writing: Header | None = None
        #: who asked for a snapshot, and what it must hold
        self._wanted: list[tuple[int, Callback]] = []
        self._bytes_at_snapshot = 0
        self._retry_snapshot_at = float("-inf")

    def open(self) -> None:
        """Read snapshot and journal. Raises JournalDamaged, SnapshotDamaged, DiskFailed."""
        with disk_errors("opening", self._disk.path("")):
            # Names that an earlier process made may not be on the disk yet; nothing may follow from them before.
            self._disk.sync_dir()
        state = open_log(self._disk, self._store, self.journal)
        snapshot = self._store.newest
        if snapshot is not None and state is not None:
            self.restore(snapshot, state)
            self.reconcile(snapshot)
            self.membership.rebase(snapshot.roster)
        self.engine = self.engine_class(
            me=self._settings.id,
            membership=self.membership,
            journal=self.journal,
            snapshots=self._store,
            clock=self._clock,
            timing=Timing(
                self._settings.election_s, self._settings.heartbeat_s, self._settings.fallback_s, self._random
            ),
            owner=self,
        )
        self._reads = self.reads_class(self.engine)
        self._council = Council(self._settings.id, self.engine, self.membership, self, self._settings.election_s[1])
        self._is_open = True
        self.engine.start(snapshot)
        settled = self.membership.index <= self.engine.commit_index
        if not self.engine.is_member and settled and not self._settings.joining:
            raise Removed(self._settings.id)
        self._bytes_at_snapshot = self.journal.written_bytes

    def close(self) -> None:
        """Close the files. Whoever waits for an answer is told by `fail_all`."""
        self._writer.cancel()
        self._store.close()
        self.journal.close()

    # -- what the driver reads -----------------------------------------------------------------------------------

    @property
    def term(self) -> int:
        """The current term."""
        return self.journal.term

    @property
    def leader_id(self) -> str | None:
        """The leader of this term, if one is known and reachable."""
        return self.engine.leader_id

    @property
    def commit_index(self) -> int:
        """Number of the last command known to be committed."""
        first, last = self.engine.applied + 1, self.engine.commit_index
        entries = (self.journal.log.entry(index)[0] for index in range(first, last + 1))
        return self.applied_index + sum(len(envelope.unpack(entry)) for entry in entries)

    # -- what the driver does ------------------------------------------------------------------------------------

    def connected(self, peer: str) -> None:
        """Frames can go to the peer and come from it."""
        self.engine.connected(peer)
        self._new_peers.add(peer)

    def disconnected(self, peer: str) -> None:
        """They can no longer. What was sent may or may not have arrived."""
        self.engine.disconnected(peer)

    def deliver(self, peer: str, frame: bytes) -> None:
        """A frame from an authenticated member; taken up by the next tick."""
        self._inbox.append((peer, frame))

    def propose(self, command: bytes, callback: Callback) -> None:
        """Ask for the command to be replicated; the callback comes out of a later tick, exactly once.

        Raises CommandTooLarge, and NotLeader if this replica does not lead.
        """
        if len(command) > self._settings.max_command_bytes:
            raise CommandTooLarge(len(command), self._settings.max_command_bytes)
        if not self.engine.leading:
            raise NotLeader(self.engine.leader_id)
        self._queue.append((command, callback))

    def barrier(self, callback: Callback) -> None:
        """Call back with `applied_index` once all that was committed at this moment is applied here.

        What the state machine then shows is linearizable. Raises NotLeader if this replica does not lead.
        """
        if not self.engine.leading:
            raise NotLeader(self.engine.leader_id)
        self._reads.ask(callback)

    def snapshot(self, callback: Callback) -> None:
        """Call back with a durable Snapshot that holds everything applied at this moment, and perhaps more.

        The error may be SnapshotFailed: it could not be written, the replica goes on.
        """
        self._wanted.append((self.engine.applied, callback))

    def change_members(self, members: Members, command: bytes, callback: Callback) -> None:
        """Make these the members; the callback comes, with what `apply` answers to the command, when that is committed.

        One may join or leave at a time. Who joins first gets the log; until then `give_up_change` ends it.
        Raises NotLeader, MembershipRefused.
        """
        self._council.change(members, command, callback, self._clock.monotonic())

    def give_up_change(self, error: BaseException) -> bool:
        """End a change whose entry has not been appended, with this error; False if there is none: it goes on."""
        return self._council.give_up(error)

    def hand_over(self, target: str | None, callback: Callback) -> None:
        """Let another member lead (None: the one nearest to it); called back with its id when this one has given way.

        The error may be TransferFailed: then this replica still leads. Raises NotLeader, TransferFailed.
        """
        self._council.hand_over(target, callback, self._clock.monotonic())

    def tick(self) -> bool:
        """Take up what came in and let time pass; returns True if another tick is due at once."""
        inbox, self._inbox = self._inbox, []
        for peer, frame in inbox:
            try:
                message = decode(frame)
            except BadMessage as error:
                logger.error("dropping a frame of %s that is no message: %s", peer, error)
                continue
            if isinstance(message, Introduce):
                self._acquaintances.hear(message)
            else:
                self.engine.receive(peer, message)
        applied = self.applied_index
        self._reads.start_round()
        self.engine.tick()
        self._introduce()
        self.journal.flush()
        # Everything that happened up to here is on disk: now the world may know.
        self._send_outbox()
        self._follow_members()
        self._answers.extend((callback, self.applied_index, None) for callback in self._reads.finished())
        self._tell_leadership()
        self._give_answers()
        if self.applied_index != applied:
            self.on_applied(self.applied_index)
        self._maintain_snapshots()
        return self.engine.needs_tick or self._reads.wait_for_a_round

    def fail_all(self, reason: str) -> None:
        """Tell everybody who waits that the outcome is unknown; also those whose answer is ready, but not on disk."""
        unknown = OutcomeUnknown(reason)
        self._answers = [(callback, None, error or unknown) for callback, _, error in self._answers]
        if self._is_open:
            self._council.close(reason)
            self._answers += [(callback, None, unknown) for callback in self._reads.give_up()]
        self._fail_pending(reason)
        for _, callback in (*self._queue, *self._wanted):
            self._answers.append((callback, None, unknown))
        self._queue.clear()
        self._wanted = []
        self._give_answers()

    # -- EngineOwner ---------------------------------------------------------------------------------------------

    def send(self, peer: str, message: Message) -> None:
        self._outbox.append((peer, message))

    def append_proposals(self) -> None:
        """Group commit: what was proposed since the last tick goes into as few entries as the limits allow.

        Called after what was committed has been applied: whatever is appended here is on disk before it is counted,
        also where this replica alone is the majority.
        """
        self._council.tick(self._clock.monotonic())
        while self._queue and self._uncommitted_bytes < UNCOMMITTED_BYTES and not self._council.holds_proposals:
            group = self._next_group()
            commands = [command for command, _ in group]
            self._append(envelope.pack(commands), commands, [callback for _, callback in group])

    def _append(self, entry: bytes, commands: list[bytes], callbacks: list[Callback]) -> int:
        index = self.engine.append(entry)
        size = sum(len(command) for command in commands)
        self._pending[index] = (size, callbacks)
        self._uncommitted_bytes += size
        return index

    def _next_group(self) -> list[tuple[bytes, Callback]]:
        group = [self._queue.popleft()]
        size = len(group[0][0])
        while self._queue and len(group) < self._settings.group_commands:
            size += len(self._queue[0][0])
            if size > self._settings.group_bytes:
                break
            group.append(self._queue.popleft())
        return group

    def apply_entry(self, index: int, entry: bytes) -> None:
        size, callbacks = self._pending.pop(index, (0, None))
        self._uncommitted_bytes -= size
        for position, command in enumerate(envelope.unpack(entry)):
            try:
                answer = self._machine.apply(command, self.applied_index + 1)
            except Exception as error:
                raise ApplyFailed(self.applied_index + 1, error) from error
            self.applied_index += 1
            if callbacks is not None:
                self._answers.append((callbacks[position], answer, None))

    def restore(self, snapshot: Snapshot, state: Iterable[bytes]) -> None:
        try:
            with uncollected():
                self._machine.restore(state)
        except ConsensusError:
            raise
        except Exception as error:
            raise SnapshotDamaged(
                self._disk.path(snapshot.name), f"restoring it raised {type(error).__name__}: {error}"
            ) from error
        self.applied_index = snapshot.sequence
        self._writer.cancel()
        self._writing = None

    def role_changed(self, leading: bool) -> None:
        if leading:
            return
        if self.leads_term is not None:
            self._news.append((False, self.leads_term))
            self.leads_term = None
        self._council.leadership_lost()
        leader = self.engine.leader_id
        self._fail_pending("leadership was lost before the command was committed")
        for _, callback in self._queue:
            self._answers.append((callback, None, NotLeader(leader)))
        self._queue.clear()
        self._answers += [(callback, None, NotLeader(leader)) for callback in self._reads.give_up()]

    # -- CouncilOwner --------------------------------------------------------------------------------------------

    def append_membership(self, roster: Roster, command: bytes, callback: Callback) -> int:
        return self._append(membership.pack(roster, [command]), [command], [callback])

    def answer(self, callback: Callback, value: object, error: BaseException | None) -> None:
        self._answers.append((callback, value, error))

    # -- steps of a tick -----------------------------------------------------------------------------------------

    def reconcile(self, snapshot: Snapshot) -> None:
        """Make the journal go on after the snapshot that was found at the start."""
        reconcile(self.journal, snapshot)

    def _follow_members(self) -> None:
        """Tell whom to be connected with, and stop when the cluster has removed this replica."""
        peers = self._acquaintances.changed(self.engine.commit_index, self._council.guests, self._council.version)
        if peers is None:
            return
        self.on_peers(peers)
        if self.engine.is_member:
            self._was_member = True
        elif self._was_member and self.membership.index <= self.engine.commit_index:
            raise Removed(self._settings.id)

    def _introduce(self) -> None:
        new, self._new_peers = self._new_peers, set()
        self._outbox += self._acquaintances.introductions(self.term, self.engine.connected_peers, new)

    def _send_outbox(self) -> None:
        outbox, self._outbox = self._outbox, []
        for peer, message in outbox:
            self._transmit(peer, encode(message))

    def _tell_leadership(self) -> None:
        if self.engine.established and self.leads_term is None:
            self.leads_term = self.engine.term
            self._news.append((True, self.leads_term))
        news, self._news = self._news, []
        for leads, term in news:
            self.on_leadership(leads, term)

    def _give_answers(self) -> None:
        answers, self._answers = self._answers, []
        for callback, answer, error in answers:
            callback(answer, error)

    def _fail_pending(self, reason: str) -> None:
        for _, callbacks in self._pending.values():
            self._answers.extend((callback, None, OutcomeUnknown(reason)) for callback in callbacks or ())
        self._pending = {}
        self._uncommitted_bytes = 0

    # -- snapshots -----------------------------------------------------------------------------------------------

    def _maintain_snapshots(self) -> None:
        if self._writing is not None:
            self._finish_snapshot(self._writing)
        elif self._snapshot_due():
            index = self.engine.applied
            term = self.journal.log.term_at(index)
            roster = self.membership.recorded_at(index)
            self._writing = Header(index, term, self.applied_index, self._settings.cluster, __version__, roster)
            self._bytes_at_snapshot = self.journal.written_bytes
            self._writer.begin(self._store, self._writing, self._machine.snapshot)
        if self._wanted:
            self._answer_wanted()

    def _snapshot_due(self) -> bool:
        newest = self._store.newest
        entries = self.engine.applied - (newest.index if newest else FIRST_INDEX)
        if not entries:
            return False
        if self._wanted:
            return True
        if self.engine.transferring or self._clock.monotonic() < self._retry_snapshot_at:
            return False
        written = self.journal.written_bytes - self._bytes_at_snapshot
        return entries >= self._settings.snapshot_every_entries or written >= self._settings.snapshot_every_bytes

    def _finish_snapshot(self, writing: Header) -> None:
        written = self._writer.poll()
        if written is None:
            return
        self._writing = None
        if not written:
            self._retry_snapshot_at = self._clock.monotonic() + SNAPSHOT_RETRY_S
            failed = SnapshotFailed(self._disk.path(""))
            self._answers.extend((callback, None, failed) for _, callback in self._wanted)
            self._wanted = []
            return
        snapshot = self._store.publish(writing)
        if snapshot is not None:
            self.membership.rebase(snapshot.roster)
            self.journal.compact(self.journal.log.keep_behind(snapshot.index, self._settings.keep_entries, KEEP_BYTES))

    def _answer_wanted(self) -> None:
        newest = self._store.newest
        reached = newest.index if newest else FIRST_INDEX
        self._answers += [(callback, newest, None) for index, callback in self._wanted if newest and index <= reached]
        self._wanted = [(index, callback) for index, callback in self._wanted if not newest or index > reached]
