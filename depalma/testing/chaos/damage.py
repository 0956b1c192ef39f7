"""What a bad disk does to files that are not being written: flipped bits, zeroed pages, torn tails."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from depalma.consensus.disk import FileDisk
from depalma.consensus.errors import JournalDamaged, SnapshotDamaged
from depalma.consensus.journal import Journal, read_group
from depalma.consensus.snapshot import SnapshotStore

if TYPE_CHECKING:
    from depalma.testing.chaos.trial import Trial

PAGE = 4096


@dataclass(frozen=True, slots=True)
class Damage:
    """`do(folder, random)` damages the files of a stopped replica and says what it did."""

    name: str
    do: Callable[[Path, Random], str]
    #: whether it looks like a write that the crash interrupted, which a replica repairs by itself
    torn: bool = False


def segments(folder: Path) -> list[Path]:
    """Returns the journal's files, oldest first."""
    return sorted(folder.glob("journal-*.seg"))


def last_group(data: bytes) -> int:
    """Returns where the last group of a segment begins."""
    offset = begin = 0
    while (group := read_group(data, offset)) is not None:
        begin, offset = offset, group[-1]
    return begin


def _flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def _before_the_end(folder: Path, random: Random) -> tuple[Path, int]:
    """Returns a place in the journal that is not part of its last write."""
    places = [(path, path.stat().st_size) for path in segments(folder)]
    last = places[-1][0]
    places[-1] = (last, last_group(last.read_bytes()))
    path, size = random.choice([place for place in places if place[1] > 0])
    return path, random.randrange(size)


def flip_in_journal(folder: Path, random: Random) -> str:
    """One bit of a write that is not the last."""
    path, position = _before_the_end(folder, random)
    _flip(path, position, random.randrange(8))
    return f"a flipped bit at byte {position} of {path.name}"


def zero_in_journal(folder: Path, random: Random) -> str:
    """A page of zeros in a write that is not the last."""
    path, position = _before_the_end(folder, random)
    data = path.read_bytes()
    page = position - position % PAGE
    path.write_bytes((data[:page] + bytes(PAGE) + data[page + PAGE :])[: len(data)])
    return f"a page of zeros at byte {page} of {path.name}"


def flip_in_snapshot(folder: Path, random: Random) -> str:
    """One bit of the snapshot."""
    path = max(folder.glob("snapshot-*.snap"))
    position = random.randrange(path.stat().st_size)
    _flip(path, position, random.randrange(8))
    return f"a flipped bit at byte {position} of {path.name}"


def zero_in_snapshot(folder: Path, random: Random) -> str:
    """A page of zeros in the snapshot."""
    path = max(folder.glob("snapshot-*.snap"))
    data = path.read_bytes()
    page = random.randrange(0, len(data), PAGE)
    path.write_bytes((data[:page] + bytes(PAGE) + data[page + PAGE :])[: len(data)])
    return f"a page of zeros at byte {page} of {path.name}"


def tear_tail(folder: Path, random: Random) -> str:
    """The last write is there in part only. It is one that this replica never told anybody about: we add it."""
    path = segments(folder)[-1]
    data = path.read_bytes()
    group = data[last_group(data) :]
    keep = random.randrange(1, len(group))
    with path.open("ab") as file:
        file.write(group[:keep])
    return f"{keep} bytes of an unfinished write at the end of {path.name}"


DAMAGES = {
    damage.name: damage
    for damage in (
        Damage("a flipped bit in the journal", flip_in_journal),
        Damage("a torn tail", tear_tail, torn=True),
        Damage("a flipped bit in the snapshot", flip_in_snapshot),
        Damage("a zeroed page in the journal", zero_in_journal),
        Damage("a zeroed page in the snapshot", zero_in_snapshot),
    )
}


def judge_flips(trial: Trial, folder: Path, flips: int) -> None:
    """Flips single bits in copies of a stopped replica's files and opens each: every one must be found out.

    A bit of the very last write cannot be told from a write that a crash interrupted: these are cut, and counted.
    """
    found = cut = 0
    copy = trial.directory / "flipped"
    shutil.copytree(folder, copy)
    trial.require(not _detects(copy), "files that are whole are refused")
    shutil.rmtree(copy)
    for _ in range(flips):
        shutil.copytree(folder, copy)
        files = [*segments(copy), max(copy.glob("snapshot-*.snap"), default=segments(copy)[0])]
        path = trial.random.choice(files)
        position = trial.random.randrange(path.stat().st_size)
        is_last = path == segments(copy)[-1] and position >= last_group(path.read_bytes())
        _flip(path, position, trial.random.randrange(8))
        detected = _detects(copy)
        found += detected
        cut += is_last and not detected
        trial.require(detected or is_last, f"a flipped bit at byte {position} of {path.name} was not noticed")
        shutil.rmtree(copy)
    trial.note(f"{flips} flipped bits: {found} detected, {cut} in the last write, which was cut")
    trial.expect_many("flipped bits that were noticed", found + cut, flips)


def _detects(folder: Path) -> bool:
    """Returns whether a replica refuses to open these files."""
    disk = FileDisk(folder)
    disk.open()
    journal = Journal(disk, segment_bytes=1 << 24)
    try:
        SnapshotStore(disk).open()
        journal.open()
    except (JournalDamaged, SnapshotDamaged):
        return True
    else:
        return False
    finally:
        journal.close()
        disk.close()
