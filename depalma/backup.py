"""The blobs that may follow the snapshot in a saved file: each with its SHA-256, which is its checksum too.

magic
SHA-256, length, bytes        for each blob
32 zero bytes, number of blobs
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from depalma.errors import DepalmaError

MAGIC = b"DEPALMA-BLOBS-01"
_ENTRY = struct.Struct("<32sQ")
_END = bytes(32)
CHUNK_BYTES = 1 << 20


class BackupDamaged(DepalmaError):
    """The blobs of a saved file are not what was written."""


class StoredBlob(NamedTuple):
    """Where a blob stands in the file."""

    digest: str
    offset: int
    size_bytes: int


class BlobWriter:
    """Appends blobs to a file that is open for writing at its end; `finish` must be called."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._count = 0
        file.write(MAGIC)

    def add(self, digest: str, size_bytes: int, chunks: Iterable[bytes]) -> None:
        """Appends one. Errors: BackupDamaged if the bytes are others; the file is of no use then."""
        self._file.write(_ENTRY.pack(bytes.fromhex(digest), size_bytes))
        found, written = hashlib.sha256(), 0
        for chunk in chunks:
            self._file.write(chunk)
            found.update(chunk)
            written += len(chunk)
        if (found.hexdigest(), written) != (digest, size_bytes):
            raise BackupDamaged(f"blob {digest} came with {written} bytes of SHA-256 {found.hexdigest()}")
        self._count += 1

    def finish(self) -> None:
        """Writes the end."""
        self._file.write(_ENTRY.pack(_END, self._count))


def read_blobs(file: BinaryIO, offset: int) -> Iterator[StoredBlob]:
    """Yields where each blob is that follows the snapshot, which ends at `offset`; checks the frame, not the bytes.

    Errors: BackupDamaged.
    """
    size = os.fstat(file.fileno()).st_size
    if offset == size:
        return
    if os.pread(file.fileno(), len(MAGIC), offset) != MAGIC:
        raise BackupDamaged(f"at byte {offset} stands neither the end nor the first blob")
    offset += len(MAGIC)
    count = 0
    while True:
        entry = os.pread(file.fileno(), _ENTRY.size, offset)
        if len(entry) < _ENTRY.size:
            raise BackupDamaged("it is cut short")
        digest, length = _ENTRY.unpack(entry)
        offset += _ENTRY.size
        if digest == _END:
            break
        if offset + length > size:
            raise BackupDamaged(f"blob {digest.hex()} is cut short")
        yield StoredBlob(digest.hex(), offset, length)
        offset += length
        count += 1
    if (offset, length) != (size, count):
        raise BackupDamaged("its end is not where it should be")


def chunks_of(file: BinaryIO, blob: StoredBlob) -> Iterator[bytes]:
    """Yields the bytes of a blob."""
    offset, end = blob.offset, blob.offset + blob.size_bytes
    while offset < end and (data := os.pread(file.fileno(), min(CHUNK_BYTES, end - offset), offset)):
        yield data
        offset += len(data)


def check(file: BinaryIO, blob: StoredBlob) -> None:
    """Returns if the bytes are those of the digest. Errors: BackupDamaged."""
    found = hashlib.sha256()
    for chunk in chunks_of(file, blob):
        found.update(chunk)
    if found.hexdigest() != blob.digest:
        raise BackupDamaged(f"blob {blob.digest} has other bytes than were written")
