"""What a leader knows about each follower, and what it therefore sends. Pure: no clock, no socket.

`match` only grows within a reign, `next` only falls after a refusal that answers the probe in flight, and one
refusal causes at most one new probe: a slow follower cannot start a storm of resends.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from depalma.consensus.log import Log
from depalma.consensus.messages import Append
from depalma.consensus.settings import MIB
from depalma.consensus.snapshot import Snapshot

APPEND_BYTES = 1 * MIB
APPEND_ENTRIES = 512
#: while it is not known where the logs agree, a message may be for nothing: it carries no more than this
PROBE_BYTES = 4096
WINDOW_BYTES = 8 * MIB
WINDOW_MESSAGES = 256
#: without an answer for so many heartbeats, what was sent counts as lost
LOST_AFTER_HEARTBEATS = 4


class Mode(Enum):
    """How entries go to a follower."""

    #: one message at a time, until it is known where the logs agree
    PROBE = "probe"
    #: many in flight
    STREAM = "stream"
    #: the follower needs a snapshot first
    SNAPSHOT = "snapshot"


@dataclass(slots=True)
class Transfer:
    """A snapshot on its way: one piece in flight at a time."""

    snapshot: Snapshot
    offset: int = 0
    in_flight: bool = False


@dataclass(slots=True)
class Follower:
    """A leader's view of one follower."""

    next: int
    match: int = 0
    mode: Mode = Mode.PROBE
    #: last index and size of each message in flight
    window: deque[tuple[int, int]] = field(default_factory=deque)
    window_bytes: int = 0
    probe_in_flight: bool = False
    #: when an answer last moved things on
    moved_at: float = 0.0
    sent_at: float = 0.0
    commit_sent: int = 0
    round_sent: int = 0
    round_answered: int = 0
    transfer: Transfer | None = None
    #: it has said that it once held everything that was committed: it can be elected, and may elect
    joined: bool = False
    #: the end of the log when it first said, on this connection, that it has not
    came_at: int | None = None
    #: what it has to hold to be counted again; 0: not known yet
    vouched: int = 0

    def reconnected(self) -> None:
        """What was in flight is lost; start again from what is known. It may have been given a new disk meanwhile."""
        self.came_at, self.vouched = None, 0
        if self.transfer is not None:
            self.transfer.in_flight = False
        else:
            self._probe(self.match + 1 if self.match else self.next)

    def accepted(self, match: int, now: float) -> None:
        """The follower has everything up to `match`."""
        if match > self.match:
            self.match = match
        self.moved_at = now
        while self.window and self.window[0][0] <= match:
            self.window_bytes -= self.window.popleft()[1]
        if self.mode is Mode.PROBE:
            self.mode = Mode.STREAM
            self.probe_in_flight = False
            self.next = self.match + 1
        else:
            self.next = max(self.next, self.match + 1)

    def refused(self, prev_index: int, hint: int, now: float) -> bool:
        """The follower does not have `prev_index`. Returns True if it has lost what it had acknowledged."""
        self.moved_at = now
        if self.mode is Mode.STREAM:
            if prev_index > self.match:
                self._probe(self.match + 1)
            return False
        if self.mode is not Mode.PROBE or not self.probe_in_flight or prev_index != self.next - 1:
            return False  # answers something older
        lost = prev_index <= self.match
        if lost:
            self.match = 0
        self._probe(max(self.match + 1, min(prev_index, hint)))
        return lost

    def lost(self) -> None:
        """Nothing was answered for too long: send again from what is known."""
        if self.transfer is not None:
            self.transfer.in_flight = False
        elif self.mode is Mode.STREAM:
            self._probe(self.match + 1)
        else:
            self.probe_in_flight = False

    def waits(self) -> bool:
        """Whether an answer is due."""
        if self.transfer is not None:
            return self.transfer.in_flight
        return bool(self.window) or self.probe_in_flight

    def start_transfer(self, snapshot: Snapshot) -> Transfer:
        """From now on send this snapshot."""
        self._probe(self.next)
        self.mode = Mode.SNAPSHOT
        self.transfer = Transfer(snapshot)
        return self.transfer

    def end_transfer(self, match: int, now: float) -> None:
        """The follower has everything up to `match` without (more of) the snapshot."""
        self.transfer = None
        self.match = max(self.match, match)
        self.moved_at = now
        self._probe(self.match + 1)

    def _probe(self, next_index: int) -> None:
        self.mode = Mode.PROBE
        self.next = next_index
        self.probe_in_flight = False
        self.window.clear()
        self.window_bytes = 0


def next_append(
    follower: Follower, log: Log, *, term: int, commit_index: int, round_number: int, heartbeat: bool
) -> Append | None:
    """The next message that the follower should get now, if any; call again until there is none.

    An empty one goes out only if `heartbeat` asks for it, or a read waits for its round to be answered.
    """
    empty = heartbeat or follower.round_sent < round_number
    prev = follower.next - 1
    entries: list[tuple[int, bytes]] = []
    if follower.mode is Mode.PROBE:
        if follower.probe_in_flight and not empty:
            return None
        if not follower.probe_in_flight:
            entries = _entries(log, follower.next, PROBE_BYTES)
            if sum(len(command) for _, command in entries) > PROBE_BYTES:
                entries = []
    else:
        full = follower.window_bytes >= WINDOW_BYTES or len(follower.window) >= WINDOW_MESSAGES
        if not full:
            entries = _entries(log, follower.next)
        if not entries and not empty:
            return None
        if entries:
            size = sum(len(command) for _, command in entries)
            follower.next += len(entries)
            follower.window.append((prev + len(entries), size))
            follower.window_bytes += size
    follower.probe_in_flight = follower.mode is Mode.PROBE
    follower.round_sent = round_number
    follower.commit_sent = commit_index
    return Append(term, round_number, commit_index, prev, log.term_at(prev), entries, follower.vouched)


def _entries(log: Log, first: int, limit_bytes: int = APPEND_BYTES) -> list[tuple[int, bytes]]:
    """The next entries; one at least, however large it is."""
    found = log.entries(first, APPEND_ENTRIES, limit_bytes)
    return [(term, command) for command, _, term in found]
