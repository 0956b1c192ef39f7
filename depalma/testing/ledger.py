"""A small state machine for tests of replication: it remembers every command, in order."""

from __future__ import annotations

import hashlib

import msgspec


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

    def snapshot(self) -> bytes:
        """All entries."""
        return msgspec.msgpack.encode([self._hash, self.entries])

    def restore(self, data: bytes) -> None:
        """Become the ledger that `snapshot` described."""
        self._hash, self.entries = msgspec.msgpack.decode(data, type=tuple[bytes, list[bytes]])

    def state_hash(self) -> str:
        """Equal for equal histories."""
        return self._hash.hex()
