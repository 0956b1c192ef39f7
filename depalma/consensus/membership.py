"""Who the members are: what the log says, and nothing else. Pure.

The list of members is the content of the newest membership entry in the log, committed or not (Raft thesis, 4.1): it
counts from the moment in which it is appended, and falls back to the one before if the entry is voided. Two lists
that follow each other differ by one member at most, so any majority of one and any of the other share a member.
"""

from __future__ import annotations

import msgspec

from depalma.consensus import envelope
from depalma.consensus.errors import MembershipRefused
from depalma.consensus.log import Log
from depalma.consensus.settings import MAX_MEMBERS, Member, Roster

Members = tuple[Member, ...]

_decoder = msgspec.msgpack.Decoder(Roster)


def pack(roster: Roster, commands: list[bytes]) -> bytes:
    """A log entry that makes these the members; the commands are applied with it."""
    return envelope.pack_membership(msgspec.msgpack.encode(roster), commands)


class Membership:
    """The members at each point of one replica's log."""

    def __init__(self, log: Log, founders: Members) -> None:
        self._log = log
        #: whom the settings name; they hold as long as neither log nor snapshot says anything
        self._founders = Roster(members=founders)
        self._base = self._founders
        self._rebases = 0

    def rebase(self, roster: Roster | None) -> None:
        """A snapshot that says this is in place; None if it says nothing."""
        self._base = roster or self._founders
        self._rebases += 1

    @property
    def version(self) -> tuple[int, int]:
        """Differs whenever `current` may differ."""
        return self._log.membership_changes, self._rebases

    @property
    def current(self) -> Roster:
        """The members now."""
        return self.at(self._log.last_index)

    @property
    def index(self) -> int:
        """The newest membership entry that is still in the log; 0 if there is none."""
        return self._log.membership[-1] if self._log.membership else 0

    def at(self, index: int) -> Roster:
        """The members as of this entry, which must not be older than the newest snapshot."""
        for position in reversed(self._log.membership):
            if position <= index:
                content = envelope.membership(self._log.entry(position)[0])
                assert content is not None
                return _decoder.decode(content)
        return self._base

    def recorded_at(self, index: int) -> Roster | None:
        """The same for a snapshot that ends with this entry; None if neither log nor snapshot say it."""
        found = self.at(index)
        return found if found.number else None


def check_change(now: Members, wanted: Members, me: str) -> None:
    """Raise MembershipRefused unless a leader may go from the one to the other in one step."""
    before, after = {member.id: member for member in now}, {member.id: member for member in wanted}
    if len(after) != len(wanted):
        raise MembershipRefused("twice", "a master is named twice")
    if me not in after:
        raise MembershipRefused("leader", f"{me} leads and cannot leave; hand leadership over first")
    if len(wanted) > MAX_MEMBERS:
        raise MembershipRefused("too_many", f"{len(wanted)} masters; allowed: {MAX_MEMBERS} at most")
    if len(before.keys() ^ after.keys()) > 1:
        raise MembershipRefused("one_at_a_time", "masters join and leave one at a time")
    places = [(member.host, member.raft_port) for member in wanted]
    if len(set(places)) != len(places):
        raise MembershipRefused("same_address", "two masters have the same address and Raft port")
