"""Whom a replica is connected with: the members, and those whom a member, its settings or its leader vouch for.

A replica that was away does not know who has joined meanwhile, and would not let in the one that leads now. So members
introduce each other: each tells the others whom the newest committed list names. What is heard so says only whom to let
in; who counts is said by the log alone. Whoever has left is let in by nobody who knows it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from depalma.consensus.membership import Members, Membership
from depalma.consensus.messages import Introduce
from depalma.consensus.settings import Roster


class Acquaintances:
    """The others of one replica. No I/O."""

    def __init__(self, me: str, known: Members, membership: Membership) -> None:
        self._me = me
        self._known = known
        self._membership = membership
        self._introduced = Roster()
        self._seen: object = None
        #: the newest committed list, and whether the others are still to be told of it
        self._committed = Roster()
        self._untold = False

    def hear(self, message: Introduce) -> None:
        """A member says who is in the newest list that it knows to be committed.

        A list in our own log that is not committed says nothing against it: it may be void (seed 341108579).
        """
        if message.roster.number > max(self._introduced.number, self._committed.number):
            self._introduced = message.roster

    def changed(self, commit_index: int, guests: Members, version: object) -> Members | None:
        """The others to be connected with, None if that is as it was. `version` differs when `guests` do."""
        settled = self._membership.index <= commit_index
        seen = (self._membership.version, settled, version, self._introduced.number)
        if seen == self._seen:
            return None
        self._seen = seen
        current, committed = self._membership.current, self._membership.at(commit_index)
        self._untold = self._untold or committed.number > self._committed.number
        self._committed = committed
        newest = max(self._introduced, committed, key=lambda roster: roster.number)
        vouched = [member for member in (*self._known, *newest.members) if member.id not in newest.former]
        known = {member.id: member for member in (*vouched, *committed.members, *guests, *current.members)}
        known.pop(self._me, None)
        return tuple(known.values())

    def introductions(self, term: int, to: Collection[str], new: Iterable[str]) -> list[tuple[str, Introduce]]:
        """What to tell whom now: everybody when a new list is committed, else who has just connected."""
        whom = sorted(to) if self._untold else sorted(set(new) & set(to))
        self._untold = False
        return [(peer, Introduce(term, self._committed)) for peer in whom if self._committed.number]
