"""A disk in memory that keeps what was synced and forgets, tears or fails as a real one may."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from random import Random

SECTOR_BYTES = 512


class PowerCut(Exception):
    """The power went off in the middle of a disk operation: whoever was writing is dead."""

    #: whether the disk forgets what was not synced
    power = True


class Killed(PowerCut):
    """Only the process was killed in the middle of a disk operation: what it wrote is there, synced or not."""

    power = False


@dataclass(slots=True)
class _Content:
    data: bytearray = field(default_factory=bytearray)
    #: so much of `data` survives a power cut
    synced: int = 0


@dataclass(slots=True)
class _NameChange:
    """A name made, moved or removed, that a power cut may undo."""

    name: str
    content: _Content | None
    from_name: str | None = None


class SimDisk:
    """One directory of files; implements `depalma.consensus.disk.Disk`.

    A power cut keeps every synced byte and every name change before the last `sync_dir`. Of the rest it keeps, by
    chance, nothing, a part (cut anywhere, sectors zeroed), or all; name changes are kept or lost one by one.
    """

    def __init__(self, random: Random, *, name: str = "disk") -> None:
        self._random = random
        self._name = name
        self._files: dict[str, _Content] = {}
        self._durable: dict[str, _Content] = {}
        self._changes: list[_NameChange] = []
        #: operations until the power goes off; None: it stays on
        self.power_cut_in: int | None = None
        #: then it is not the power that ends but the process
        self.kills_only = False
        #: room for all files together; None: endless
        self.capacity_bytes: int | None = None
        #: every sync fails with EIO while set
        self.fails_syncs = False
        #: claims to sync and does not (some disks do)
        self.lies = False
        self.operations = 0

    # -- faults --------------------------------------------------------------------------------------------------

    def crash(self, *, power: bool = True) -> None:
        """Whoever used the disk is dead: of a mere process everything is kept, of a machine without power not."""
        self.repair()
        if not power:
            return
        names = dict(self._durable)
        for change in self._changes:
            if self._random.random() < 0.5:
                _apply(names, change)
        self._changes = []
        self._files = names
        self._durable = dict(names)
        for content in names.values():
            self._forget_unsynced(content)

    @property
    def ails(self) -> bool:
        """Whether it was made to refuse work, so that a replica on it is right to stop."""
        return self.fails_syncs or self.capacity_bytes is not None

    def repair(self) -> None:
        """From now on it works, has room, and the power stays on."""
        self.power_cut_in = None
        self.kills_only = False
        self.fails_syncs = False
        self.capacity_bytes = None

    def flip_bit(self, name: str, offset: int, bit: int = 0) -> None:
        """Damage one bit of a file."""
        self._files[name].data[offset] ^= 1 << bit

    def _forget_unsynced(self, content: _Content) -> None:
        unsynced = len(content.data) - content.synced
        kept = 0
        if unsynced and (chance := self._random.random()) > 0.4:
            kept = unsynced if chance > 0.8 else self._random.randrange(unsynced + 1)
        del content.data[content.synced + kept :]
        if kept and self._random.random() < 0.3:
            start = content.synced + self._random.randrange(kept)
            end = min(len(content.data), start + SECTOR_BYTES)
            content.data[start:end] = bytes(end - start)
        content.synced = len(content.data)

    def _end(self) -> PowerCut:
        return Killed() if self.kills_only else PowerCut()

    def _operate(self) -> bool:
        """Count an operation; True if the power goes off during this one."""
        self.operations += 1
        if self.power_cut_in is None:
            return False
        self.power_cut_in -= 1
        return self.power_cut_in < 0

    # -- Disk ----------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The files there, sorted."""
        return sorted(self._files)

    def path(self, name: str) -> str:
        """How people find the file."""
        return f"{self._name}/{name}"

    def read(self, name: str) -> bytes:
        """The whole file."""
        return bytes(self._content(name).data)

    def size(self, name: str) -> int:
        """How many bytes the file has."""
        return len(self._content(name).data)

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on."""
        return bytes(self._content(name).data[offset : offset + size])

    def create(self, name: str) -> SimFile:
        """A new empty file, replacing one of that name."""
        if self._operate():
            raise self._end()
        content = _Content()
        self._change(_NameChange(name, content))
        return SimFile(self, content)

    def append(self, name: str) -> SimFile:
        """An existing file, to go on at its end."""
        return SimFile(self, self._content(name))

    def truncate(self, name: str, size: int) -> None:
        """Cut the file to `size` bytes, durably."""
        if self._operate():
            raise self._end()
        content = self._content(name)
        del content.data[size:]
        content.synced = len(content.data)

    def rename(self, old: str, new: str) -> None:
        """Move atomically; durable after `sync_dir`."""
        cut = self._operate()
        self._change(_NameChange(new, self._content(old), old))
        if cut:
            raise self._end()

    def remove(self, name: str) -> None:
        """Take the name away; durable after `sync_dir`."""
        cut = self._operate()
        self._content(name)
        self._change(_NameChange(name, None))
        if cut:
            raise self._end()

    def sync_dir(self) -> None:
        """Make name changes durable."""
        if self._operate():
            raise self._end()
        self._check_sync()
        self._changes = []
        self._durable = dict(self._files)

    # -- for SimFile ---------------------------------------------------------------------------------------------

    def write(self, content: _Content, data: bytes) -> None:
        """Append to a file; a power cut or a full disk may leave a part."""
        if self._operate():
            content.data += data[: self._random.randrange(len(data) + 1)]
            raise self._end()
        if self.capacity_bytes is not None:
            room = self.capacity_bytes - sum(len(file.data) for file in self._files.values())
            if room < len(data):
                content.data += data[: max(0, room)]
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        content.data += data

    def sync(self, content: _Content) -> None:
        """Make the content of a file durable."""
        cut = self._operate()
        if cut and self._random.random() < 0.5:
            raise self._end()
        self._check_sync()
        if not self.lies:
            content.synced = len(content.data)
        if cut:
            raise self._end()

    def _check_sync(self) -> None:
        if self.fails_syncs:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _content(self, name: str) -> _Content:
        try:
            return self._files[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path(name)) from None

    def _change(self, change: _NameChange) -> None:
        self._changes.append(change)
        _apply(self._files, change)


class SimFile:
    """A file of a SimDisk, open for appending."""

    __slots__ = ("_content", "_disk")

    def __init__(self, disk: SimDisk, content: _Content) -> None:
        self._disk = disk
        self._content = content

    def write(self, data: bytes) -> None:
        """Append all of `data`, or raise OSError or PowerCut with a part of it appended."""
        self._disk.write(self._content, data)

    def sync(self) -> None:
        """Make what was written durable."""
        self._disk.sync(self._content)

    def close(self) -> None:
        """Nothing to do."""


def _apply(names: dict[str, _Content], change: _NameChange) -> None:
    if change.content is None:
        names.pop(change.name, None)
        return
    if change.from_name is not None and names.get(change.from_name) is change.content:
        del names[change.from_name]
    names[change.name] = change.content
