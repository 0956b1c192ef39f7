"""When to ask for votes and when to refuse: the manners that stock Raft lacks. Pure.

Nothing here can break safety: it only decides when an election is started and which requests are not even looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

#: after the connection to the leader closed, a follower waits a random time in this range
LEADER_GONE_S = (0.02, 0.12)
NOT_EACH_OTHER = (
    "%s and %s do not elect each other: the directory of %s is new and may have replaced one that held acknowledged "
    "entries. Start the other masters: one that held them has to lead first"
)


@dataclass(slots=True)
class Timing:
    """Election times in seconds, drawn at random so that two followers seldom collide."""

    election_s: tuple[float, float]
    heartbeat_s: float
    fallback_s: float
    random: Random

    def election(self) -> float:
        """How long a follower waits for a silent leader."""
        return self.random.uniform(*self.election_s)

    def retry(self) -> float:
        """How long until the next try after one that found no majority; shorter, since no leader is known."""
        shortest = self.election_s[0]
        return self.random.uniform(shortest / 3, shortest)

    def leader_gone(self) -> float:
        """How long a follower waits when the connection to the leader has closed."""
        return min(self.random.uniform(*LEADER_GONE_S), self.election_s[0])

    def yield_to_other(self) -> float:
        """How long one waits who has just encouraged another to stand."""
        return self.random.uniform(self.election_s[0] / 6, self.election_s[0] / 3)


@dataclass(slots=True)
class Ballot:
    """A round of asking whether one would be elected: in the term after `term`, and in no other."""

    number: int = 0
    term: int = 0
    granted: set[str] = field(default_factory=set)
    open: bool = False

    def start(self, term: int) -> int:
        """A new round of a replica in `term`; answers to earlier ones no longer count."""
        self.number += 1
        self.term = term
        self.granted.clear()
        self.open = True
        return self.number

    def close(self) -> None:
        """No answer counts any more."""
        self.open = False

    def answer(self, peer: str, number: int, granted: bool, term: int) -> int:
        """Count an answer; returns how many are in favour, this replica included (0 if the round is over).

        The round is over when this replica's `term` has changed: it may have voted for somebody in the new one, who
        would be deposed by an election that the old round starts.
        """
        if not self.open or number != self.number or term != self.term:
            return 0
        if granted:
            self.granted.add(peer)
        return len(self.granted) + 1


@dataclass(frozen=True, slots=True)
class Standing:
    """What an election compares: how complete a log is, and whether its replica ever was."""

    last_term: int
    last_index: int
    joined: bool

    def accepts(self, candidate: Standing) -> bool:
        """Whether one who stands like this may vote for the candidate.

        A replica that has never held all that was committed (`joined`: its directory is new, perhaps because its
        disk was lost) neither elects nor is elected by those that have: it might have forgotten what it acknowledged.
        In a new cluster nobody has joined, and all may vote.
        """
        return self.joined == candidate.joined and (candidate.last_term, candidate.last_index) >= (
            self.last_term,
            self.last_index,
        )
