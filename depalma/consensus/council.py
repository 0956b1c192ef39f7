"""What a leader does about members: one joins or leaves at a time, and leadership is handed over. No I/O.

A member that joins first gets the log without being counted (Raft thesis, 4.2.1), so that it can answer for entries
from its first moment as a member. One that leaves is still told that it has to. While leadership is handed over, what
is proposed waits: either the next leader is asked for it, or this one takes it up again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from depalma.consensus.engine import Engine
from depalma.consensus.errors import MembershipRefused, NotLeader, OutcomeUnknown, TransferFailed
from depalma.consensus.membership import Members, Membership, check_change
from depalma.consensus.owners import Callback, CouncilOwner
from depalma.consensus.replication import Follower
from depalma.consensus.settings import Member

#: a joining member that lacks fewer entries than this is as good as equal
NEARLY = 64
#: a member that was removed is told so for so long
FAREWELL_S = 2.0
#: a follower that was asked to stand and did not is asked again after so long
ASK_AGAIN_S = 0.05


@dataclass(slots=True)
class _Change:
    members: Members
    command: bytes
    callback: Callback
    joining: tuple[Member, ...]


@dataclass(slots=True)
class _Transfer:
    target: str
    until: float
    callback: Callback
    asked_at: float = float("-inf")


class Council:
    """One leader's changes of members, and its hand-over. Forgets everything when leadership ends."""

    def __init__(self, me: str, engine: Engine, membership: Membership, owner: CouncilOwner, transfer_s: float) -> None:
        self._me = me
        self._engine = engine
        self._membership = membership
        self._owner = owner
        self._transfer_s = transfer_s
        self._change: _Change | None = None
        self._transfer: _Transfer | None = None
        #: who left, with the entry that says so and until when it is still told (None: as long as it is not committed)
        self._leaving: dict[Member, tuple[int, float | None]] = {}
        #: counts how often `guests` changed
        self.version = 0

    @property
    def guests(self) -> Members:
        """Who gets the log though it is no member: whoever is about to join, or has to hear that it has left."""
        joining = self._change.joining if self._change else ()
        return (*joining, *self._leaving)

    @property
    def holds_proposals(self) -> bool:
        """Whether what is proposed has to wait, because another is about to lead."""
        return self._transfer is not None

    def change(self, members: Members, command: bytes, callback: Callback, now: float) -> None:
        """Make these the members as soon as who joins, and a majority of all, has caught up.

        `command` is applied with the change.

        Raises NotLeader, and MembershipRefused for a change that is not allowed or must wait for another.
        """
        if not self._engine.leading:
            raise NotLeader(self._engine.leader_id)
        if self._change is not None or not self._engine.settled:
            raise MembershipRefused("busy", "another change of the masters is under way; try again when it is done")
        current = self._membership.current
        check_change(current.members, members, self._me)
        joining = tuple(member for member in members if member.id not in current.ids)
        self._change = _Change(members, command, callback, joining)
        self._guests_changed(now)

    def give_up(self, error: BaseException) -> bool:
        """End a change that has not been appended; its callback gets the error. Returns False if there is none."""
        change, self._change = self._change, None
        if change is None:
            return False
        self._owner.answer(change.callback, None, error)
        self.version += 1
        return True

    def hand_over(self, target: str | None, callback: Callback, now: float) -> None:
        """Let the target lead, or (None) whoever is nearest to it; called back with its id once it has been elected.

        Raises NotLeader, and TransferFailed if that cannot be.
        """
        if not self._engine.leading:
            raise NotLeader(self._engine.leader_id)
        if self._transfer is not None:
            raise TransferFailed("leadership is being handed over already")
        others = [member for member in self._membership.current.ids if member != self._me]
        chosen = target if target is not None else self._nearest(others)
        if chosen is None or chosen not in others:
            raise TransferFailed(f"{target or 'another master'} cannot lead: it is no connected member of the cluster")
        self._transfer = _Transfer(chosen, now + self._transfer_s, callback)

    def tick(self, now: float) -> None:
        """Let time pass."""
        if self._transfer is not None:
            self._drive_transfer(self._transfer, now)
        if self._change is not None and self._engine.settled and not self._transfer:
            self._drive_change(self._change, now)
        if self._leaving:
            self._say_farewell(now)

    def leadership_lost(self) -> None:
        """Whatever was begun is over. Whoever waits for a hand-over learns who leads now, once that is known."""
        self.give_up(NotLeader(self._engine.leader_id))
        transfer, self._transfer = self._transfer, None
        if transfer is not None:
            self._owner.answer(transfer.callback, transfer.target, None)
        if self._leaving:
            self._leaving = {}
            self.version += 1

    def close(self, reason: str) -> None:
        """Tell whoever waits that the outcome is unknown."""
        self.give_up(OutcomeUnknown(reason))
        transfer, self._transfer = self._transfer, None
        if transfer is not None:
            self._owner.answer(transfer.callback, None, OutcomeUnknown(reason))

    def _drive_change(self, change: _Change, now: float) -> None:
        if not all(self._nearly_equal(member.id) for member in change.joining):
            return
        # Without a majority that can elect, the new list could neither be committed nor be voided: if this leader then
        # died, who holds it would wait for those who cannot vote, and refuse the others, who hold less.
        able = [member for member in change.members if member.id == self._me or self._nearly_equal(member.id)]
        if len(able) <= len(change.members) // 2:
            return
        before = self._membership.current
        roster = before.become(change.members)
        index = self._owner.append_membership(roster, change.command, change.callback)
        self._change = None
        self._leaving |= {member: (index, None) for member in before.members if member.id not in roster.ids}
        self._guests_changed(now)

    def _drive_transfer(self, transfer: _Transfer, now: float) -> None:
        if now > transfer.until:
            self._transfer = None
            failed = TransferFailed(f"{transfer.target} did not take over in time; {self._me} goes on leading")
            self._owner.answer(transfer.callback, None, failed)
        elif now - transfer.asked_at >= ASK_AGAIN_S and self._can_stand(transfer.target):
            transfer.asked_at = now
            self._engine.let_stand(transfer.target)

    def _say_farewell(self, now: float) -> None:
        for member, (index, until) in list(self._leaving.items()):
            if until is None and index <= self._engine.commit_index:
                self._leaving[member] = (index, now + FAREWELL_S)
            elif until is not None and now > until:
                del self._leaving[member]
                self._guests_changed(now)

    def _guests_changed(self, now: float) -> None:
        self.version += 1
        if self._engine.reign is not None:
            self._engine.reign.set_learners([guest.id for guest in self.guests], now)

    # -- what is known of others ---------------------------------------------------------------------------------

    def _follower(self, peer: str) -> Follower | None:
        """A peer that is connected, has once held everything, and so can elect and be elected."""
        reign = self._engine.reign
        follower = reign.follower(peer) if reign is not None and peer in self._engine.connected_peers else None
        return follower if follower is not None and follower.joined else None

    def _nearly_equal(self, peer: str) -> bool:
        follower = self._follower(peer)
        return follower is not None and follower.match + NEARLY >= self._engine.last_index

    def _can_stand(self, peer: str) -> bool:
        """Whether the peer has everything that is in the log, and all of it is committed: nobody waits for it."""
        follower = self._follower(peer)
        return follower is not None and follower.match == self._engine.last_index == self._engine.commit_index

    def _nearest(self, peers: Iterable[str]) -> str | None:
        """The peer that could lead soonest."""
        able = [(follower.match, peer) for peer in peers if (follower := self._follower(peer)) is not None]
        return max(able)[1] if able else None
