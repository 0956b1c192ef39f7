"""One replica's time as leader: what it knows of each follower and sends it. Ends with the term."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from depalma.consensus.log import Log
from depalma.consensus.messages import AppendReply, Install, InstallReply, Message
from depalma.consensus.replication import LOST_AFTER_HEARTBEATS, Follower, next_append
from depalma.consensus.settings import MIB
from depalma.consensus.snapshot import SnapshotStore

logger = logging.getLogger(__name__)

INSTALL_BYTES = 1 * MIB
#: a follower learns of a commit with the next entries, or after so long
COMMIT_NOTICE_S = 0.015


class Reign:
    """Replicates the log to the followers while this replica leads in `term`."""

    def __init__(
        self,
        *,
        term: int,
        log: Log,
        snapshots: SnapshotStore,
        peers: tuple[str, ...],
        founders: Iterable[str] | None,
        heartbeat_s: float,
        send: Callable[[str, Message], None],
        now: float,
    ) -> None:
        self.term = term
        #: the entry that opens the reign; once it is committed, so is everything of the past
        self.first_index = log.last_index + 1
        #: number of the last round of messages; a read waits until a majority has answered its round
        self.round = 0
        self._log = log
        self._snapshots = snapshots
        self._heartbeat_s = heartbeat_s
        self._send = send
        #: whom entries are sent to: the other members, and who is about to become one or has just ceased to be one
        self._followers: dict[str, Follower] = {}
        self._voters: tuple[str, ...] = ()
        self._learners: frozenset[str] = frozenset()
        #: who elected this leader of a cluster that begins, on a connection that has held since
        self._founders = set(founders or ())
        self._founding = founders is not None
        self.set_voters(peers, now)

    @property
    def answered_round(self) -> int:
        """The last round that a majority has answered: nobody led in a later term when it was sent."""
        needed = (len(self._voters) + 1) // 2
        if not needed:
            return self.round
        answered = sorted((self._followers[peer].round_answered for peer in self._voters), reverse=True)
        return answered[needed - 1]

    def follower(self, peer: str) -> Follower | None:
        """What is known of a peer, if entries are sent to it."""
        return self._followers.get(peer)

    def set_voters(self, peers: tuple[str, ...], now: float) -> None:
        """From now on these are the other members."""
        self._voters = peers
        self._keep_followers(now)

    def set_learners(self, peers: Iterable[str], now: float) -> None:
        """From now on entries are sent to these too, though they are not counted."""
        self._learners = frozenset(peers)
        self._keep_followers(now)

    def _keep_followers(self, now: float) -> None:
        known = self._followers
        fresh = self._log.last_index + 1
        self._followers = {
            peer: known.get(peer) or Follower(next=fresh, moved_at=now)
            for peer in sorted({*self._voters, *self._learners})
        }

    def transferring(self, connected: Iterable[str]) -> bool:
        """Whether a snapshot is on its way to one of these followers."""
        return any(self._followers[peer].transfer is not None for peer in connected if peer in self._followers)

    def elected_by(self, peer: str) -> None:
        """One more has voted for this leader."""
        if self._founding:
            self._founders.add(peer)

    def reconnected(self, peer: str) -> None:
        """What was on its way to the follower is lost."""
        self._founders.discard(peer)
        if peer in self._followers:
            self._followers[peer].reconnected()

    def on_reply(self, peer: str, message: AppendReply | InstallReply, now: float) -> int | None:
        """Take an answer of this term; returns up to where the follower is known to hold the log.

        None if the answer does not count: the follower may have forgotten what it promised to a later leader.
        """
        follower = self._followers.get(peer)
        if follower is None:
            return None
        follower.joined = message.joined
        counts = message.joined or peer in self._founders
        if counts:
            follower.came_at, follower.vouched = None, 0
            follower.round_answered = max(follower.round_answered, message.round)
        elif follower.came_at is None:
            follower.came_at = self._log.last_index
        if isinstance(message, InstallReply):
            self._on_install_reply(follower, message, now)
        elif message.accepted:
            follower.accepted(message.match, now)
        elif follower.refused(message.refused, message.hint, now):
            logger.error("%s has lost entries that it had acknowledged; was its directory replaced?", peer)
        return follower.match if counts else None

    def wants_entry(self, connected: Iterable[str], commit_index: int) -> bool:
        """Whether a follower waits for one more entry, and only for that, to be counted."""
        return commit_index == self._log.last_index and any(
            self._followers[peer].came_at == commit_index <= self._followers[peer].match
            for peer in self._followers.keys() & set(connected)
        )

    def _vouch(self, peer: str, follower: Follower, commit_index: int) -> bool:
        """Find out what a follower has to hold to be counted. Returns whether that is news for it.

        An entry that was appended after it came has been committed by a majority without it: had one of these helped
        to elect a later leader before, it would have refused that entry. In a cluster that begins, nobody has.
        """
        if follower.joined or follower.vouched:
            return False
        if peer in self._founders and commit_index >= self.first_index:
            follower.vouched = self.first_index
        elif follower.came_at is not None and commit_index > follower.came_at:
            follower.vouched = commit_index
        return follower.vouched > 0

    def replicate(self, connected: Iterable[str], commit_index: int, *, heartbeat: bool, now: float) -> None:
        """Send each connected follower what it should get now."""
        for peer in sorted(self._followers.keys() & set(connected)):
            follower = self._followers[peer]
            news = self._vouch(peer, follower, commit_index)
            if follower.waits() and now - follower.moved_at > LOST_AFTER_HEARTBEATS * self._heartbeat_s:
                follower.lost()
            if not follower.waits():
                follower.moved_at = now
            if follower.transfer is None and follower.next <= self._log.base_index:
                assert self._snapshots.newest is not None, "a log without its beginning needs a snapshot"
                follower.start_transfer(self._snapshots.newest)
            if follower.transfer is not None:
                self._send_install(peer, follower, heartbeat)
            else:
                self._send_appends(peer, follower, commit_index, heartbeat or news, now)

    def _send_appends(self, peer: str, follower: Follower, commit_index: int, heartbeat: bool, now: float) -> None:
        notice = follower.commit_sent < commit_index and now - follower.sent_at >= COMMIT_NOTICE_S
        empty = heartbeat or notice
        while message := next_append(
            follower,
            self._log,
            term=self.term,
            commit_index=commit_index,
            round_number=self.round,
            heartbeat=empty,
        ):
            empty = False
            follower.sent_at = now
            self._send(peer, message)

    def _send_install(self, peer: str, follower: Follower, heartbeat: bool) -> None:
        newest, transfer = self._snapshots.newest, follower.transfer
        assert transfer is not None
        assert newest is not None
        if transfer.snapshot is not newest:
            transfer = follower.start_transfer(newest)  # the older one's file is gone
        if transfer.in_flight and not heartbeat and follower.round_sent == self.round:
            return
        snapshot = transfer.snapshot
        data = b""
        if not transfer.in_flight:
            data = self._snapshots.read_chunk(snapshot, transfer.offset, INSTALL_BYTES)
            transfer.in_flight = True
        follower.round_sent = self.round
        self._send(peer, Install(self.term, self.round, snapshot.index, transfer.offset, snapshot.size_bytes, data))

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
