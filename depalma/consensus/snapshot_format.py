"""What a snapshot file looks like, and reading one without trusting it.

    magic, format number, header length, checksum of the header
    header: msgpack map; fields are added with a default, so that a newer release reads an older one's
    pieces: stored length, raw length, checksum, then zlib data (raw, where that is hardly longer)
    end: stored length 0, number of pieces; then BLAKE2b over everything before it

The format number is raised when an older release could not read what this one writes; it then refuses with a message.
Format 1 (the first release) was one zlib stream, its digest in the header.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b  # not OpenSSL's: its locks could be held by another thread when we fork

import msgspec

from depalma.consensus.errors import SnapshotDamaged, SnapshotTooNew
from depalma.consensus.settings import Roster

MAGIC = b"DEPALMA-SNAPSHOT"
FORMAT = 2
#: magic, format number, header length, header checksum
_PREFIX = struct.Struct("<16sIII")
#: stored length, raw length, checksum of what is stored
_PIECE = struct.Struct("<III")
_DIGEST_BYTES = 16
_MAX_HEADER_BYTES = 1 << 20
#: no piece is larger once it is unpacked; a larger one is damage
MAX_PIECE_BYTES = 1 << 30
#: small pieces are written together
_WRITE_BYTES = 1 << 20
_READ_BYTES = 1 << 20
#: a piece is packed if that makes it shorter than this
_WORTH = 7 / 8
_SAMPLES = 8
_SAMPLE_BYTES = 2048


class Header(msgspec.Struct, frozen=True):
    """What a snapshot holds: everything up to log entry `index`, whose last command was number `sequence`."""

    index: int
    term: int
    sequence: int
    #: for people and for tools: whose state it is
    cluster: str = ""
    release: str = ""
    #: the members as of `index`; None: nothing had been recorded, the settings say it
    roster: Roster | None = None


class _Header1(msgspec.Struct, frozen=True):
    index: int
    term: int
    sequence: int
    payload_bytes: int
    digest: bytes


def write(put: Callable[[bytes], None], header: Header, pieces: Iterable[bytes]) -> None:
    """Put the whole file, a MiB or so at a time."""
    digest = blake2b(digest_size=_DIGEST_BYTES)
    head = msgspec.msgpack.encode(header)
    buffer = [_PREFIX.pack(MAGIC, FORMAT, len(head), _checksum(FORMAT, head)), head]
    size = count = 0
    for piece in pieces:
        stored = _packed(piece)
        buffer += (_PIECE.pack(len(stored), len(piece), zlib.crc32(stored)), stored)
        size += len(stored)
        count += 1
        if size >= _WRITE_BYTES:
            data = b"".join(buffer)
            digest.update(data)
            put(data)
            buffer, size = [], 0
    data = b"".join((*buffer, _PIECE.pack(0, count, 0)))
    digest.update(data)
    put(data + digest.digest())


def _packed(piece: bytes) -> bytes:
    """The piece as zlib data if that saves enough; trying costs thirty times what writing costs, so samples decide."""
    step = len(piece) // _SAMPLES
    if step > 2 * _SAMPLE_BYTES:
        sample = b"".join(piece[start : start + _SAMPLE_BYTES] for start in range(0, len(piece), step))
        if len(zlib.compress(sample, 1)) > _WORTH * len(sample):
            return piece
    packed = zlib.compress(piece, 1)
    return packed if len(packed) <= _WORTH * len(piece) or not piece else piece  # an empty one would be the end


def encode(header: Header, pieces: Iterable[bytes]) -> bytes:
    """The whole file."""
    parts: list[bytes] = []
    write(parts.append, header, pieces)
    return b"".join(parts)


def _checksum(number: int, head: bytes) -> int:
    """Covers the format number too, from 2 on: so "too new" and "damaged" can be told apart, now and later."""
    return zlib.crc32(head, zlib.crc32(number.to_bytes(4, "little")) if number > 1 else 0)


class SnapshotReader:
    """A snapshot file, read from front to end; whatever is wrong in it raises SnapshotDamaged that names `path`.

    `read_at(offset, size)` gives the file's bytes, fewer at its end. Reads the header at once.
    """

    def __init__(self, read_at: Callable[[int, int], bytes], path: str) -> None:
        self._read_at = read_at
        self._path = path
        self._digest = blake2b(digest_size=_DIGEST_BYTES)
        self._buffer = b""
        self._used = 0  #: so much of the buffer was taken
        self._offset = 0  #: of the file, behind the buffer
        self.format, self._header = self._read_header()

    @property
    def header(self) -> Header:
        """What the snapshot holds."""
        if isinstance(self._header, Header):
            return self._header
        return Header(self._header.index, self._header.term, self._header.sequence)

    @property
    def end(self) -> int:
        """Where reading has come to; after the last piece: where the snapshot ends."""
        return self._offset - len(self._buffer) + self._used

    def pieces(self) -> Iterator[bytes]:
        """The pieces that were written, each checked; the last one comes only if the whole file was right."""
        last: bytes | None = None
        for stored, raw in self._stored():
            if last is not None:
                yield last
            last = self._unpack(stored, raw)
        if last is not None:
            yield last

    def check(self) -> None:
        """Read everything and compare the checksums, without unpacking."""
        for _ in self._stored():
            pass

    def check_end(self) -> None:
        """Nothing may follow the snapshot in its file."""
        if self._take(1):
            raise self._damaged("something follows its end")

    def _read_header(self) -> tuple[int, Header | _Header1]:
        prefix = self._take(_PREFIX.size)
        if prefix[: len(MAGIC)] != MAGIC[: len(prefix)]:
            raise self._damaged("it is no snapshot")
        if len(prefix) < _PREFIX.size:
            raise self._damaged("it is cut short")
        _, number, length, checksum = _PREFIX.unpack(prefix)
        head = self._take(min(length, _MAX_HEADER_BYTES))
        if len(head) != length or _checksum(number, head) != checksum or not number:
            raise self._damaged("the checksum of its header is wrong")
        if number > FORMAT:
            raise SnapshotTooNew(self._path, number, FORMAT)
        try:
            if number == 1:
                return number, msgspec.msgpack.decode(head, type=_Header1)
            return number, msgspec.msgpack.decode(head, type=Header)
        except msgspec.MsgspecError as error:
            raise self._damaged(f"its header cannot be read: {error}") from error

    def _stored(self) -> Iterator[tuple[bytes, int]]:
        """Each piece as it is stored, and its raw length (-1: not known)."""
        if isinstance(self._header, _Header1):
            yield self._payload_1(self._header), -1
            return
        count = 0
        while True:
            place = self.end
            frame = self._take(_PIECE.size)
            if len(frame) < _PIECE.size:
                raise self._damaged("it is cut short")
            length, raw, checksum = _PIECE.unpack(frame)
            if not length:
                break
            stored = self._take(length) if max(length, raw) <= MAX_PIECE_BYTES else b""
            if len(stored) != length or zlib.crc32(stored) != checksum:
                raise self._damaged(f"the checksum of the piece at byte {place} is wrong")
            count += 1
            yield stored, raw
        found = self._digest.digest()
        if raw != count or self._take(_DIGEST_BYTES) != found:
            raise self._damaged("the checksum of the whole is wrong")

    def _payload_1(self, header: _Header1) -> bytes:
        payload = self._take(header.payload_bytes)
        if len(payload) != header.payload_bytes or blake2b(payload, digest_size=16).digest() != header.digest:
            raise self._damaged("the checksum of its content is wrong")
        return payload

    def _unpack(self, stored: bytes, raw: int) -> bytes:
        if raw == len(stored):
            return stored
        try:
            data = zlib.decompress(stored, bufsize=max(raw, 1))
        except zlib.error as error:
            raise self._damaged(f"it cannot be unpacked: {error}") from error
        if raw not in (-1, len(data)):
            raise self._damaged("a piece has another length than it says")
        return data

    def _take(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end of the file."""
        if len(self._buffer) - self._used < size:
            self._fill(size)
        taken = self._buffer[self._used : self._used + size]
        self._used += len(taken)
        self._digest.update(taken)
        return taken

    def _fill(self, size: int) -> None:
        parts = [self._buffer[self._used :]]
        have = len(parts[0])
        while have < size and (data := self._read_at(self._offset, max(_READ_BYTES, size - have))):
            self._offset += len(data)
            have += len(data)
            parts.append(data)
        self._buffer, self._used = b"".join(parts), 0

    def _damaged(self, what: str) -> SnapshotDamaged:
        return SnapshotDamaged(self._path, what)
