"""The file of a snapshot: every damage is found, formats are told apart, and what the first release wrote is read."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from random import Random

import pytest

from depalma.consensus.errors import SnapshotDamaged, SnapshotTooNew
from depalma.consensus.snapshot_format import FORMAT, Header, SnapshotReader, encode

HEADER = Header(7, 2, 6, "lab", "0.1.0")
PIECES = [bytes(range(256)) * 10, b"", b"short", Random(1).randbytes(3000)]


def read_at(data: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, size: data[offset : offset + size]


def read(data: bytes, path: str = "some-file") -> tuple[Header, list[bytes]]:
    reader = SnapshotReader(read_at(data), path)
    pieces = list(reader.pieces())
    reader.check_end()
    return reader.header, pieces


def test_what_was_written_comes_back() -> None:
    assert read(encode(HEADER, PIECES)) == (HEADER, PIECES)
    assert read(encode(HEADER, [])) == (HEADER, [])


def test_a_reader_that_gets_little_at_a_time_gets_all_of_it() -> None:
    data = encode(HEADER, PIECES[2:])
    reader = SnapshotReader(lambda offset, size: data[offset : offset + 7], "file")

    assert list(reader.pieces()) == PIECES[2:]
    assert reader.end == len(data)


def test_large_states_are_not_held_as_a_whole() -> None:
    written: list[int] = []

    def put(data: bytes) -> None:
        written.append(len(data))

    from depalma.consensus.snapshot_format import write

    write(put, HEADER, (Random(i).randbytes(100_000) for i in range(100)))

    assert sum(written) > 10_000_000
    assert max(written) < 1_200_000


def test_what_packing_hardly_shortens_is_stored_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state of results that cannot be packed took ten seconds to be written instead of one."""
    tried = 0
    compress = zlib.compress

    def counting(data: bytes, level: int) -> bytes:
        nonlocal tried
        tried += len(data)
        return compress(data, level)

    monkeypatch.setattr(zlib, "compress", counting)
    piece = bytes(20_000) + Random(2).randbytes(2_000_000)
    data = encode(HEADER, [piece])

    assert len(data) > len(piece)
    assert tried < len(piece) / 50
    assert read(data) == (HEADER, [piece])


def test_a_large_piece_that_can_be_packed_is() -> None:
    piece = b"".join(Random(n % 50).randbytes(100) for n in range(20_000))
    data = encode(HEADER, [piece])

    assert len(data) < len(piece) / 4
    assert read(data) == (HEADER, [piece])


def test_every_bit_flip_is_found() -> None:
    data = encode(HEADER, PIECES[2:])
    random = Random(5)
    for _ in range(1000):
        bad = bytearray(data)
        bad[random.randrange(len(data))] ^= 1 << random.randrange(8)
        with pytest.raises(SnapshotDamaged, match="some-file is damaged"):
            read(bytes(bad))
        with pytest.raises(SnapshotDamaged):
            SnapshotReader(read_at(bytes(bad)), "some-file").check()


def test_every_cut_is_found() -> None:
    data = encode(HEADER, PIECES[2:3])
    for size in range(len(data)):
        with pytest.raises(SnapshotDamaged):
            read(data[:size])
    with pytest.raises(SnapshotDamaged, match="something follows"):
        read(data + b"x")


def test_pieces_cannot_be_dropped_repeated_or_exchanged() -> None:
    one, two = encode(HEADER, [b"1" * 50]), encode(HEADER, [b"1" * 50, b"2" * 50])
    head = len(encode(HEADER, [])) - 28
    piece = (len(two) - len(one), len(one) - len(encode(HEADER, [])))
    first, second = two[head : head + piece[1]], two[head + piece[1] : head + piece[1] + piece[0]]
    tail = two[head + sum(piece) :]
    assert two == two[:head] + first + second + tail
    for middle in (first, first + first, second + first, first + second + second):
        with pytest.raises(SnapshotDamaged, match="the whole"):
            read(two[:head] + middle + tail)


def test_a_newer_format_is_named_and_not_called_damaged() -> None:
    data = bytearray(encode(HEADER, PIECES))
    head = data[28 : 28 + struct.unpack_from("<I", data, 20)[0]]
    number = FORMAT + 3
    struct.pack_into("<I", data, 16, number)
    struct.pack_into("<I", data, 24, zlib.crc32(head, zlib.crc32(number.to_bytes(4, "little"))))

    with pytest.raises(SnapshotTooNew) as caught:
        read(bytes(data), "dir/file")
    words = str(caught.value)
    assert f"dir/file has format {number}, which a newer release wrote" in words
    assert f"up to {FORMAT}" in words
    assert "damaged" not in words


def test_fields_that_a_newer_release_adds_to_the_header_are_passed_over() -> None:
    class Newer(Header, frozen=True):
        quorum: tuple[str, ...] = ("m1",)

    header, pieces = read(encode(Newer(7, 2, 6), [b"state"]))
    assert (header, pieces) == (Header(7, 2, 6), [b"state"])


def test_a_file_of_something_else_is_no_snapshot() -> None:
    with pytest.raises(SnapshotDamaged, match="no snapshot"):
        read(b"%PDF-1.4 and so on, for more than the first bytes")
