"""Watches what leaders send to followers that are behind: the log at most twice, and never again and again."""

from __future__ import annotations

from collections import defaultdict

from depalma.consensus.messages import Append, Install, decode
from depalma.testing.cluster import Violation

#: sent in addition to twice the log: what was on its way when a connection closed, and the first guesses
SLACK_BYTES = 16_384


class CatchUp:
    """Count what each leader sends to each follower; hand `note` every frame that is sent."""

    def __init__(self) -> None:
        #: by term, leader and follower: bytes of entries and snapshots sent
        self.sent_bytes: defaultdict[tuple[int, str, str], int] = defaultdict(int)
        #: the same, each entry and each byte of a snapshot once
        self.distinct_bytes: defaultdict[tuple[int, str, str], int] = defaultdict(int)
        self._seen: set[tuple[int, str, str, int, int]] = set()

    def note(self, sender: str, receiver: str, frame: bytes) -> None:
        """A frame is sent."""
        message = decode(frame)
        if isinstance(message, Append):
            for index, (_, command) in enumerate(message.entries, message.prev_index + 1):
                self._add(message.term, sender, receiver, index, -1, len(command))
        elif isinstance(message, Install) and message.data:
            self._add(message.term, sender, receiver, message.index, message.offset, len(message.data))

    def judge(self) -> None:
        """Raise Violation if somebody sent more than twice what there was."""
        for key, sent in self.sent_bytes.items():
            term, leader, follower = key
            there = self.distinct_bytes[key]
            if sent > 2 * there + SLACK_BYTES:
                raise Violation(f"{leader} sent {sent} bytes to {follower} in term {term}, of {there} that there were")

    def _add(self, term: int, sender: str, receiver: str, index: int, offset: int, size_bytes: int) -> None:
        key = (term, sender, receiver)
        self.sent_bytes[key] += size_bytes
        if (*key, index, offset) not in self._seen:
            self._seen.add((*key, index, offset))
            self.distinct_bytes[key] += size_bytes
