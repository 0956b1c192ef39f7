"""Snapshots are whole, checked, and in place at once or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from depalma.consensus.disk import FileDisk
from depalma.consensus.errors import SnapshotDamaged
from depalma.consensus.snapshot import SnapshotStore
from depalma.consensus.snapshot_format import Header, encode
from depalma.consensus.snapshotter import ForkedSnapshots
from depalma.testing import PowerCut, SimDisk

STATE = bytes(range(256)) * 40
OLD = Header(10, 1, 9)
NEW = Header(20, 1, 19)


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk(Random(3))


def put(store: SnapshotStore, header: Header, state: bytes = STATE) -> None:
    store.write(header, [state[:100], state[100:]])
    store.publish(header)


def opened(disk: SimDisk | FileDisk) -> bytes | None:
    pieces = SnapshotStore(disk).open()
    return None if pieces is None else b"".join(pieces)


def test_the_newest_comes_back_and_older_ones_go(disk: SimDisk) -> None:
    store = SnapshotStore(disk)
    put(store, OLD, b"old")
    put(store, NEW, STATE)
    disk.crash()

    again = SnapshotStore(disk)
    pieces = again.open()

    assert pieces is not None
    assert b"".join(pieces) == STATE
    assert again.newest is not None
    assert (again.newest.index, again.newest.term, again.newest.sequence) == (20, 1, 19)
    assert disk.names() == ["snapshot-00000000000000000020.snap"]


def test_nothing_there_is_no_error(disk: SimDisk) -> None:
    assert opened(disk) is None


def test_one_that_is_older_than_what_came_meanwhile_is_not_placed(disk: SimDisk) -> None:
    store = SnapshotStore(disk)
    put(store, NEW)
    store.write(OLD, [b"old"])

    assert store.publish(OLD) is None
    assert opened(disk) == STATE


def test_older_ones_stay_while_the_newest_is_damaged(disk: SimDisk) -> None:
    store = SnapshotStore(disk)
    store.write(OLD, [b"old"])
    store.publish(OLD)
    store.write(NEW, [STATE])
    disk.rename("snapshot.tmp", f"snapshot-{NEW.index:020d}.snap")
    disk.flip_bit(f"snapshot-{NEW.index:020d}.snap", 200)

    with pytest.raises(SnapshotDamaged):
        opened(disk)
    assert len(disk.names()) == 2


@pytest.mark.parametrize("operations", range(8))
def test_a_power_cut_leaves_the_old_or_the_new(operations: int) -> None:
    for seed in range(10):
        disk = SimDisk(Random(seed))
        put(SnapshotStore(disk), OLD, b"old")
        disk.sync_dir()
        store = SnapshotStore(disk)
        store.open()
        disk.power_cut_in = operations
        try:
            put(store, NEW, STATE)
        except PowerCut:
            pass
        disk.crash()

        assert opened(disk) in (b"old", STATE)


def test_a_received_snapshot_is_put_together_from_its_pieces(disk: SimDisk) -> None:
    data = encode(Header(30, 2, 29), [STATE, STATE])
    store = SnapshotStore(disk)
    assert store.receive_chunk(30, len(data), 100, data[100:]) == 0, "the beginning is wanted first"
    assert store.receive_chunk(30, len(data), 0, data[:100]) == 100
    assert store.receive_chunk(30, len(data), 0, data[:100]) == 100, "a repeated piece is not appended"
    assert store.receive_chunk(30, len(data), 100, b"") == 100
    assert store.receive_chunk(30, len(data), 100, data[100:]) == len(data)

    snapshot, pieces = store.finish_received()

    assert (snapshot.index, snapshot.term, snapshot.sequence, list(pieces)) == (30, 2, 29, [STATE, STATE])
    assert opened(disk) == STATE + STATE


@pytest.mark.parametrize("damage", ["flip", "more", "less"])
def test_a_received_snapshot_that_is_bad_is_thrown_away(disk: SimDisk, damage: str) -> None:
    data = bytearray(encode(Header(30, 2, 29), [STATE]))
    if damage == "flip":
        data[-5] ^= 1
    elif damage == "more":
        data += b"x"
    else:
        del data[-1]
    store = SnapshotStore(disk)
    put(store, OLD, b"old")
    store.receive_chunk(30, len(data), 0, bytes(data))
    with pytest.raises(SnapshotDamaged):
        store.finish_received()

    assert store.receive_chunk(30, len(data), 100, b"") == 0
    assert opened(disk) == b"old"


def test_another_leaders_snapshot_of_the_same_entry_is_another_file(disk: SimDisk) -> None:
    """Its release, and so its size, may differ: what came of the first must not be more than all of the second."""
    long = encode(Header(30, 2, 29, release="1.10.0"), [os.urandom(1000)])
    short = encode(Header(30, 2, 29), [STATE])
    assert len(short) < 900
    store = SnapshotStore(disk)
    assert store.receive_chunk(30, len(long), 0, long[:900]) == 900
    assert store.receive_chunk(30, len(short), 0, short) == len(short)

    snapshot, pieces = store.finish_received()

    assert (snapshot.size_bytes, list(pieces)) == (len(short), [STATE])


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
    writer.begin(store, OLD, lambda: [bytes(state)])
    state[:] = b"after"

    assert wait_for(writer)
    assert writer.poll() is None
    store.publish(OLD)
    assert opened(disk) == b"before"


def test_a_forked_child_that_fails_says_so_and_leaves_nothing_in_place(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    disk = FileDisk(tmp_path)
    writer = ForkedSnapshots()

    def broken() -> list[bytes]:
        raise ValueError("cannot be encoded")

    writer.begin(SnapshotStore(disk), OLD, broken)

    assert wait_for(writer) is False
    assert "cannot be encoded" in capfd.readouterr().err
    assert opened(disk) is None


def test_a_forked_child_holds_none_of_our_files(tmp_path: Path) -> None:
    """A peer must see our connection close when we die, even while a child of ours writes."""
    reader, held = os.pipe()
    writer = ForkedSnapshots()
    forever = b"x" * 1000
    writer.begin(SnapshotStore(FileDisk(tmp_path)), OLD, lambda: _slowly(forever))
    os.close(held)
    try:
        assert os.read(reader, 1) == b"", "somebody still holds the other end"
    finally:
        os.close(reader)
        writer.cancel()
    assert writer.poll() is None


def test_a_forked_child_is_less_urgent_than_its_parent(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path)
    store, writer = SnapshotStore(disk), ForkedSnapshots()
    writer.begin(store, OLD, lambda: [b"%d" % os.nice(0)])

    assert wait_for(writer)
    store.publish(OLD)
    assert int(opened(disk) or b"0") > min(os.nice(0), 18)


def _slowly(state: bytes) -> Iterator[bytes]:
    time.sleep(30)
    yield state
