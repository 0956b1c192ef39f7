"""Snapshots are whole, checked, and in place at once or not at all."""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

import pytest

from depalma.consensus.disk import FileDisk
from depalma.consensus.errors import SnapshotDamaged
from depalma.consensus.snapshot import SnapshotStore, decode, encode
from depalma.consensus.snapshotter import ForkedSnapshots
from depalma.testing import PowerCut, SimDisk

STATE = bytes(range(256)) * 40


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk(Random(3))


def put(store: SnapshotStore, index: int, state: bytes = STATE) -> None:
    store.write(index, 1, index - 1, state)
    store.publish(index, 1, index - 1)


def test_the_newest_comes_back_and_older_ones_go(disk: SimDisk) -> None:
    store = SnapshotStore(disk)
    put(store, 10, b"old")
    put(store, 20, STATE)
    disk.crash()

    again = SnapshotStore(disk)

    assert again.open() == STATE
    assert again.newest is not None
    assert (again.newest.index, again.newest.term, again.newest.sequence) == (20, 1, 19)
    assert disk.names() == ["snapshot-00000000000000000020.snap"]


def test_nothing_there_is_no_error(disk: SimDisk) -> None:
    assert SnapshotStore(disk).open() is None


def test_every_bit_flip_is_found() -> None:
    data = encode(7, 2, 6, STATE)
    random = Random(5)
    for _ in range(300):
        bad = bytearray(data)
        bad[random.randrange(len(data))] ^= 1 << random.randrange(8)
        with pytest.raises(SnapshotDamaged, match="some-file"):
            decode(bytes(bad), "some-file")


@pytest.mark.parametrize("size", [0, 10, 40, 100])
def test_a_short_file_is_found(size: int) -> None:
    with pytest.raises(SnapshotDamaged):
        decode(encode(7, 2, 6, STATE)[:size], "file")


def test_an_unknown_format_is_named() -> None:
    data = bytearray(encode(7, 2, 6, STATE))
    data[16] = 9
    with pytest.raises(SnapshotDamaged, match="format 9 is unknown"):
        decode(bytes(data), "file")


@pytest.mark.parametrize("operations", range(8))
def test_a_power_cut_leaves_the_old_or_the_new(operations: int) -> None:
    for seed in range(10):
        disk = SimDisk(Random(seed))
        put(SnapshotStore(disk), 10, b"old")
        disk.sync_dir()
        store = SnapshotStore(disk)
        store.open()
        disk.power_cut_in = operations
        try:
            put(store, 20, STATE)
        except PowerCut:
            pass
        disk.crash()

        assert SnapshotStore(disk).open() in (b"old", STATE)


def test_a_received_snapshot_is_put_together_from_its_pieces(disk: SimDisk) -> None:
    data = encode(30, 2, 29, STATE)
    store = SnapshotStore(disk)
    assert store.receive_chunk(30, 100, data[100:]) == 0, "the beginning is wanted first"
    assert store.receive_chunk(30, 0, data[:100]) == 100
    assert store.receive_chunk(30, 0, data[:100]) == 100, "a repeated piece is not appended"
    assert store.receive_chunk(30, 100, b"") == 100
    assert store.receive_chunk(30, 100, data[100:]) == len(data)

    snapshot, state = store.finish_received()

    assert (snapshot.index, snapshot.term, snapshot.sequence, state) == (30, 2, 29, STATE)
    assert SnapshotStore(disk).open() == STATE


def test_a_received_snapshot_that_is_bad_is_thrown_away(disk: SimDisk) -> None:
    data = bytearray(encode(30, 2, 29, STATE))
    data[-5] ^= 1
    store = SnapshotStore(disk)
    put(store, 10, b"old")
    store.receive_chunk(30, 0, bytes(data))
    with pytest.raises(SnapshotDamaged):
        store.finish_received()

    assert store.receive_chunk(30, 100, b"") == 0
    assert SnapshotStore(disk).open() == b"old"


def wait_for(writer: ForkedSnapshots, within_s: float = 20.0) -> bool:
    deadline = time.monotonic() + within_s
    while (written := writer.poll()) is None:
        assert time.monotonic() < deadline, "the child is not ready"
        time.sleep(0.005)
    return written


def test_a_forked_child_writes_the_state_of_the_moment(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path)
    store, writer = SnapshotStore(disk), ForkedSnapshots()
    state = bytearray(b"before")
    writer.begin(store, 5, 1, 4, lambda: bytes(state))
    state[:] = b"after"

    assert wait_for(writer)
    assert writer.poll() is None
    store.publish(5, 1, 4)
    assert SnapshotStore(disk).open() == b"before"


def test_a_forked_child_that_fails_says_so_and_leaves_nothing_in_place(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    disk = FileDisk(tmp_path)
    writer = ForkedSnapshots()

    def broken() -> bytes:
        raise ValueError("cannot be encoded")

    writer.begin(SnapshotStore(disk), 5, 1, 4, broken)

    assert wait_for(writer) is False
    assert "cannot be encoded" in capfd.readouterr().err
    assert SnapshotStore(disk).open() is None


def test_a_forked_child_holds_none_of_our_files(tmp_path: Path) -> None:
    """A peer must see our connection close when we die, even while a child of ours writes."""
    reader, held = os.pipe()
    writer = ForkedSnapshots()
    forever = b"x" * 1000
    writer.begin(SnapshotStore(FileDisk(tmp_path)), 5, 1, 4, lambda: _slowly(forever))
    os.close(held)
    try:
        assert os.read(reader, 1) == b"", "somebody still holds the other end"
    finally:
        os.close(reader)
        writer.cancel()
    assert writer.poll() is None


def _slowly(state: bytes) -> bytes:
    time.sleep(30)
    return state
