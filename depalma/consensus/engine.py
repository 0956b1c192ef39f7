"""PySyncObj 0.3.17, and the only place that knows it: every private name of it that we use stands in this file.

PySyncObj decides terms, votes, leadership, commitment and the order of applying. What surrounds these decisions is
ours: the log on disk, what is sent, what is let in, and snapshots. See DESIGN.md for each guard and why it is safe.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable
from typing import Any, Protocol

import pysyncobj.syncobj as library
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from depalma.clock import Clock
from depalma.consensus.append_filter import Accepted, filter_append
from depalma.consensus.election import Ballot, Standing, Timing
from depalma.consensus.envelope import NO_OP
from depalma.consensus.errors import SnapshotDamaged
from depalma.consensus.journal import Journal
from depalma.consensus.log import Entry
from depalma.consensus.messages import (
    Append,
    AppendReply,
    Install,
    InstallReply,
    Message,
    PreVote,
    PreVoteReply,
    Vote,
    VoteReply,
)
from depalma.consensus.replication import LOST_AFTER_HEARTBEATS, Follower, next_append
from depalma.consensus.settings import MIB
from depalma.consensus.snapshot import Snapshot, SnapshotStore

logger = logging.getLogger(__name__)

LIBRARY_VERSION = "0.3.17"

INSTALL_BYTES = 1 * MIB
#: a follower learns of a commit with the next entries, or after so long
COMMIT_NOTICE_S = 0.015
#: entries are applied for so long at a time, then the loop gets its turn
APPLY_S = 0.02
#: a tick that comes so much later than the one before means that we were not scheduled
LATE_TICK_S = 0.08

#: an election deadline that is over for the library, and tells us that the others have agreed
_STAND_NOW = float("-inf")

_FOLLOWER = library._RAFT_STATE.FOLLOWER
_CANDIDATE = library._RAFT_STATE.CANDIDATE
_LEADER = library._RAFT_STATE.LEADER

# The library reads the time and makes its journal by module globals. Both are replaced for good, by functions that
# do what the engine that is just running wants: so engines with different clocks can live in one process.
_running_clock: Callable[[], float] = time.monotonic


def _library_time() -> float:
    return _running_clock()


def _library_journal(journal: object) -> object:
    return journal


library.monotonicTime = _library_time
library.createJournal = _library_journal


class EngineOwner(Protocol):
    """What the engine asks of the replica it works for."""

    def send(self, peer: str, message: Message) -> None:
        """Put the message into the outbox; it leaves after the journal is flushed."""
        ...

    def append_proposals(self) -> None:
        """Called while leading: append what was proposed."""
        ...

    def apply_entry(self, index: int, entry: bytes, term: int) -> None:
        """A committed entry; each exactly once and in order."""
        ...

    def restore(self, snapshot: Snapshot, state: bytes) -> None:
        """Become this state: everything up to `snapshot.index` is in it."""
        ...

    def role_changed(self, leading: bool) -> None:
        """This replica has begun or ceased to lead (in its own opinion)."""
        ...


class _Peer(Node):  # type: ignore[misc]
    """A member; hashes the same in every process, so that sets of them iterate in one order."""

    def __hash__(self) -> int:
        return zlib.crc32(self.id.encode())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Peer) and bool(self.id == other.id)


class _Wire(Transport):  # type: ignore[misc]
    """The library's outgoing messages, turned into ours."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(None, None, [])
        self._engine = engine

    @property
    def ready(self) -> bool:
        return True

    def send(self, node: _Peer, message: dict[str, Any]) -> bool:
        self._engine._on_library_message(node.id, message)
        return True

    def destroy(self) -> None:
        pass


class _JournalView:
    """Our journal under the names that the library uses."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __len__(self) -> int:
        return len(self._journal.log) + 1

    def __getitem__(self, position: int) -> Entry:
        log = self._journal.log
        return log.entry(log.base_index + position if position >= 0 else log.last_index + 1 + position)

    def add(self, command: bytes, index: int, term: int) -> None:
        self._journal.append(command, index, term)

    def deleteEntriesFrom(self, position: int) -> None:
        self._journal.truncate_from(self._journal.log.base_index + position)

    def getRaftCommitIndex(self) -> int:
        return self._journal.commit_index

    def setRaftCommitIndex(self, index: int) -> None:
        self._journal.commit_index = index

    def getCurrentTerm(self) -> int:
        return self._journal.term

    def getVotedForNodeId(self) -> str | None:
        return self._journal.voted_for

    def setCurrentTerm(self, term: int, voted_for: str | None) -> None:
        self._journal.set_vote(term, voted_for)

    def onOneSecondTimer(self) -> None:
        pass

    def _destroy(self) -> None:
        pass


class _NoPoller:
    """The library polls its own sockets in a tick; it has none."""

    def poll(self, timeout: float) -> None:
        pass


class _Raft(SyncObj):  # type: ignore[misc]
    """The library with the parts replaced that are ours. Each override says what it is instead of."""

    def __init__(self, engine: Engine, me: str, peers: tuple[str, ...], journal: Journal, timing: Timing) -> None:
        self._engine = engine
        self._log = journal.log
        conf = SyncObjConf(
            autoTick=False,
            journalFile=_JournalView(journal),
            raftMinTimeout=timing.election_s[0],
            raftMaxTimeout=timing.election_s[1],
            connectionTimeout=timing.election_s[1] * 10,
            appendEntriesPeriod=timing.heartbeat_s,
            leaderFallbackTimeout=timing.fallback_s,
            # no pipe; what is appended is sent by Engine._replicate at the end of the same tick
            appendEntriesUseBatch=True,
            dynamicMembershipChange=False,
            fullDumpFile=None,
            onStateChanged=engine._on_state_changed,
        )
        super().__init__(_Peer(me), [_Peer(peer) for peer in peers], conf, transport=_Wire(engine))
        self._poller = _NoPoller()

    def _SyncObj__generateRaftTimeout(self) -> float:
        """Instead of the global `random`."""
        return self._engine._timing.election()

    def _SyncObj__getCurrentLogIndex(self) -> int:
        """Instead of two look-ups through the journal."""
        return self._log.last_index

    def _SyncObj__getCurrentLogTerm(self) -> int:
        return self._log.last_term

    def _SyncObj__getEntries(
        self, first: int | None, count: int | None = None, limit_bytes: int | None = None
    ) -> list[Entry]:
        """Instead of a copy of the whole tail."""
        log = self._log
        if first is None or first < log.base_index or first > log.last_index:
            return []
        count = log.last_index - first + 1 if count is None else count
        if first > log.base_index:
            return log.entries(first, count, limit_bytes)
        return [log.entry(first), *log.entries(first + 1, count - 1, limit_bytes)][:count]

    def _SyncObj__sendAppendEntries(self) -> None:
        """Instead of a resend of everything unacknowledged: ask for a heartbeat."""
        self._SyncObj__newAppendEntriesTime = _library_time() + self._engine._timing.heartbeat_s
        self._engine._heartbeat_due = True

    def _SyncObj__sendNextNodeIdx(
        self, node: _Peer, reset: bool = False, nextNodeIdx: int | None = None, success: bool = False
    ) -> None:
        """Instead of an acknowledgement without a term of everything in the log."""
        self._engine._acknowledge(node.id, success)

    def _SyncObj__applyLogEntries(self) -> bool:
        """Instead of a loop that calls back while it applies, and does not end before all is applied."""
        self._engine._apply_committed()
        return False

    def _SyncObj__doApplyCommand(self, command: bytes) -> object:
        """Never reached; would unpickle."""
        raise AssertionError("entries are applied by the engine")

    def _SyncObj__parseChangeClusterRequest(self, command: bytes) -> None:
        """Instead of unpickling: membership is static."""

    def _SyncObj__tryLogCompaction(self) -> None:
        """Nothing: snapshots are ours."""

    def _SyncObj__loadDumpFile(self, clearJournal: bool) -> None:
        """Never reached; would unpickle, and clear a newer journal."""
        raise AssertionError("snapshots are loaded by the replica")

    def _checkCommandsToApply(self) -> None:
        """Instead of the library's queue, which forwards to the leader when this is none."""
        if self._SyncObj__raftState == _LEADER:
            self._engine._owner.append_proposals()


class Engine:
    """One replica's Raft, without any I/O of its own.

    Give it messages by `receive` and time by `tick`; it speaks through its owner. What it appended, voted or wants
    sent is in the journal's and the owner's hands, who store it before anything is sent.
    """

    #: which entries of a leader are new; a seam for tests that plant a bug
    filter_append = staticmethod(filter_append)

    def __init__(
        self,
        *,
        me: str,
        peers: tuple[str, ...],
        journal: Journal,
        snapshots: SnapshotStore,
        clock: Clock,
        timing: Timing,
        owner: EngineOwner,
    ) -> None:
        self._me = me
        self._peers = peers
        self._majority = (len(peers) + 1) // 2 + 1
        self._journal = journal
        self._log = journal.log
        self._snapshots = snapshots
        self._clock = clock
        self._timing = timing
        self._owner = owner
        self._nodes = {peer: _Peer(peer) for peer in peers}
        self._connected: set[str] = set()
        self._followers: dict[str, Follower] = {}
        self._ballot = Ballot()
        self._votes: set[str] = set()
        self._heartbeat_due = False
        self._leader_heard_at = float("-inf")
        self._ticked_at = self._now()
        self._grace_given = False
        self._noop_index = 0
        self._reply_round = 0
        self._reply_match = 0
        #: number of the last round of messages; a read waits until a majority has answered its round
        self.round = 0
        self._raft = _Raft(self, me, peers, journal, timing)

    def start(self, snapshot: Snapshot | None) -> None:
        """Begin after this snapshot, which the owner has restored."""
        if snapshot is not None:
            self._raft._SyncObj__raftLastApplied = snapshot.index
        self._raft._SyncObj__raftCommitIndex = min(max(self._journal.commit_index, self.applied), self._log.last_index)

    # -- what is known -------------------------------------------------------------------------------------------

    @property
    def leading(self) -> bool:
        """Whether this replica takes itself for the leader; another may have been elected already."""
        return bool(self._raft._SyncObj__raftState == _LEADER)

    @property
    def established(self) -> bool:
        """Leading, and everything committed under earlier leaders is applied here."""
        return self.leading and self.applied >= self._noop_index

    @property
    def term(self) -> int:
        return int(self._raft._SyncObj__raftCurrentTerm)

    @property
    def leader_id(self) -> str | None:
        """The leader of this term, if one is known and connected."""
        leader = self._raft._SyncObj__raftLeader
        if leader is None:
            return None
        reachable = leader.id == self._me or leader.id in self._connected
        return str(leader.id) if reachable else None

    @property
    def commit_index(self) -> int:
        """The last log entry known to be committed."""
        return int(self._raft._SyncObj__raftCommitIndex)

    @property
    def applied(self) -> int:
        """The last log entry applied."""
        return int(self._raft._SyncObj__raftLastApplied)

    @property
    def answered_round(self) -> int:
        """The last round that a majority has answered in this reign: nobody else led when it was sent."""
        answered = sorted((follower.round_answered for follower in self._followers.values()), reverse=True)
        needed = self._majority - 1
        return answered[needed - 1] if needed else self.round

    @property
    def transferring(self) -> bool:
        """Whether a snapshot is on its way to a connected follower."""
        return any(
            follower.transfer is not None and peer in self._connected for peer, follower in self._followers.items()
        )

    @property
    def needs_tick(self) -> bool:
        """Whether there is something to do that waits for no message and no time."""
        can_commit = not self._peers and self.leading and self.commit_index < self._log.last_index
        return can_commit or self.applied < self.commit_index

    # -- what happens --------------------------------------------------------------------------------------------

    def connected(self, peer: str) -> None:
        """Messages can go to the peer and come from it."""
        self._enter()
        self._connected.add(peer)
        if peer in self._followers:
            self._followers[peer].reconnected()
            self._heartbeat_due = True
        self._raft._SyncObj__onNodeConnected(self._nodes[peer])

    def disconnected(self, peer: str) -> None:
        """The connection is gone. If it was the leader's, that is a hint that the leader is dead."""
        now = self._enter()
        self._connected.discard(peer)
        self._raft._SyncObj__onNodeDisconnected(self._nodes[peer])
        leader = self._raft._SyncObj__raftLeader
        if not self.leading and leader is not None and leader.id == peer:
            self._deadline = min(self._deadline, now + self._timing.leader_gone())

    def append(self, command: bytes) -> int:
        """Append an entry while leading; returns its index."""
        index = self._log.last_index + 1
        self._journal.append(command, index, self.term)
        return index

    def tick(self) -> None:
        """Let time pass: elections, commitment, applying, and what the followers should get."""
        now = self._enter()
        if now - self._ticked_at > LATE_TICK_S:
            self._forgive_lateness(now)
        self._ticked_at = now
        if not self.leading and _STAND_NOW < self._deadline < now:
            self._ask_around(now)
        was_candidate = self._raft._SyncObj__raftState == _CANDIDATE
        self._raft.doTick(0)
        if self._raft._SyncObj__raftState == _CANDIDATE and not was_candidate:
            self._deadline = now + self._timing.retry()
        if self.leading:
            if self.commit_index >= self._noop_index:
                self._journal.set_joined()
            self._replicate(now)

    def receive(self, peer: str, message: Message) -> None:
        """A message of an authenticated member."""
        now = self._enter()
        match message:
            case Append() | Install():
                self._on_leader_message(peer, message, now)
            case AppendReply() | InstallReply():
                self._on_reply(peer, message, now)
            case PreVote():
                self._on_pre_vote(peer, message, now)
            case PreVoteReply():
                self._on_pre_vote_reply(peer, message)
            case Vote():
                self._on_vote(peer, message, now)
            case VoteReply():
                if message.term == self.term and peer not in self._votes:
                    self._votes.add(peer)
                    self._hand_over(peer, {"type": "response_vote", "term": message.term})

    # -- elections -----------------------------------------------------------------------------------------------

    def _ask_around(self, now: float) -> None:
        """Ask whether one would be elected, before a higher term disturbs anybody."""
        self._deadline = now + self._timing.retry()
        number = self._ballot.start()
        if self._majority == 1:
            self._stand()
            return
        mine = self._standing
        for peer in sorted(self._connected):
            self._owner.send(peer, PreVote(self.term, number, mine.last_index, mine.last_term, mine.joined))

    def _stand(self) -> None:
        """Let the library start an election in this tick."""
        self._ballot.close()
        self._votes.clear()
        self._deadline = _STAND_NOW

    def _on_pre_vote(self, peer: str, message: PreVote, now: float) -> None:
        candidate = Standing(message.last_term, message.last_index, message.joined)
        granted = not self._holds_to_leader(now) and self._standing.accepts(candidate)
        if granted:
            self._deadline = max(self._deadline, now + self._timing.yield_to_other())
        self._owner.send(peer, PreVoteReply(self.term, message.ballot, granted))

    def _on_pre_vote_reply(self, peer: str, message: PreVoteReply) -> None:
        self._adopt_term(message.term)
        if not self.leading and self._ballot.answer(peer, message.ballot, message.granted) >= self._majority:
            self._stand()

    def _on_vote(self, peer: str, message: Vote, now: float) -> None:
        candidate = Standing(message.last_term, message.last_index, message.joined)
        if self._holds_to_leader(now) or self._standing.joined != candidate.joined:
            return
        self._hand_over(
            peer,
            {
                "type": "request_vote",
                "term": message.term,
                "last_log_index": message.last_index,
                "last_log_term": message.last_term,
            },
        )

    def _holds_to_leader(self, now: float) -> bool:
        """Whether there is a leader that this replica has no reason to give up."""
        if self.leading:
            return True
        return self.leader_id is not None and now - self._leader_heard_at < self._timing.election_s[0]

    def _adopt_term(self, term: int) -> None:
        """Somebody is in a later term: whatever we were in ours, we are no longer."""
        if term > self.term:
            self._raft._SyncObj__setCurrentTerm(term, None)
            self._raft._SyncObj__setState(_FOLLOWER)
            self._raft._SyncObj__raftLeader = None

    def _forgive_lateness(self, now: float) -> None:
        """We were not scheduled, so that we heard nothing says nothing about others: wait once more."""
        if self.leading:
            heard = self._raft._SyncObj__lastResponseTime
            for node in heard:
                heard[node] = max(heard[node], now - self._timing.fallback_s + 2 * self._timing.heartbeat_s)
        elif not self._grace_given and self.leader_id is not None:
            self._grace_given = True
            self._deadline = max(self._deadline, now + self._timing.heartbeat_s * (1 + self._timing.random.random()))

    def _on_state_changed(self, old: int, new: int) -> None:
        now = self._now()
        if new == _LEADER:
            self._noop_index = self._log.last_index + 1
            self._followers = {peer: Follower(next=self._noop_index, moved_at=now) for peer in sorted(self._peers)}
            self._heartbeat_due = True
            self._owner.role_changed(True)
        elif old == _LEADER:
            self._followers = {}
            self._deadline = now + self._timing.election()
            self._owner.role_changed(False)

    @property
    def _standing(self) -> Standing:
        return Standing(self._log.last_term, self._log.last_index, self._journal.joined)

    @property
    def _deadline(self) -> float:
        return float(self._raft._SyncObj__raftElectionDeadline)

    @_deadline.setter
    def _deadline(self, at: float) -> None:
        self._raft._SyncObj__raftElectionDeadline = at

    # -- as a follower -------------------------------------------------------------------------------------------

    def _on_leader_message(self, peer: str, message: Append | Install, now: float) -> None:
        if message.term < self.term:
            # A leader of the past. The library would be silent, and the sender would never learn of the new term.
            self._owner.send(peer, AppendReply(self.term, message.round, accepted=False))
            return
        self._leader_heard_at = now
        self._grace_given = False
        self._ballot.close()
        self._reply_round = message.round
        if isinstance(message, Append):
            self._on_append(peer, message)
        else:
            self._on_install(peer, message)
        if peer not in self._connected:
            # Its last words, read after the connection closed: they are no reason to wait longer.
            self._deadline = min(self._deadline, now + self._timing.leader_gone())

    def _on_append(self, peer: str, message: Append) -> None:
        found = self.filter_append(self._log, self.commit_index, message.prev_index, message.prev_term, message.entries)
        if not isinstance(found, Accepted):
            self._heartbeat_only(peer, message.term)
            refusal = AppendReply(self.term, message.round, accepted=False, refused=found.prev_index, hint=found.hint)
            self._owner.send(peer, refusal)
            return
        self._reply_match = found.matched
        self._hand_over(
            peer,
            {
                "type": "append_entries",
                "term": message.term,
                # what lies beyond the matching part may be void
                "commit_index": min(message.commit_index, found.matched),
                "prevLogIdx": found.prev_index,
                "prevLogTerm": found.prev_term,
                "entries": found.entries,
            },
        )
        self._consider_joined(message, found.matched)

    def _acknowledge(self, peer: str, success: bool) -> None:
        assert success, "the filter lets nothing through that does not fit"
        self._owner.send(peer, AppendReply(self.term, self._reply_round, accepted=True, match=self._reply_match))

    def _consider_joined(self, message: Append, matched: int) -> None:
        """An entry of its own term that a leader has committed is above all that was committed before."""
        committed = message.commit_index
        if (
            not self._journal.joined
            and self._log.base_index <= committed <= matched
            and self._log.term_at(committed) == message.term
        ):
            self._journal.set_joined()

    def _heartbeat_only(self, peer: str, term: int) -> None:
        """Tell the library who leads, and nothing about entries."""
        self._hand_over(peer, {"type": "append_entries", "term": term, "commit_index": 0})

    def _on_install(self, peer: str, message: Install) -> None:
        self._heartbeat_only(peer, message.term)
        offset = match = 0
        if message.index <= self.commit_index:
            match = self.commit_index
            self._snapshots.discard_received()
        else:
            offset = self._snapshots.receive_chunk(message.index, message.offset, message.data)
            if offset == message.size:
                offset, match = 0, self._finish_install()
        self._owner.send(peer, InstallReply(self.term, message.round, message.index, offset, match))

    def _finish_install(self) -> int:
        """Returns the index up to which everything is here now, 0 if what came is damaged."""
        try:
            snapshot, state = self._snapshots.finish_received()
        except SnapshotDamaged as error:
            logger.error("received a bad snapshot, asking for it again: %s", error)
            return 0
        self._owner.restore(snapshot, state)
        reconcile(self._journal, snapshot)
        self._raft._SyncObj__raftLastApplied = snapshot.index
        self._raft._SyncObj__raftCommitIndex = snapshot.index
        self._journal.commit_index = snapshot.index
        return snapshot.index

    # -- as the leader -------------------------------------------------------------------------------------------

    def _on_reply(self, peer: str, message: AppendReply | InstallReply, now: float) -> None:
        self._adopt_term(message.term)
        # An acknowledgement of an earlier reign says nothing about this one: the follower may have replaced entries.
        if not self.leading or message.term != self.term:
            return
        node = self._nodes[peer]
        follower = self._followers[peer]
        self._raft._SyncObj__lastResponseTime[node] = now
        follower.round_answered = max(follower.round_answered, message.round)
        if isinstance(message, InstallReply):
            self._on_install_reply(follower, message, now)
        elif message.accepted:
            follower.accepted(message.match, now)
        elif follower.refused(message.refused, message.hint, now):
            logger.error("%s has lost entries that it had acknowledged; was its directory replaced?", peer)
        self._raft._SyncObj__raftMatchIndex[node] = follower.match

    def _on_install_reply(self, follower: Follower, message: InstallReply, now: float) -> None:
        transfer = follower.transfer
        if transfer is None or transfer.snapshot.index != message.index:
            return
        follower.moved_at = now
        if message.match:
            follower.end_transfer(message.match, now)
        else:
            transfer.offset = message.offset
            transfer.in_flight = False

    def _replicate(self, now: float) -> None:
        heartbeat, self._heartbeat_due = self._heartbeat_due, False
        for peer in sorted(self._connected):
            follower = self._followers[peer]
            if follower.waits() and now - follower.moved_at > LOST_AFTER_HEARTBEATS * self._timing.heartbeat_s:
                follower.lost()
            if not follower.waits():
                follower.moved_at = now
            if follower.transfer is None and follower.next <= self._log.base_index:
                assert self._snapshots.newest is not None, "a log without its beginning needs a snapshot"
                follower.start_transfer(self._snapshots.newest)
            if follower.transfer is not None:
                self._send_install(peer, follower, heartbeat)
            else:
                self._send_appends(peer, follower, heartbeat, now)

    def _send_appends(self, peer: str, follower: Follower, heartbeat: bool, now: float) -> None:
        notice = follower.commit_sent < self.commit_index and now - follower.sent_at >= COMMIT_NOTICE_S
        empty = heartbeat or notice
        while message := next_append(
            follower,
            self._log,
            term=self.term,
            commit_index=self.commit_index,
            round_number=self.round,
            heartbeat=empty,
        ):
            empty = False
            follower.sent_at = now
            self._owner.send(peer, message)

    def _send_install(self, peer: str, follower: Follower, heartbeat: bool) -> None:
        newest = self._snapshots.newest
        transfer = follower.transfer
        assert transfer is not None
        assert newest is not None
        if transfer.snapshot is not newest:
            transfer = follower.start_transfer(newest)
        if transfer.in_flight and not heartbeat and follower.round_sent == self.round:
            return
        snapshot = transfer.snapshot
        data = b""
        if not transfer.in_flight:
            data = self._snapshots.read_chunk(snapshot, transfer.offset, INSTALL_BYTES)
            transfer.in_flight = True
        follower.round_sent = self.round
        self._owner.send(
            peer, Install(self.term, self.round, snapshot.index, transfer.offset, snapshot.size_bytes, data)
        )

    # -- between us and the library ------------------------------------------------------------------------------

    def _apply_committed(self) -> None:
        """Apply what is committed, in order, but not for so long that heartbeats come late."""
        started = self._now()
        while self.applied < self.commit_index:
            index = self.applied + 1
            entry, _, term = self._log.entry(index)
            self._owner.apply_entry(index, entry, term)
            self._raft._SyncObj__raftLastApplied = index
            if self._now() - started > APPLY_S:
                return

    def _on_library_message(self, peer: str, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "request_vote":
            mine = self._standing
            self._owner.send(peer, Vote(message["term"], mine.last_index, mine.last_term, mine.joined))
        elif kind == "response_vote":
            self._owner.send(peer, VoteReply(message["term"]))
        else:
            raise AssertionError(f"the library wants to send {kind!r}")

    def _hand_over(self, peer: str, message: dict[str, Any]) -> None:
        self._raft._SyncObj__onMessageReceived(self._nodes[peer], message)

    def _now(self) -> float:
        return self._clock.monotonic()

    def _enter(self) -> float:
        """The time, which from now on is the library's too."""
        global _running_clock
        _running_clock = self._clock.monotonic
        return _running_clock()


def reconcile(journal: Journal, snapshot: Snapshot) -> None:
    """Make the journal go on where a durable snapshot ends, voiding nothing that the snapshot does not hold.

    Raft's rule: a log that has the snapshot's last entry keeps what follows it. A log that has not ends below it or
    differs there, so nothing in it above the snapshot can be committed.
    """
    log = journal.log
    known = log.base_index <= snapshot.index <= log.last_index
    if not known or log.term_at(snapshot.index) != snapshot.term:
        journal.reset(snapshot.index, snapshot.term)


# kept for the reader: a no-op is the library's own entry at the start of a reign
assert NO_OP == library._COMMAND_TYPE.NO_OP
