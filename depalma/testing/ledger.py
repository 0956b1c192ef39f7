"""A small state machine for tests of replication: it remembers every command, in order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import msgspec

#: entries in one piece of a snapshot
_PIECE_ENTRIES = 100


class Ledger:
    """A list of the commands applied, with a running hash over number and content of each."""

    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self._hash = b""

    def apply(self, command: bytes, index: int) -> object:
        """Remember the command; answers its number. Raises ValueError if a number is skipped or repeated."""
        if index != len(self.entries) + 1:
            raise ValueError(f"command {index} came after {len(self.entries)}")
        self.entries.append(command)
        self._hash = hashlib.blake2b(self._hash + b"%d:" % index + command, digest_size=8).digest()
        return index

    def snapshot(self) -> Iterator[bytes]:
        """All entries, some at a time."""
        yield self._hash
        for start in range(0, len(self.entries), _PIECE_ENTRIES):
            yield msgspec.msgpack.encode(self.entries[start : start + _PIECE_ENTRIES])

    def restore(self, pieces: Iterable[bytes]) -> None:
        """Become the ledger that `snapshot` described."""
        first, *rest = pieces
        self._hash = first
        self.entries = [entry for piece in rest for entry in msgspec.msgpack.decode(piece, type=list[bytes])]

    def state_hash(self) -> str:
        """Equal for equal histories."""
        return self._hash.hex()
