"""Places in a replica's work with its disk where it can be made to die, one operation exactly.

A replica whose disk is a `DyingDisk` looks for a file `failpoint` beside its folder; it holds `NAME COUNT`: the
process kills itself when it comes to that place for the COUNT-th time. Each method of the disk is one system call on
one file, so every instant at which a kill can matter is between two of these places.
"""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from depalma.consensus.disk import AppendFile, FileDisk
from depalma.consensus.journal import BaseRecord, VoteRecord, read_group

FAILPOINT = "failpoint"


@dataclass(frozen=True, slots=True)
class Failpoint:
    """A kind of operation on a kind of file, and whether to die before it, after it, or in its middle."""

    operation: str
    file: str  #: pattern of the name
    when: str
    #: how the place is reached: load, election, restart (with a torn tail), or install (a replica far behind)
    reached_by: str = "load"


#: a segment is renamed while it is open
_JOURNAL = r"journal-\d+\.seg|journal\.tmp"
POINTS = {
    "append-before": Failpoint("write", _JOURNAL, "before"),
    "append-half": Failpoint("write", _JOURNAL, "half"),
    "append-after": Failpoint("write", _JOURNAL, "after"),
    "append-synced": Failpoint("sync", _JOURNAL, "after"),
    "vote-before": Failpoint("vote", _JOURNAL, "before", "election"),
    "vote-after": Failpoint("vote", _JOURNAL, "after", "election"),
    "segment-created": Failpoint("create", r"journal\.tmp", "after"),
    "segment-rename-before": Failpoint("rename", r"journal-\d+\.seg", "before"),
    "segment-rename-after": Failpoint("rename", r"journal-\d+\.seg", "after"),
    "segment-removed": Failpoint("remove", r"journal-\d+\.seg", "after"),
    "snapshot-write-half": Failpoint("write", r"snapshot\.tmp", "half"),
    "snapshot-synced": Failpoint("sync", r"snapshot\.tmp", "after"),
    "snapshot-rename-before": Failpoint("rename", r"snapshot-\d+\.snap", "before"),
    "snapshot-rename-after": Failpoint("rename", r"snapshot-\d+\.snap", "after"),
    "snapshot-removed": Failpoint("remove", r"snapshot-\d+\.snap", "after"),
    "directory-synced": Failpoint("sync_dir", "", "after"),
    "truncate-before": Failpoint("truncate", r"journal-\d+\.seg", "before", "restart"),
    "truncate-after": Failpoint("truncate", r"journal-\d+\.seg", "after", "restart"),
    "received-write-half": Failpoint("write", r"snapshot-received\.tmp", "half", "install"),
    "received-rename-after": Failpoint("rename", r"snapshot-\d+\.snap", "after", "install"),
}


def arm(raft_folder: Path, name: str, count: int = 1) -> None:
    """Makes the replica of that folder die there."""
    temporary = raft_folder.parent / f"{FAILPOINT}.tmp"
    temporary.write_text(f"{name} {count}")
    temporary.rename(raft_folder.parent / FAILPOINT)


def disarm(raft_folder: Path) -> None:
    """Takes it back."""
    (raft_folder.parent / FAILPOINT).unlink(missing_ok=True)


class DyingDisk(FileDisk):
    """The real disk, and death at the place that the file names."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._failpoint = directory.parent / FAILPOINT
        self._replica = os.getpid()
        self._passed = 0

    def create(self, name: str) -> AppendFile:  # type: ignore[override]
        self.reach("create", name, "before")
        file = super().create(name)
        self.reach("create", name, "after")
        return DyingFile(self, name, file)

    def append(self, name: str) -> AppendFile:  # type: ignore[override]
        return DyingFile(self, name, super().append(name))

    def truncate(self, name: str, size: int) -> None:
        self.reach("truncate", name, "before")
        super().truncate(name, size)
        self.reach("truncate", name, "after")

    def rename(self, old: str, new: str) -> None:
        self.reach("rename", new, "before")
        super().rename(old, new)
        self.reach("rename", new, "after")

    def remove(self, name: str) -> None:
        self.reach("remove", name, "before")
        super().remove(name)
        self.reach("remove", name, "after")

    def sync_dir(self) -> None:
        self.reach("sync_dir", "", "before")
        super().sync_dir()
        self.reach("sync_dir", "", "after")

    def reach(self, operation: str, name: str, when: str) -> None:
        """Dies if this is the place."""
        if self.is_due(operation, name, when):
            self.die()

    def is_due(self, operation: str, name: str, when: str) -> bool:
        """Returns whether this is the place, for the last time that it may be passed."""
        try:
            armed, count = self._failpoint.read_text().split()
        except FileNotFoundError:
            return False
        point = POINTS[armed]
        if (operation, when) != (point.operation, point.when) or not re.fullmatch(point.file, name):
            return False
        self._passed += 1
        return self._passed >= int(count)

    def die(self) -> NoReturn:
        """The whole replica dies, also when its child that writes a snapshot comes here."""
        self._failpoint.unlink(missing_ok=True)
        os.kill(self._replica, signal.SIGKILL)
        os._exit(1)  # in the child


class DyingFile:
    """A file of a DyingDisk."""

    def __init__(self, disk: DyingDisk, name: str, file: AppendFile) -> None:
        self._disk = disk
        self._name = name
        self._file = file

    def write(self, data: bytes) -> None:
        """Appends; a group that begins with a vote is the place `vote` too."""
        kinds = ("write", "vote") if _holds_vote(data) else ("write",)
        for kind in kinds:
            self._disk.reach(kind, self._name, "before")
        if self._disk.is_due("write", self._name, "half"):
            self._file.write(data[: len(data) // 2])
            self._disk.die()
        self._file.write(data)
        for kind in kinds:
            self._disk.reach(kind, self._name, "after")

    def sync(self) -> None:
        """Syncs."""
        self._disk.reach("sync", self._name, "before")
        self._file.sync()
        self._disk.reach("sync", self._name, "after")

    def close(self) -> None:
        """Closes."""
        self._file.close()


def _holds_vote(data: bytes) -> bool:
    """Whether a vote is given in this group. A new segment repeats the last one, which is not meant."""
    group = read_group(data, 0)
    if group is None or any(isinstance(record, BaseRecord) for record in group[0]):
        return False
    return any(isinstance(record, VoteRecord) and record.voted_for for record in group[0])
