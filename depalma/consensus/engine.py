"""One replica's Raft: the library's decisions, with the guards that it lacks. No I/O of its own."""

from __future__ import annotations

import logging

from depalma.clock import Clock
from depalma.consensus.append_filter import Accepted, filter_append
from depalma.consensus.election import NOT_EACH_OTHER, Ballot, Standing, Timing
from depalma.consensus.envelope import NO_OP
from depalma.consensus.errors import SnapshotDamaged
from depalma.consensus.journal import Journal
from depalma.consensus.library import STAND_NOW, Raft
from depalma.consensus.membership import Membership
from depalma.consensus.messages import (
    Append,
    AppendReply,
    Install,
    InstallReply,
    Message,
    PreVote,
    PreVoteReply,
    StandNow,
    Vote,
    VoteReply,
)
from depalma.consensus.owners import EngineOwner
from depalma.consensus.reign import Reign
from depalma.consensus.snapshot import Snapshot, SnapshotStore, reconcile

logger = logging.getLogger(__name__)

#: entries are applied for so long at a time, then the loop gets its turn
APPLY_S = 0.02
#: a tick that comes so much later than the one before means that we were not scheduled
LATE_TICK_S = 0.08


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
        membership: Membership,
        journal: Journal,
        snapshots: SnapshotStore,
        clock: Clock,
        timing: Timing,
        owner: EngineOwner,
    ) -> None:
        self._me = me
        self._membership = membership
        #: the other members; of all members, so many are a majority
        self._peers: tuple[str, ...] = ()
        self._majority = 1
        self._members_seen: tuple[int, int] | None = None
        #: whether the log says that this replica is a member
        self.is_member = False
        self._journal = journal
        self._log = journal.log
        self._snapshots = snapshots
        self._clock = clock
        self._timing = timing
        self._owner = owner
        #: the peers that messages can go to
        self.connected_peers: set[str] = set()
        self._reign: Reign | None = None
        self._ballot = Ballot()
        self._votes: set[str] = set()
        #: who has been connected ever since this replica stood
        self._steady: set[str] = set()
        self._heartbeat_due = False
        self._leader_heard_at = float("-inf")
        self._ticked_at = clock.monotonic()
        self._grace_given = False
        self._told_why_not = False
        self._reply_round = 0
        self._reply_match = 0
        self._asked_to_stand = False
        self._raft = Raft(self, me=me, journal=journal, clock=clock, timing=timing)

    def start(self, snapshot: Snapshot | None) -> None:
        """Begin after this snapshot, which the owner has restored."""
        applied = snapshot.index if snapshot is not None else self.applied
        self._raft.start(applied, min(max(self._journal.commit_index, applied), self._log.last_index))
        self._follow_members()
        if self.is_member and not self._peers:
            self._stand()  # there is nobody to wait for

    # -- what is known -------------------------------------------------------------------------------------------

    @property
    def leading(self) -> bool:
        """Whether this replica takes itself for the leader; another may have been elected already."""
        return self._raft.leading

    @property
    def established(self) -> bool:
        """Leading, and everything committed under earlier leaders is applied here."""
        return self._reign is not None and self.applied >= self._reign.first_index

    @property
    def term(self) -> int:
        """The current term."""
        return self._raft.term

    @property
    def leader_id(self) -> str | None:
        """The leader of this term, if one is known and connected."""
        leader = self._raft.leader
        return leader if leader == self._me or leader in self.connected_peers else None

    @property
    def commit_index(self) -> int:
        """The last log entry known to be committed."""
        return self._raft.commit_index

    @property
    def last_index(self) -> int:
        """The last log entry."""
        return self._log.last_index

    @property
    def applied(self) -> int:
        """The last log entry applied."""
        return self._raft.applied

    @property
    def settled(self) -> bool:
        """While leading: whether the members may be changed. The past is applied, and the last change is committed."""
        return self.established and self._membership.index <= self.commit_index

    @property
    def reign(self) -> Reign | None:
        """What this replica knows as the leader."""
        return self._reign

    @property
    def answered_round(self) -> int:
        """The last round of this reign that a majority has answered."""
        return self._reign.answered_round if self._reign is not None else 0

    @property
    def transferring(self) -> bool:
        """Whether a snapshot is on its way to a connected follower."""
        return self._reign is not None and self._reign.transferring(self.connected_peers)

    @property
    def needs_tick(self) -> bool:
        """Whether there is something to do that waits for no message and no time."""
        can_commit = self._majority == 1 and self.leading and self.commit_index < self._log.last_index
        return can_commit or self.applied < self.commit_index

    # -- what happens --------------------------------------------------------------------------------------------

    def connected(self, peer: str) -> None:
        """Messages can go to the peer and come from it."""
        self._raft.enter()
        self.connected_peers.add(peer)
        self._steady.discard(peer)
        if self._reign is not None:
            self._reign.reconnected(peer)
            self._heartbeat_due = True
        self._raft.connected(peer)

    def disconnected(self, peer: str) -> None:
        """The connection is gone. If it was the leader's, that is a hint that the leader is dead."""
        now = self._raft.enter()
        self.connected_peers.discard(peer)
        self._steady.discard(peer)
        self._raft.disconnected(peer)
        if not self.leading and self._raft.leader == peer:
            self._raft.deadline = min(self._raft.deadline, now + self._timing.leader_gone())

    def append(self, command: bytes) -> int:
        """Append an entry while leading; returns its index."""
        index = self._log.last_index + 1
        self._journal.append(command, index, self.term)
        self._follow_members()
        return index

    def let_stand(self, peer: str) -> None:
        """Ask the peer to stand at once, though this replica leads."""
        self._owner.send(peer, StandNow(self.term))

    def begin_round(self) -> int:
        """While leading: number the messages of the coming tick anew, so that their answers prove leadership."""
        assert self._reign is not None
        self._reign.round += 1
        return self._reign.round

    def tick(self) -> None:
        """Let time pass: elections, commitment, applying, and what the followers should get."""
        now = self._raft.enter()
        if now - self._ticked_at > LATE_TICK_S:
            self._forgive_lateness(now)
        self._ticked_at = now
        if not self.leading and STAND_NOW < self._raft.deadline < now:
            self._ask_around(now)
        stood = self._raft.standing
        self._raft.tick()
        self._asked_to_stand = False
        if self._raft.standing and not stood:
            self._raft.deadline = now + self._timing.retry()
        if self._reign is not None:
            if self.commit_index >= self._reign.first_index:
                self._journal.set_joined()
            if self._reign.wants_entry(self.connected_peers, self.commit_index):
                self.append(bytes([NO_OP]))
            heartbeat, self._heartbeat_due = self._heartbeat_due, False
            self._reign.replicate(self.connected_peers, self.commit_index, heartbeat=heartbeat, now=now)

    def receive(self, peer: str, message: Message) -> None:
        """A message of an authenticated member."""
        now = self._raft.enter()
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
            case StandNow():
                if message.term == self.term and peer == self._raft.leader and self.is_member and not self.leading:
                    self._stand()
                    self._asked_to_stand = True
            case VoteReply():
                if message.term == self.term and peer in self._peers and peer not in self._votes:
                    self._votes.add(peer)
                    self._raft.receive_vote(peer, message.term)
                    if self._reign is not None:
                        self._reign.elected_by(peer)

    # -- elections -----------------------------------------------------------------------------------------------

    def _ask_around(self, now: float) -> None:
        """Ask whether one would be elected, before a higher term disturbs anybody."""
        self._raft.deadline = now + self._timing.retry()
        number = self._ballot.start(self.term)
        if self._majority == 1:
            self._stand()
            return
        mine = self._standing
        for peer in sorted(self.connected_peers.intersection(self._peers)):
            self._owner.send(peer, PreVote(self.term, number, mine.last_index, mine.last_term, mine.joined))

    def _stand(self) -> None:
        """Let the library start an election in this tick."""
        self._ballot.close()
        self._votes.clear()
        self._steady = set(self.connected_peers)
        self._raft.deadline = STAND_NOW

    def _on_pre_vote(self, peer: str, message: PreVote, now: float) -> None:
        candidate = Standing(message.last_term, message.last_index, message.joined)
        granted = not self._holds_to_leader(now) and self._standing.accepts(candidate)
        if candidate.joined != self._standing.joined and not self._holds_to_leader(now):
            self._tell_why_not(peer)
        if granted:
            self._raft.deadline = max(self._raft.deadline, now + self._timing.yield_to_other())
        self._owner.send(peer, PreVoteReply(self.term, message.ballot, granted))

    def _tell_why_not(self, peer: str) -> None:
        """Say once why there is no leader, though a majority is up: nothing else shows it."""
        if self._told_why_not:
            return
        self._told_why_not = True
        new, old = (peer, self._me) if self._journal.joined else (self._me, peer)
        logger.warning(NOT_EACH_OTHER, old, new, new)

    def _on_pre_vote_reply(self, peer: str, message: PreVoteReply) -> None:
        self._raft.adopt_term(message.term)
        if self.leading or peer not in self._peers:
            return
        if self._ballot.answer(peer, message.ballot, message.granted, self.term) >= self._majority:
            self._stand()

    def _on_vote(self, peer: str, message: Vote, now: float) -> None:
        candidate = Standing(message.last_term, message.last_index, message.joined)
        if (message.transfer or not self._holds_to_leader(now)) and self._standing.joined == candidate.joined:
            self._raft.receive_vote_request(peer, message.term, message.last_index, message.last_term)

    def _holds_to_leader(self, now: float) -> bool:
        """Whether there is a leader that this replica has no reason to give up."""
        if self.leading:
            return True
        return self.leader_id is not None and now - self._leader_heard_at < self._timing.election_s[0]

    def _forgive_lateness(self, now: float) -> None:
        """We were not scheduled, so that we heard nothing says nothing about others: wait once more."""
        if self.leading:
            self._raft.forgive_silence_before(now - self._timing.fallback_s + 2 * self._timing.heartbeat_s)
        elif not self._grace_given and self.leader_id is not None:
            self._grace_given = True
            grace = self._timing.heartbeat_s * (1 + self._timing.random.random())
            self._raft.deadline = max(self._raft.deadline, now + grace)

    @property
    def _standing(self) -> Standing:
        return Standing(self._log.last_term, self._log.last_index, self._journal.joined)

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
        if peer not in self.connected_peers:
            # Its last words, read after the connection closed: they are no reason to wait longer.
            self._raft.deadline = min(self._raft.deadline, now + self._timing.leader_gone())

    def _on_append(self, peer: str, message: Append) -> None:
        found = self.filter_append(self._log, self.commit_index, message.prev_index, message.prev_term, message.entries)
        if not isinstance(found, Accepted):
            self._raft.receive_heartbeat(peer, message.term)
            refusal = AppendReply(
                self.term,
                message.round,
                accepted=False,
                refused=found.prev_index,
                hint=found.hint,
                joined=self._journal.joined,
            )
            self._owner.send(peer, refusal)
            return
        self._reply_match = found.matched
        if 0 < message.vouched <= found.matched:
            self._journal.set_joined()
        self._raft.receive_append(peer, message.term, message.commit_index, found)
        self._follow_members()

    def _on_install(self, peer: str, message: Install) -> None:
        self._raft.receive_heartbeat(peer, message.term)
        offset = match = 0
        if message.index <= self.commit_index:
            match = self.commit_index
            self._snapshots.discard_received()
        else:
            offset = self._snapshots.receive_chunk(message.index, message.size, message.offset, message.data)
            if offset == message.size:
                offset, match = 0, self._finish_install()
        joined = self._journal.joined
        self._owner.send(peer, InstallReply(self.term, message.round, message.index, offset, match, joined))

    def _finish_install(self) -> int:
        """Returns the index up to which everything is here now, 0 if what came is damaged."""
        try:
            snapshot, state = self._snapshots.finish_received()
        except SnapshotDamaged as error:
            logger.error("received a bad snapshot, asking for it again: %s", error)
            return 0
        self._owner.restore(snapshot, state)
        reconcile(self._journal, snapshot)
        self._membership.rebase(snapshot.roster)
        self._raft.start(snapshot.index, snapshot.index)
        self._journal.commit_index = snapshot.index
        self._follow_members()
        return snapshot.index

    # -- as the leader -------------------------------------------------------------------------------------------

    def _on_reply(self, peer: str, message: AppendReply | InstallReply, now: float) -> None:
        self._raft.adopt_term(message.term)
        # An acknowledgement of an earlier reign says nothing about this one: the follower may have replaced entries.
        if self._reign is not None and message.term == self._reign.term:
            self._raft.note_response(peer, self._reign.on_reply(peer, message, now), now)

    # -- members -------------------------------------------------------------------------------------------------

    def _follow_members(self) -> None:
        """Go by what the log now says: a list of members counts from the moment in which it is appended."""
        if self._members_seen == self._membership.version:
            return
        self._members_seen = self._membership.version
        members = self._membership.current.ids
        self.is_member = self._me in members
        self._peers = tuple(sorted(member for member in members if member != self._me))
        self._majority = len(members) // 2 + 1
        self._raft.set_members(self._peers, self.connected_peers, member=self.is_member)
        if self._reign is not None:
            self._reign.set_voters(self._peers, self._clock.monotonic())

    # -- RaftOwner -----------------------------------------------------------------------------------------------

    def on_vote_wanted(self, peer: str, term: int) -> None:
        mine = self._standing
        self._owner.send(peer, Vote(term, mine.last_index, mine.last_term, mine.joined, self._asked_to_stand))

    def on_vote_given(self, peer: str, term: int) -> None:
        self._owner.send(peer, VoteReply(term))

    def on_accepted(self, peer: str) -> None:
        reply = AppendReply(
            self.term, self._reply_round, accepted=True, match=self._reply_match, joined=self._journal.joined
        )
        self._owner.send(peer, reply)

    def on_heartbeat_due(self) -> None:
        self._heartbeat_due = True

    def append_proposals(self) -> None:
        self._owner.append_proposals()

    def on_commit(self) -> None:
        """Apply what is committed, in order, but not for so long that heartbeats come late."""
        started = self._clock.monotonic()
        while self.applied < self.commit_index:
            index = self.applied + 1
            self._owner.apply_entry(index, self._log.entry(index)[0])
            self._raft.applied = index
            if self._clock.monotonic() - started > APPLY_S:
                return

    def on_role(self, leads: bool) -> None:
        self._reign = None
        if leads:
            self._heartbeat_due = True
            self._reign = Reign(
                term=self.term,
                log=self._log,
                snapshots=self._snapshots,
                peers=self._peers,
                founders=None if self._journal.joined else self._votes & self._steady,
                heartbeat_s=self._timing.heartbeat_s,
                send=self._owner.send,
                now=self._clock.monotonic(),
            )
        self._owner.role_changed(leads)
