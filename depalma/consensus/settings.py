"""What a replica is told when it is made, and what it replicates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

MIB = 1 << 20
#: more members cost more for each write than they add in safety
MAX_MEMBERS = 7


class StateMachine(Protocol):
    """The state that is replicated. Every replica applies the same commands in the same order.

    `index` is the number of the command: the first is 1, the next 2, …; the same on every replica, for ever.
    """

    def apply(self, command: bytes, index: int) -> object:
        """Change the state by one command and answer. Pure: an exception means a broken invariant and stops us."""
        ...

    def snapshot(self) -> Iterable[bytes]:
        """The whole state, in pieces of up to some MiB. Called in a forked child (in simulation: in place)."""
        ...

    def restore(self, pieces: Iterable[bytes]) -> None:
        """Become the state that `snapshot` gave, from the same pieces in the same order."""
        ...


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One replica of the cluster, and where the others reach it. Stands in log and snapshot."""

    id: str
    host: str
    raft_port: int
    #: of the service around the replica; consensus only keeps it for whom it concerns
    port: int = 0


class Roster(msgspec.Struct, frozen=True):
    """Who the members are. Stands in log and snapshot."""

    #: each change makes the next; 0 for what the settings say
    number: int = 0
    members: tuple[Member, ...] = ()
    #: ids of those who have left: they are not let in any more
    former: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the members."""
        return tuple(member.id for member in self.members)

    def become(self, members: tuple[Member, ...]) -> Roster:
        """The next one, with these members."""
        ids = {member.id for member in members}
        left = dict.fromkeys(known for known in (*self.former, *self.ids) if known not in ids)
        return Roster(self.number + 1, members, tuple(left))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSettings:
    """Everything that one replica needs to know. Sizes are in bytes, times in seconds."""

    id: str
    #: whom the cluster begins with, this one included unless it joins; afterwards the log says who the members are
    members: tuple[Member, ...]
    #: journal, vote and snapshots live here; mode 0700, one process at a time
    directory: Path
    #: name of the cluster; written into snapshots
    cluster: str = ""
    #: a follower that hears no leader waits a random time in this range before it asks for votes
    election_s: tuple[float, float] = (0.3, 0.6)
    snapshot_every_entries: int = 20_000
    snapshot_every_bytes: int = 64 * MIB
    #: entries kept in the log behind a snapshot, so that a follower a little behind needs no snapshot
    keep_entries: int = 1_000
    segment_bytes: int = 16 * MIB
    max_command_bytes: int = 4 * MIB
    #: most commands and bytes that are put into one log entry
    group_commands: int = 1_024
    group_bytes: int = 1 * MIB
    #: a connection on which nothing was heard for so long is closed
    connection_timeout_s: float = 3.0
    #: the cluster is there already: take no part in it before its leader says that this replica is a member
    joining: bool = False

    def __post_init__(self) -> None:
        ids = [member.id for member in self.members]
        if len(set(ids)) != len(ids) or not 1 <= len(ids) <= MAX_MEMBERS:
            raise ValueError(f"a cluster has 1 to {MAX_MEMBERS} members with different ids, not {ids}")
        if self.id not in ids:
            raise ValueError(f"member {self.id!r} is not one of {ids}")
        shortest, longest = self.election_s
        if not 0 < shortest < longest:
            raise ValueError(f"election_s must be a growing pair of positive seconds, not {self.election_s}")
        if self.max_command_bytes > 8 * MIB or self.group_bytes > 8 * MIB:
            raise ValueError("max_command_bytes and group_bytes may be 8 MiB at most (a frame holds 16 MiB)")

    @property
    def me(self) -> Member:
        """This replica's own entry."""
        return next(member for member in self.members if member.id == self.id)

    @property
    def heartbeat_s(self) -> float:
        """How often a leader is heard: three times within the shortest election timeout."""
        return self.election_s[0] * 0.3

    @property
    def fallback_s(self) -> float:
        """A leader that no majority has answered for so long steps down."""
        return self.election_s[1] * 1.5
