"""Snapshots on disk: one file each, with a format number and a checksum, put in place atomically."""

from __future__ import annotations

import logging
import re
import struct
import zlib
from dataclasses import dataclass
from hashlib import blake2b  # not OpenSSL's: its locks could be held by another thread when we fork

import msgspec

from depalma.consensus.disk import AppendFile, Disk, disk_errors
from depalma.consensus.errors import SnapshotDamaged

logger = logging.getLogger(__name__)

MAGIC = b"DEPALMA-SNAPSHOT"
FORMAT = 1
#: magic, format number, header length, header checksum
_PREFIX = struct.Struct("<16sIII")
_NAME = re.compile(r"snapshot-(\d{20})\.snap")
_WRITTEN = "snapshot.tmp"
_RECEIVED = "snapshot-received.tmp"
_WRITE_BYTES = 1 << 20
_SYNC_BYTES = 16 << 20


class Header(msgspec.Struct, frozen=True):
    """What a snapshot holds: everything up to log entry `index`, whose last command was number `sequence`."""

    index: int
    term: int
    sequence: int
    payload_bytes: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that is durably in place."""

    index: int
    term: int
    sequence: int
    name: str
    size_bytes: int


def encode(index: int, term: int, sequence: int, state: bytes) -> bytes:
    """The whole file for this state."""
    payload = zlib.compress(state, 1)
    header = msgspec.msgpack.encode(
        Header(index, term, sequence, len(payload), blake2b(payload, digest_size=16).digest())
    )
    return _PREFIX.pack(MAGIC, FORMAT, len(header), zlib.crc32(header)) + header + payload


def decode(data: bytes, path: str) -> tuple[Header, bytes]:
    """Header and state of a file. Raises SnapshotDamaged that names `path`."""
    if len(data) < _PREFIX.size:
        raise SnapshotDamaged(path, "it is cut short")
    magic, format_number, length, checksum = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise SnapshotDamaged(path, "it is no snapshot")
    if format_number != FORMAT:
        raise SnapshotDamaged(path, f"format {format_number} is unknown to this release, which reads {FORMAT}")
    head = data[_PREFIX.size : _PREFIX.size + length]
    if zlib.crc32(head) != checksum:
        raise SnapshotDamaged(path, "checksum of its header is wrong")
    header = msgspec.msgpack.decode(head, type=Header)
    payload = memoryview(data)[_PREFIX.size + length :]
    if len(payload) != header.payload_bytes or blake2b(payload, digest_size=16).digest() != header.digest:
        raise SnapshotDamaged(path, "checksum of its content is wrong")
    return header, zlib.decompress(payload)


class SnapshotStore:
    """The newest snapshot of one replica, the one being written and the one being received."""

    def __init__(self, disk: Disk) -> None:
        self.newest: Snapshot | None = None
        self._disk = disk
        self._receiving: AppendFile | None = None
        self._received_index = 0
        self._received_bytes = 0
        self._unsynced_bytes = 0

    def open(self) -> bytes | None:
        """The state of the newest snapshot, None if there is none. Raises SnapshotDamaged, DiskFailed."""
        with disk_errors("reading", self._disk.path("snapshots")):
            names = [name for name in self._disk.names() if _NAME.fullmatch(name)]
            for name in self._disk.names():
                if name in (_WRITTEN, _RECEIVED):
                    self._disk.remove(name)
            if not names:
                return None
            data = self._disk.read(names[-1])
        header, state = decode(data, self._disk.path(names[-1]))
        self.newest = Snapshot(header.index, header.term, header.sequence, names[-1], len(data))
        self._remove_older()
        return state

    def write(self, index: int, term: int, sequence: int, state: bytes) -> None:
        """Write a snapshot file and sync it, without giving it its name. May run in a forked child."""
        data = encode(index, term, sequence, state)
        file = self._disk.create(_WRITTEN)
        try:
            for start in range(0, len(data), _WRITE_BYTES):
                file.write(data[start : start + _WRITE_BYTES])
            file.sync()
        finally:
            file.close()

    def publish(self, index: int, term: int, sequence: int) -> Snapshot | None:
        """Put the written snapshot in place, durably; None if a newer one came meanwhile."""
        if self.newest is not None and self.newest.index >= index:
            return None
        return self._put(_WRITTEN, index, term, sequence)

    def read_chunk(self, snapshot: Snapshot, offset: int, size: int) -> bytes:
        """A piece of the file, to be sent. Raises DiskFailed."""
        with disk_errors("reading", self._disk.path(snapshot.name)):
            return self._disk.read_at(snapshot.name, offset, size)

    def receive_chunk(self, index: int, offset: int, data: bytes) -> int:
        """Take a piece of a leader's snapshot; returns the offset that is wanted next. Raises DiskFailed."""
        with disk_errors("writing", self._disk.path(_RECEIVED)):
            if self._receiving is None or index != self._received_index:
                self.discard_received()
                if offset:
                    return 0
                self._receiving = self._disk.create(_RECEIVED)
                self._received_index = index
            if offset == self._received_bytes and data:
                self._receiving.write(data)
                self._received_bytes += len(data)
                self._unsynced_bytes += len(data)
                if self._unsynced_bytes >= _SYNC_BYTES:
                    self._receiving.sync()
                    self._unsynced_bytes = 0
        return self._received_bytes

    def finish_received(self) -> tuple[Snapshot, bytes]:
        """Check the received snapshot and put it in place, durably.

        Raises SnapshotDamaged (what was received is then discarded) and DiskFailed.
        """
        path = self._disk.path(_RECEIVED)
        with disk_errors("writing", path):
            assert self._receiving is not None
            self._receiving.sync()
            data = self._disk.read(_RECEIVED)
        try:
            header, state = decode(data, path)
        except SnapshotDamaged:
            self.discard_received()
            raise
        self._receiving.close()
        self._receiving = None
        return self._put(_RECEIVED, header.index, header.term, header.sequence), state

    def discard_received(self) -> None:
        """Forget a half received snapshot."""
        if self._receiving is not None:
            self._receiving.close()
            self._receiving = None
        self._received_bytes = self._unsynced_bytes = 0

    def close(self) -> None:
        """Close what is open."""
        self.discard_received()

    def _put(self, temporary: str, index: int, term: int, sequence: int) -> Snapshot:
        name = f"snapshot-{index:020d}.snap"
        with disk_errors("placing", self._disk.path(name)):
            self._disk.rename(temporary, name)
            self._disk.sync_dir()
            size = self._disk.size(name)
        self.newest = Snapshot(index, term, sequence, name, size)
        self._remove_older()
        return self.newest

    def _remove_older(self) -> None:
        """Older snapshots are not needed: the newest is durable. Their files may stay after a crash."""
        assert self.newest is not None
        with disk_errors("removing", self._disk.path("snapshots")):
            for name in self._disk.names():
                if _NAME.fullmatch(name) and name < self.newest.name:
                    self._disk.remove(name)
