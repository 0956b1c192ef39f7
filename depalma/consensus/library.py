"""PySyncObj 0.3.17, and the only place that knows it: every private name of it that we use stands in this file.

PySyncObj decides terms, votes, leadership and commitment. What surrounds these decisions is ours: the log on disk,
what is sent, what is let in, applying, and snapshots. See DESIGN.md for each guard and why it is safe.
"""

from __future__ import annotations

import _socket
import socket
import time
import zlib
from collections.abc import Collection, Iterable
from typing import Any

import pysyncobj.syncobj as library
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from depalma.clock import Clock
from depalma.consensus.append_filter import Accepted
from depalma.consensus.election import Timing
from depalma.consensus.envelope import NO_OP
from depalma.consensus.journal import Journal
from depalma.consensus.log import Entry
from depalma.consensus.owners import RaftOwner

LIBRARY_VERSION = "0.3.17"
#: an election deadline that is over for the library: it stands in its next tick
STAND_NOW = float("-inf")
#: the deadline of one who is no member, and must not stand
NEVER = float("inf")

_FOLLOWER = library._RAFT_STATE.FOLLOWER
_CANDIDATE = library._RAFT_STATE.CANDIDATE
_LEADER = library._RAFT_STATE.LEADER

if library._COMMAND_TYPE.NO_OP != NO_OP:
    raise ImportError("the library numbers its no-op otherwise than the log on disk does")

# Its import replaces this by a function that works on Windows only, for the whole process and on every system.
socket.inet_ntop = _socket.inet_ntop

# The library reads the time and makes its journal by module globals. Both are replaced for good, by functions that
# do what the replica that is just running wants: so replicas with different clocks can live in one process. The time
# stands still while a replica acts: a deadline that we have found in the future is not over for the library either.
_running_time = time.monotonic()


def _library_time() -> float:
    return _running_time


def _library_journal(journal: object) -> object:
    return journal


library.monotonicTime = _library_time
library.createJournal = _library_journal


class _Peer(Node):  # type: ignore[misc]
    """A member; hashes the same in every process, so that sets of them iterate in one order."""

    def __hash__(self) -> int:
        return zlib.crc32(self.id.encode())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Peer) and bool(self.id == other.id)


class _Wire(Transport):  # type: ignore[misc]
    """The library's outgoing messages; with our overrides there are two kinds."""

    def __init__(self, owner: RaftOwner) -> None:
        super().__init__(None, None, [])
        self._owner = owner

    @property
    def ready(self) -> bool:
        return True

    def send(self, node: _Peer, message: dict[str, Any]) -> bool:
        kind = message["type"]
        if kind == "request_vote":
            self._owner.on_vote_wanted(node.id, message["term"])
        elif kind == "response_vote":
            self._owner.on_vote_given(node.id, message["term"])
        else:
            raise AssertionError(f"the library wants to send {kind!r}")
        return True


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


class _NoPoller:
    """The library polls its own sockets in a tick; it has none."""

    def poll(self, timeout: float) -> None:
        pass


class _SyncObj(SyncObj):  # type: ignore[misc]
    """The library with the parts replaced that are ours. Each override says what it is instead of."""

    def __init__(self, owner: RaftOwner, me: str, journal: Journal, timing: Timing) -> None:
        self._owner = owner
        self.member = False
        self._log = journal.log
        self._timing = timing
        conf = SyncObjConf(
            autoTick=False,
            journalFile=_JournalView(journal),
            raftMinTimeout=timing.election_s[0],
            raftMaxTimeout=timing.election_s[1],
            connectionTimeout=timing.election_s[1] * 10,
            appendEntriesPeriod=timing.heartbeat_s,
            leaderFallbackTimeout=timing.fallback_s,
            # no pipe, and no sending in the middle of a tick
            appendEntriesUseBatch=True,
            dynamicMembershipChange=False,
            fullDumpFile=None,
            onStateChanged=self._state_changed,
        )
        super().__init__(_Peer(me), [], conf, transport=_Wire(owner))
        self._poller = _NoPoller()

    def _state_changed(self, old: int, new: int) -> None:
        if new == _LEADER:
            self._owner.on_role(True)
        elif old == _LEADER:
            self._SyncObj__raftElectionDeadline = _library_time() + self._SyncObj__generateRaftTimeout()
            self._owner.on_role(False)

    def _SyncObj__generateRaftTimeout(self) -> float:
        """Instead of the global `random`; and whoever is no member has all patience."""
        return self._timing.election() if self.member else NEVER

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
        """Instead of a resend of everything unacknowledged."""
        self._SyncObj__newAppendEntriesTime = _library_time() + self._timing.heartbeat_s
        self._owner.on_heartbeat_due()

    def _SyncObj__sendNextNodeIdx(
        self, node: _Peer, reset: bool = False, nextNodeIdx: int | None = None, success: bool = False
    ) -> None:
        """Instead of an acknowledgement, without a term, of everything in the log."""
        if not success:
            raise AssertionError("the append filter lets nothing through that does not fit")
        self._owner.on_accepted(node.id)

    def _SyncObj__applyLogEntries(self) -> bool:
        """Instead of a loop that calls back while it applies, and does not end before all is applied."""
        self._owner.on_commit()
        return False

    def _SyncObj__doApplyCommand(self, command: bytes) -> object:
        """Instead of unpickling. Never reached."""
        raise AssertionError("entries are applied by the engine")

    def _SyncObj__parseChangeClusterRequest(self, command: bytes) -> None:
        """Instead of unpickling: who the members are is told by `Raft.set_members`."""

    def _SyncObj__tryLogCompaction(self) -> None:
        """Instead of pickled dumps: snapshots are ours."""

    def _SyncObj__loadDumpFile(self, clearJournal: bool) -> None:
        """Instead of unpickling, and of clearing a newer journal. Never reached."""
        raise AssertionError("snapshots are loaded by the replica")

    def _checkCommandsToApply(self) -> None:
        """Instead of the library's queue, which forwards to the leader when this is none."""
        if self._SyncObj__raftState == _LEADER:
            self._owner.append_proposals()


class Raft:
    """The library's state and decisions under plain names."""

    def __init__(
        self,
        owner: RaftOwner,
        *,
        me: str,
        journal: Journal,
        clock: Clock,
        timing: Timing,
    ) -> None:
        self._now = clock.monotonic
        self._me = me
        #: whom votes and acknowledgements are counted of
        self._peers: dict[str, _Peer] = {}
        self.enter()
        self._raft = _SyncObj(owner, me, journal, timing)

    def enter(self) -> float:
        """The time, which from now on is the library's too. Call before anything that makes it look at the clock."""
        global _running_time
        _running_time = self._now()
        return _running_time

    def set_members(self, peers: Iterable[str], connected: Collection[str], *, member: bool) -> None:
        """From now on these, and this replica if it is a `member`, make a majority; others are not counted.

        A leader starts to count a new one as having nothing, and as heard just now.
        """
        raft, wanted = self._raft, {peer: self._peers.get(peer) or _Peer(peer) for peer in peers}
        for gone in self._peers.keys() - wanted.keys():
            self.disconnected(gone)
            raft._SyncObj__raftMatchIndex.pop(self._peers[gone], None)
            raft._SyncObj__lastResponseTime.pop(self._peers[gone], None)
        new, self._peers = wanted.keys() - self._peers.keys(), wanted
        raft._SyncObj__otherNodes = set(wanted.values())
        for peer in new:
            raft._SyncObj__raftMatchIndex[wanted[peer]] = 0
            raft._SyncObj__lastResponseTime[wanted[peer]] = _library_time()
            if peer in connected:
                self.connected(peer)
        if member != raft.member:
            raft.member = member
            raft._SyncObj__raftElectionDeadline = _library_time() + raft._SyncObj__generateRaftTimeout()

    def start(self, applied: int, commit_index: int) -> None:
        """Begin with this much applied and known to be committed."""
        self._raft._SyncObj__raftLastApplied = applied
        self._raft._SyncObj__raftCommitIndex = commit_index

    def tick(self) -> None:
        """Let the library act on the time that has passed."""
        self._raft.doTick(0)

    @property
    def leading(self) -> bool:
        return bool(self._raft._SyncObj__raftState == _LEADER)

    @property
    def standing(self) -> bool:
        """Whether this replica is a candidate."""
        return bool(self._raft._SyncObj__raftState == _CANDIDATE)

    @property
    def term(self) -> int:
        return int(self._raft._SyncObj__raftCurrentTerm)

    @property
    def leader(self) -> str | None:
        """The last known leader of this term, this replica included."""
        node = self._raft._SyncObj__raftLeader
        return None if node is None else str(node.id)

    @property
    def commit_index(self) -> int:
        return int(self._raft._SyncObj__raftCommitIndex)

    @property
    def applied(self) -> int:
        return int(self._raft._SyncObj__raftLastApplied)

    @applied.setter
    def applied(self, index: int) -> None:
        self._raft._SyncObj__raftLastApplied = index

    @property
    def deadline(self) -> float:
        """When a follower loses patience."""
        return float(self._raft._SyncObj__raftElectionDeadline)

    @deadline.setter
    def deadline(self, at: float) -> None:
        self._raft._SyncObj__raftElectionDeadline = at if self._raft.member else NEVER

    def connected(self, peer: str) -> None:
        if peer in self._peers:
            self._raft._SyncObj__onNodeConnected(self._peers[peer])

    def disconnected(self, peer: str) -> None:
        if peer in self._peers:
            self._raft._SyncObj__onNodeDisconnected(self._peers[peer])

    def adopt_term(self, term: int) -> None:
        """Somebody is in a later term: whatever we were in ours, we are no longer."""
        if term > self.term:
            self._raft._SyncObj__setCurrentTerm(term, None)
            self._raft._SyncObj__setState(_FOLLOWER)
            self._raft._SyncObj__raftLeader = None

    def note_response(self, peer: str, match: int | None, at: float) -> None:
        """As the leader: a follower was heard, and holds everything up to `match`; None: it does not count."""
        if peer in self._peers:
            if match is not None:
                self._raft._SyncObj__lastResponseTime[self._peers[peer]] = at
            self._raft._SyncObj__raftMatchIndex[self._peers[peer]] = match or 0

    def forgive_silence_before(self, at: float) -> None:
        """As the leader: count every follower as heard at `at` at least."""
        heard = self._raft._SyncObj__lastResponseTime
        for node in heard:
            heard[node] = max(heard[node], at)

    def receive_vote_request(self, peer: str, term: int, last_index: int, last_term: int) -> None:
        self._receive(
            peer, {"type": "request_vote", "term": term, "last_log_index": last_index, "last_log_term": last_term}
        )

    def receive_vote(self, peer: str, term: int) -> None:
        self._receive(peer, {"type": "response_vote", "term": term})

    def receive_append(self, peer: str, term: int, commit_index: int, filtered: Accepted) -> None:
        """Entries that the append filter has let through."""
        self._receive(
            peer,
            {
                "type": "append_entries",
                "term": term,
                # what lies beyond the part that matches may be void
                "commit_index": min(commit_index, filtered.matched),
                "prevLogIdx": filtered.prev_index,
                "prevLogTerm": filtered.prev_term,
                "entries": filtered.entries,
            },
        )

    def receive_heartbeat(self, peer: str, term: int) -> None:
        """The peer leads; nothing is said about entries."""
        self._receive(peer, {"type": "append_entries", "term": term, "commit_index": 0})

    def _receive(self, peer: str, message: dict[str, Any]) -> None:
        self._raft._SyncObj__onMessageReceived(self._peers.get(peer) or _Peer(peer), message)
