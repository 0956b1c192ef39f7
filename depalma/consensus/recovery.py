"""A replica's directory while no replica runs on it: read all that is in it, or make the first one of a new cluster.

A *founding* is a snapshot with which every member of a cluster begins. Its term and index are far above all that the
cluster it comes from can have reached, so whatever is left of that one is behind: its members are not elected by the
new ones, its entries are voided and its orders are of an older term.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from depalma import __version__
from depalma.consensus import envelope
from depalma.consensus.disk import FileDisk, disk_errors
from depalma.consensus.errors import ApplyFailed, SnapshotDamaged
from depalma.consensus.identity import Identity, claim
from depalma.consensus.journal import Journal
from depalma.consensus.log import FIRST_INDEX
from depalma.consensus.settings import MIB, StateMachine
from depalma.consensus.snapshot import SnapshotStore, follows, open_log
from depalma.consensus.snapshot_format import Header, SnapshotReader, write
from depalma.consensus.snapshotter import uncollected

#: how far a founding jumps; more than any cluster elects or appends in its life
TERM_JUMP = 1 << 20
INDEX_JUMP = 1 << 40
_BUILDING = ".founding"
#: what a directory may hold that nothing follows from
_NO_STATE = {"lock", "identity"}
_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@dataclass(frozen=True, slots=True)
class SavedSnapshot:
    """What a snapshot file says of itself, and where in the file it ends."""

    header: Header
    format: int
    end: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What a replica's directory holds."""

    term: int
    #: the last log entry
    last_index: int
    #: number of the last command
    sequence: int
    #: number of the last command that this replica knew to be committed: at least so much had been acknowledged
    committed: int


def has_state(directory: Path) -> bool:
    """Whether a replica has run on the directory. Raises OSError."""
    try:
        return any(name.endswith((".snap", ".seg")) for name in os.listdir(directory))
    except FileNotFoundError:
        return False


@contextmanager
def locked(directory: Path) -> Iterator[FileDisk]:
    """Hold the directory, as a running replica does. Raises DirectoryInUse, DiskFailed."""
    disk = FileDisk(directory)
    with disk_errors("opening", str(directory)):
        disk.open()
    try:
        yield disk
    finally:
        disk.close()


def read_file(path: Path, machine: StateMachine) -> SavedSnapshot:
    """Bring the machine to the state of a snapshot file; something may follow in the file.

    Raises SnapshotDamaged, SnapshotTooNew, OSError.
    """
    with path.open("rb") as file:

        def read_at(offset: int, size: int) -> bytes:
            return os.pread(file.fileno(), size, offset)

        check = SnapshotReader(read_at, str(path))
        check.check()
        reader = SnapshotReader(read_at, str(path))
        restore(machine, reader.pieces(), str(path))
        return SavedSnapshot(check.header, check.format, check.end)


def write_file(path: Path, header: Header, pieces: Iterable[bytes]) -> None:
    """Save a state as a file, mode 0600, durably. Raises FileExistsError, OSError."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:

        def put(data: bytes) -> None:
            file.write(data)

        write(put, header, pieces)
        os.fsync(file.fileno())
    _sync(path.parent)


def restore(machine: StateMachine, pieces: Iterable[bytes], path: str) -> None:
    """Bring the machine to a state. Raises SnapshotDamaged that names `path`."""
    try:
        with uncollected():
            machine.restore(pieces)
    except SnapshotDamaged:
        raise
    except Exception as error:
        raise SnapshotDamaged(path, f"restoring it raised {type(error).__name__}: {error}") from error


def read_directory(disk: FileDisk, machine: StateMachine) -> Contents:
    """Bring the machine to the end of the log, whatever of it was committed. Cuts a torn tail, changes nothing else.

    Raises JournalDamaged, SnapshotDamaged, DiskFailed, ApplyFailed.
    """
    store, journal = SnapshotStore(disk), Journal(disk, segment_bytes=64 * MIB)
    try:
        state = open_log(disk, store, journal)
        snapshot, sequence = store.newest, 0
        if snapshot is not None and state is not None:
            restore(machine, state, disk.path(snapshot.name))
            sequence = snapshot.sequence
        reached = last = snapshot.index if snapshot else FIRST_INDEX
        committed = sequence
        if snapshot is None or follows(journal.log, snapshot):
            last = journal.log.last_index
        for index in range(reached + 1, last + 1):
            sequence = _apply(machine, journal.log.entry(index)[0], sequence)
            committed = sequence if index <= journal.commit_index else committed
        return Contents(journal.term, last, sequence, committed)
    finally:
        journal.close()


def _apply(machine: StateMachine, entry: bytes, sequence: int) -> int:
    for command in envelope.unpack(entry):
        try:
            machine.apply(command, sequence + 1)
        except Exception as error:
            raise ApplyFailed(sequence + 1, error) from error
        sequence += 1
    return sequence


def founding(of: Header, *, cluster: str, sequence: int) -> Header:
    """The header with which a new cluster begins that takes over a state which was at `of`."""
    return Header(of.index + INDEX_JUMP, of.term + TERM_JUMP, sequence, cluster, __version__)


def found(directory: Path, identity: Identity, header: Header, pieces: Iterable[bytes], *, aside: str) -> Path | None:
    """Make a directory with which a member begins at this state; returns where an earlier state now is, if any.

    The caller holds the directory's lock. An earlier state is moved to `directory.aside` when all of the new one is on
    the disk. Raises DiskFailed.
    """
    building = directory.with_name(directory.name + _BUILDING)
    with disk_errors("writing", str(building)):
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(mode=0o700)
        disk = FileDisk(building)
        claim(disk, identity)
        store = SnapshotStore(disk)
        store.write(header, pieces)
    store.publish(header)
    _begin_journal(disk, header)
    with disk_errors("placing", str(directory)):
        moved = None if set(os.listdir(directory)) <= _NO_STATE else _free_name(directory, aside)
        if moved is not None:
            os.rename(building, moved)  # so that nobody takes for left-over what was there before
        _exchange(moved or building, directory)
        if moved is None:
            shutil.rmtree(building)
        _sync(directory.parent)
    return moved


def _exchange(one: Path, other: Path) -> None:
    """Give each of two directories the other's name, in one step: without it, a master would begin an empty cluster."""
    rename = getattr(_libc, "renameat2", None)
    if rename is not None:
        if not rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
            return
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
    # Some file systems (NFS) cannot: there a power cut in between leaves `other` under the third name.
    between = _free_name(other, "between")
    os.rename(other, between)
    os.rename(one, other)
    os.rename(between, one)


def _free_name(directory: Path, suffix: str) -> Path:
    moved = directory.with_name(f"{directory.name}.{suffix}")
    number = 1
    while moved.exists():
        number += 1
        moved = directory.with_name(f"{directory.name}.{suffix}-{number}")
    return moved


def _begin_journal(disk: FileDisk, header: Header) -> None:
    journal = Journal(disk, segment_bytes=16 * MIB)
    journal.open()
    try:
        journal.set_vote(header.term, None)
        journal.set_joined()
        journal.reset(header.index, header.term)
    finally:
        journal.close()


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
