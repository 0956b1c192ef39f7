"""The journal keeps what was flushed, cuts what was not, and never starts on damage."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from pathlib import Path
from random import Random

import pytest

from depalma.consensus.disk import LARGE_BYTES, FileDisk
from depalma.consensus.errors import DirectoryInUse, DiskFailed, JournalDamaged
from depalma.consensus.journal import MAGIC, Journal
from depalma.testing import PowerCut, SimDisk


def opened(disk: SimDisk | FileDisk, segment_bytes: int = 1 << 20) -> Journal:
    journal = Journal(disk, segment_bytes=segment_bytes)
    journal.open()
    return journal


def content(journal: Journal) -> list[tuple[int, int, bytes]]:
    log = journal.log
    return [(index, term, command) for command, index, term in log.entries(log.base_index + 1, len(log))]


def filled(disk: SimDisk | FileDisk, count: int, segment_bytes: int = 1 << 20, each: bytes = b"command") -> Journal:
    journal = opened(disk, segment_bytes)
    for _ in range(count):
        journal.append(each, journal.log.last_index + 1, 1)
        journal.flush()
    return journal


@pytest.fixture
def disk() -> SimDisk:
    return SimDisk(Random(1))


def test_what_was_flushed_comes_back(disk: SimDisk) -> None:
    journal = opened(disk)
    journal.set_vote(3, "m2")
    journal.append(b"a", 2, 1)
    journal.append(b"b", 3, 3)
    journal.commit_index = 2
    journal.set_joined()
    journal.flush()
    disk.crash()

    again = opened(disk)

    assert content(again) == [(2, 1, b"a"), (3, 3, b"b")]
    assert (again.term, again.voted_for, again.commit_index, again.joined) == (3, "m2", 2, True)


def test_one_flush_is_one_sync(disk: SimDisk) -> None:
    journal = opened(disk)
    before = journal.syncs
    for index in range(2, 100):
        journal.append(b"x", index, 1)
    journal.flush()
    journal.flush()

    assert journal.syncs == before + 1


def test_what_was_not_flushed_is_gone(disk: SimDisk) -> None:
    journal = filled(disk, 3)
    journal.append(b"never flushed", 5, 1)
    disk.crash()

    assert len(content(opened(disk))) == 3


def test_truncation_is_a_record_and_survives(disk: SimDisk) -> None:
    journal = filled(disk, 5)
    journal.truncate_from(4)
    journal.append(b"new", 4, 2)
    journal.flush()

    assert content(opened(disk)) == [(2, 1, b"command"), (3, 1, b"command"), (4, 2, b"new")]


@pytest.mark.parametrize("cut", range(1, 41, 6))
def test_a_torn_tail_is_cut_and_reported(disk: SimDisk, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    filled(disk, 4)
    name = disk.names()[0]
    disk.truncate(name, disk.size(name) - cut)

    with caplog.at_level(logging.WARNING):
        journal = opened(disk)

    assert len(content(journal)) == 3
    assert "unfinished write" in caplog.text
    journal.append(b"goes on", journal.log.last_index + 1, 2)
    journal.flush()
    assert content(opened(disk))[-1][2] == b"goes on"


def test_a_torn_write_of_a_command_that_holds_a_journal_is_no_damage(disk: SimDisk) -> None:
    """A piece of some journal that a user gave as input: it is older than what was being written."""
    filled(disk, 4)
    group = disk.read(disk.names()[0])[-60:]
    journal = opened(disk)
    journal.append(group[group.index(MAGIC) :] + bytes(50), journal.log.last_index + 1, 1)
    journal.flush()
    name = disk.names()[0]
    disk.truncate(name, disk.size(name) - 10)

    assert len(content(opened(disk))) == 4


def test_every_bit_flip_before_the_tail_is_found(disk: SimDisk) -> None:
    filled(disk, 30, segment_bytes=600)
    names = disk.names()
    random = Random(7)
    for _ in range(200):
        name = random.choice(names[:-1])
        offset, bit = random.randrange(disk.size(name)), random.randrange(8)
        disk.flip_bit(name, offset, bit)
        with pytest.raises(JournalDamaged) as caught:
            opened(disk)
        assert name in str(caught.value)
        assert "move this replica's directory away" in str(caught.value)
        disk.flip_bit(name, offset, bit)

    assert len(content(opened(disk))) == 30


def test_a_bit_flip_in_the_last_segment_is_found_unless_it_is_in_the_last_write(disk: SimDisk) -> None:
    filled(disk, 20)
    name = disk.names()[0]
    size = disk.size(name)
    whole = content(opened(disk))
    for offset in range(0, size, 5):
        copy = SimDisk(Random(2))
        file = copy.create(name)
        data = bytearray(disk.read(name))
        data[offset] ^= 4
        file.write(bytes(data))
        try:
            left = content(opened(copy))
        except JournalDamaged:
            continue
        assert left == whole[:-1], f"flip at {offset} of {size}"
        assert offset > size - 80


def test_a_missing_segment_is_found_by_its_gap(disk: SimDisk) -> None:
    """What lies before the gap is not trusted; whoever opens the journal sees that its beginning is missing."""
    filled(disk, 80, segment_bytes=500)
    names = disk.names()
    assert len(names) > 4
    disk.remove(names[2])

    journal = opened(disk)

    assert journal.log.base_index > 2
    assert disk.names() == names[3:]


def test_compaction_drops_whole_segments_only(disk: SimDisk) -> None:
    journal = filled(disk, 60, segment_bytes=500)
    before = disk.names()

    journal.compact(40)

    assert journal.log.base_index == 40
    assert 0 < len(disk.names()) < len(before)
    again = opened(disk, 500)
    assert again.log.base_index <= 40
    assert again.log.last_index == 61


def test_compaction_syncs_once_however_much_it_removes(disk: SimDisk) -> None:
    """Each sync waits for the disk, and the leader's loop for all of them."""
    journal = filled(disk, 200, segment_bytes=500)
    files, operations = len(disk.names()), disk.operations

    journal.compact(190)

    removed = files - len(disk.names())
    assert removed > 5
    assert disk.operations - operations == removed + 1


def voided_across_segments(disk: SimDisk) -> tuple[Journal, int]:
    """A journal whose second segment voids entries of the first, and the entry after which that segment begins."""
    journal = filled(disk, 5, segment_bytes=500)
    while len(journal._segments) < 2:
        journal.append(b"command", journal.log.last_index + 1, 1)
        journal.flush()
    begin = journal._segments[-1].base_index
    assert begin == journal.log.last_index
    journal.truncate_from(begin - 3)
    for index in range(begin - 3, begin + 30):
        journal.append(b"command", index, 2)
        journal.flush()
    return journal, begin


def test_segments_that_void_entries_of_earlier_ones_stay_readable(disk: SimDisk) -> None:
    """Such a segment cannot be the first one."""
    journal, begin = voided_across_segments(disk)

    for keep_above in range(2, begin + 28):
        journal.compact(keep_above)
        again = opened(disk, 500)
        assert again.log.base_index <= keep_above
        assert again.log.last_index == journal.log.last_index
        assert again.log.last_term == 2
    assert len(disk.names()) < 3


@pytest.mark.parametrize("operations", range(6))
def test_power_cut_while_such_segments_are_removed(operations: int) -> None:
    for seed in range(8):
        disk = SimDisk(Random(seed))
        journal, begin = voided_across_segments(disk)
        disk.power_cut_in = operations
        try:
            journal.compact(begin + 25)
        except PowerCut:
            pass
        disk.crash()

        assert opened(disk, 500).log.last_index == begin + 29


@pytest.mark.parametrize("operations", range(14))
def test_power_cut_during_reset_leaves_the_old_or_the_new(operations: int) -> None:
    for seed in range(8):
        disk = SimDisk(Random(seed))
        journal = filled(disk, 30, segment_bytes=500)
        journal.set_vote(4, "m3")
        journal.flush()
        disk.power_cut_in = operations
        try:
            journal.reset(100, 4)
        except PowerCut:
            pass
        disk.crash()

        again = opened(disk)

        assert again.log.last_index in (31, 100)
        assert (again.term, again.voted_for) == (4, "m3")


@pytest.mark.parametrize("operations", range(16))
def test_power_cut_during_compaction_loses_nothing_above_it(operations: int) -> None:
    for seed in range(8):
        disk = SimDisk(Random(seed))
        journal = filled(disk, 60, segment_bytes=500)
        disk.power_cut_in = operations
        try:
            journal.compact(50)
        except PowerCut:
            pass
        disk.crash()

        again = opened(disk)

        assert again.log.base_index <= 50
        assert again.log.last_index == 61


def test_a_full_disk_stops_the_journal_for_good(disk: SimDisk) -> None:
    journal = filled(disk, 3)
    disk.capacity_bytes = disk.size(disk.names()[0]) + 10
    journal.append(b"too much" * 100, 5, 1)
    with pytest.raises(DiskFailed, match="No space left") as caught:
        journal.flush()
    assert caught.value.errno == errno.ENOSPC

    disk.capacity_bytes = None
    with pytest.raises(DiskFailed):
        journal.flush()
    disk.crash()
    assert len(content(opened(disk))) == 3


def test_a_failed_sync_is_never_tried_again(disk: SimDisk) -> None:
    journal = filled(disk, 3)
    journal.append(b"x", 5, 1)
    disk.failing.add("sync")
    with pytest.raises(DiskFailed, match="Input/output error"):
        journal.flush()
    disk.failing.clear()
    before = disk.operations

    with pytest.raises(DiskFailed):
        journal.flush()

    assert disk.operations == before


@pytest.mark.parametrize("seed", range(10))
def test_what_a_failed_sync_left_in_memory_is_written_again_before_it_is_trusted(seed: int) -> None:
    """A failed sync leaves pages that can be read, are called clean and are not on the disk: a sync does not help."""
    disk = SimDisk(Random(seed))
    journal = filled(disk, 3)
    journal.append(b"written, sync failed", 5, 1)
    disk.failing.add("sync")
    with pytest.raises(DiskFailed):
        journal.flush()
    disk.crash(power=False)
    seen = content(opened(disk))
    disk.crash(power=True)

    assert content(opened(disk)) == seen
    assert len(seen) == 4


def test_what_a_killed_process_left_in_memory_is_synced_before_it_is_trusted(disk: SimDisk) -> None:
    """The process dies between write and sync, the next one reads what it wrote, then the power goes off."""
    journal = filled(disk, 3)
    journal.append(b"written, not synced", 5, 1)
    disk.power_cut_in = 1
    with pytest.raises(PowerCut):
        journal.flush()
    disk.crash(power=False)
    seen = content(opened(disk))
    disk.crash(power=True)

    assert content(opened(disk)) == seen


def test_real_files_come_back_and_are_private(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path / "replica")
    disk.open()
    journal = filled(disk, 50, segment_bytes=500)
    journal.compact(30)
    journal.close()
    disk.close()

    disk.open()
    assert opened(disk, 500).log.last_index == 51
    assert (tmp_path / "replica").stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "replica").iterdir())
    disk.close()


def test_the_space_of_a_large_file_is_given_back_by_another_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Freeing some hundred MiB takes the system a tenth of a second and more; the loop must not wait for it."""
    disk = FileDisk(tmp_path)
    disk.open()
    file = disk.create("large")
    file.write(bytes(LARGE_BYTES))
    file.close()
    space = os.stat(tmp_path / "large").st_ino
    freed_by: list[threading.Thread] = []
    close = os.close

    def watched(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == space:
            freed_by.append(threading.current_thread())
        close(descriptor)

    monkeypatch.setattr(os, "close", watched)
    disk.remove("large")

    assert "large" not in disk.names()
    deadline = time.monotonic() + 30
    while not freed_by:
        assert time.monotonic() < deadline, "the file is still held"
        time.sleep(0.01)
    assert freed_by != [threading.current_thread()]
    disk.close()


def test_what_cannot_be_removed_is_an_error(tmp_path: Path) -> None:
    disk = FileDisk(tmp_path)
    disk.open()
    with pytest.raises(FileNotFoundError):
        disk.remove("nothing")
    disk.close()


def test_a_directory_has_one_user(tmp_path: Path) -> None:
    first, second = FileDisk(tmp_path), FileDisk(tmp_path)
    first.open()
    with pytest.raises(DirectoryInUse):
        second.open()
    first.close()
    second.open()
    second.close()


def test_a_lock_that_is_given_back_in_a_moment_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child of a master that was killed holds it until it has died, too."""
    monkeypatch.setattr("depalma.consensus.disk._LOCK_WAIT_S", 30.0)
    first, second = FileDisk(tmp_path), FileDisk(tmp_path)
    first.open()
    ending = threading.Timer(0.3, first.close)
    ending.start()
    second.open()
    second.close()
    ending.join()
