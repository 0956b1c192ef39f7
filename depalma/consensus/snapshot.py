"""Snapshots on disk: the newest one, put in place atomically, the one being written and the one being received."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from depalma.consensus.disk import AppendFile, Disk, disk_errors
from depalma.consensus.errors import JournalDamaged, SnapshotDamaged
from depalma.consensus.journal import Journal
from depalma.consensus.log import FIRST_INDEX, Log
from depalma.consensus.settings import Roster
from depalma.consensus.snapshot_format import Header, SnapshotReader, write

logger = logging.getLogger(__name__)

_NAME = re.compile(r"snapshot-(\d{20})\.snap")
_WRITTEN = "snapshot.tmp"
_RECEIVED = "snapshot-received.tmp"
#: so much is written between syncs: the journal's own sync, which waits for the disk too, never waits for more
_SYNC_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that is durably in place."""

    index: int
    term: int
    sequence: int
    name: str
    size_bytes: int
    roster: Roster | None = None


class SnapshotStore:
    """The newest snapshot of one replica, the one being written and the one being received."""

    def __init__(self, disk: Disk) -> None:
        self.newest: Snapshot | None = None
        self._disk = disk
        self._receiving: AppendFile | None = None
        self._received = (0, 0)
        self._received_bytes = 0
        self._unsynced_bytes = 0

    def open(self) -> Iterator[bytes] | None:
        """The state of the newest snapshot, in pieces to be read at once; None if there is none.

        Raises SnapshotDamaged and DiskFailed, also while the pieces are read.
        """
        with disk_errors("reading", self._disk.path("snapshots")):
            names = [name for name in self._disk.names() if _NAME.fullmatch(name)]
            for name in self._disk.names():
                if name in (_WRITTEN, _RECEIVED):
                    self._disk.remove(name)
            if not names:
                return None
            size = self._disk.size(names[-1])
        header = self._check(names[-1])
        self.newest = _snapshot(header, names[-1], size)
        self._remove_older()
        return self._reader(names[-1]).pieces()

    def write(self, header: Header, pieces: Iterable[bytes]) -> None:
        """Write a snapshot file and sync it, without giving it its name. May run in a forked child."""
        file = self._disk.create(_WRITTEN)
        unsynced = 0

        def put(data: bytes) -> None:
            nonlocal unsynced
            file.write(data)
            unsynced += len(data)
            if unsynced >= _SYNC_BYTES:
                file.sync()
                unsynced = 0

        try:
            write(put, header, pieces)
            file.sync()
        finally:
            file.close()

    def publish(self, header: Header) -> Snapshot | None:
        """Put the written snapshot in place, durably; None if a newer one came meanwhile."""
        if self.newest is not None and self.newest.index >= header.index:
            return None
        return self._put(_WRITTEN, header)

    def read_chunk(self, snapshot: Snapshot, offset: int, size: int) -> bytes:
        """A piece of the file, to be sent. Raises DiskFailed."""
        with disk_errors("reading", self._disk.path(snapshot.name)):
            return self._disk.read_at(snapshot.name, offset, size)

    def receive_chunk(self, index: int, size: int, offset: int, data: bytes) -> int:
        """Take a piece of a leader's snapshot of `size` bytes; returns the offset wanted next. Raises DiskFailed."""
        with disk_errors("writing", self._disk.path(_RECEIVED)):
            # Another size is another file: an earlier leader's, of which there may be more here than there is of this.
            if self._receiving is None or (index, size) != self._received:
                self.discard_received()
                if offset:
                    return 0
                self._receiving = self._disk.create(_RECEIVED)
                self._received = (index, size)
            if offset == self._received_bytes and data:
                self._receiving.write(data)
                self._received_bytes += len(data)
                self._unsynced_bytes += len(data)
                if self._unsynced_bytes >= _SYNC_BYTES:
                    self._receiving.sync()
                    self._unsynced_bytes = 0
        return self._received_bytes

    def finish_received(self) -> tuple[Snapshot, Iterator[bytes]]:
        """Check the received snapshot and put it in place, durably; its state is to be read at once.

        Raises SnapshotDamaged (what was received is then discarded) and DiskFailed.
        """
        with disk_errors("writing", self._disk.path(_RECEIVED)):
            assert self._receiving is not None
            self._receiving.sync()
        try:
            header = self._check(_RECEIVED)
        except SnapshotDamaged:
            self.discard_received()
            raise
        self._receiving.close()
        self._receiving = None
        snapshot = self._put(_RECEIVED, header)
        return snapshot, self._reader(snapshot.name).pieces()

    def discard_received(self) -> None:
        """Forget a half received snapshot."""
        if self._receiving is not None:
            self._receiving.close()
            self._receiving = None
        self._received_bytes = self._unsynced_bytes = 0

    def close(self) -> None:
        """Close what is open."""
        self.discard_received()

    def _reader(self, name: str) -> SnapshotReader:
        def read_at(offset: int, size: int) -> bytes:
            with disk_errors("reading", self._disk.path(name)):
                return self._disk.read_at(name, offset, size)

        return SnapshotReader(read_at, self._disk.path(name))

    def _check(self, name: str) -> Header:
        """Read all of a file and compare its checksums: its state is believed only after that."""
        reader = self._reader(name)
        reader.check()
        reader.check_end()
        return reader.header

    def _put(self, temporary: str, header: Header) -> Snapshot:
        name = f"snapshot-{header.index:020d}.snap"
        with disk_errors("placing", self._disk.path(name)):
            self._disk.rename(temporary, name)
            self._disk.sync_dir()
            size = self._disk.size(name)
        self.newest = _snapshot(header, name, size)
        self._remove_older()
        return self.newest

    def _remove_older(self) -> None:
        """Older snapshots are not needed: the newest is durable. Their files may stay after a crash."""
        assert self.newest is not None
        with disk_errors("removing", self._disk.path("snapshots")):
            for name in self._disk.names():
                if _NAME.fullmatch(name) and name < self.newest.name:
                    self._disk.remove(name)


def _snapshot(header: Header, name: str, size_bytes: int) -> Snapshot:
    return Snapshot(header.index, header.term, header.sequence, name, size_bytes, header.roster)


def reconcile(journal: Journal, snapshot: Snapshot) -> None:
    """Make the journal go on where a durable snapshot ends, voiding nothing that the snapshot does not hold.

    Raft's rule: a log that has the snapshot's last entry keeps what follows it. A log that has not ends below it or
    differs there, so nothing in it above the snapshot can be committed.
    """
    if not follows(journal.log, snapshot):
        journal.reset(snapshot.index, snapshot.term)


def follows(log: Log, snapshot: Snapshot) -> bool:
    """Whether the log goes on where the snapshot ends: it has the snapshot's last entry."""
    known = log.base_index <= snapshot.index <= log.last_index
    return known and log.term_at(snapshot.index) == snapshot.term


def open_log(disk: Disk, store: SnapshotStore, journal: Journal) -> Iterator[bytes] | None:
    """Open snapshot and journal and check that nothing is missing between them; returns the snapshot's state.

    Raises JournalDamaged, SnapshotDamaged, DiskFailed.
    """
    state = store.open()
    journal.open()
    reached = store.newest.index if store.newest else FIRST_INDEX
    if journal.log.base_index > reached:
        raise JournalDamaged(
            disk.path("journal"), f"it begins after entry {journal.log.base_index}, but the snapshot ends at {reached}"
        )
    return state
