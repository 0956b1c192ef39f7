"""What each layer asks of the one above it: the library's Raft, the engine around it, the leader's council."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from depalma.consensus.messages import Message
from depalma.consensus.settings import Roster
from depalma.consensus.snapshot import Snapshot

#: called once with the answer, or with the error
Callback = Callable[[object, BaseException | None], None]


class RaftOwner(Protocol):
    """What the library, once its overridden parts are ours, asks for."""

    def on_vote_wanted(self, peer: str, term: int) -> None:
        """We stand in `term`: ask the peer."""
        ...

    def on_vote_given(self, peer: str, term: int) -> None:
        """We voted for the peer: tell it."""
        ...

    def on_accepted(self, peer: str) -> None:
        """The leader's entries are in the log: acknowledge them."""
        ...

    def on_heartbeat_due(self) -> None:
        """We lead, and every follower should hear of it."""
        ...

    def on_commit(self) -> None:
        """Apply what is committed."""
        ...

    def append_proposals(self) -> None:
        """We lead: append what was proposed."""
        ...

    def on_role(self, leads: bool) -> None:
        """We have begun or ceased to lead."""
        ...


class EngineOwner(Protocol):
    """What the engine asks of the replica it works for."""

    def send(self, peer: str, message: Message) -> None:
        """Put the message into the outbox; it leaves after the journal is flushed."""
        ...

    def append_proposals(self) -> None:
        """Called while leading: append what was proposed."""
        ...

    def apply_entry(self, index: int, entry: bytes) -> None:
        """A committed entry; each exactly once and in order."""
        ...

    def restore(self, snapshot: Snapshot, state: Iterable[bytes]) -> None:
        """Become this state: everything up to `snapshot.index` is in it."""
        ...

    def role_changed(self, leading: bool) -> None:
        """This replica has begun or ceased to lead (in its own opinion)."""
        ...


class CouncilOwner(Protocol):
    """What the council asks of the replica it works for."""

    def append_membership(self, roster: Roster, command: bytes, callback: Callback) -> int:
        """Append the entry that makes these the members; returns its index."""
        ...

    def answer(self, callback: Callback, value: object, error: BaseException | None) -> None:
        """Call back after the tick, once everything it follows from is on disk."""
        ...
