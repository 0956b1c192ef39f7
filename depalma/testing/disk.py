"""A disk in memory that keeps what was synced and forgets, tears or fails as a real one may."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from itertools import pairwise
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
    #: so much of `data` survives a power cut, but for what is `forsaken`
    synced: int = 0
    #: where the writes since the last sync begin: the disk does them in any order
    writes: list[int] = field(default_factory=list)
    #: ranges whose sync failed. As Linux does, the disk calls them clean from then on: they can be read until the power
    #: goes off, later syncs succeed and do nothing for them, and only writing them again helps
    forsaken: list[tuple[int, int]] = field(default_factory=list)
    #: ranges written again since the last sync
    rewritten: list[tuple[int, int]] = field(default_factory=list)


@dataclass(slots=True)
class _NameChange:
    """A name made, moved or removed, that a power cut may undo."""

    name: str
    content: _Content | None
    from_name: str | None = None


class SimDisk:
    """One directory of files; implements `depalma.consensus.disk.Disk`.

    A power cut keeps every synced byte and every name change before the last `sync_dir`. Of the rest it keeps, by
    chance, nothing, all, or a part: the file is cut anywhere, and of what is left each sector of each write is there
    or zeros, so a later write may survive an earlier one. Name changes are kept or lost one by one, in any order.
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
        #: the operations that fail with EIO: "read", "write", "sync"
        self.failing: set[str] = set()
        #: what was flipped in the files here and must be noticed when they are read
        self.damage: str = ""
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
        return bool(self.failing) or self.capacity_bytes is not None

    def repair(self) -> None:
        """From now on it works, has room, and the power stays on."""
        self.power_cut_in = None
        self.kills_only = False
        self.failing.clear()
        self.capacity_bytes = None

    def flip_bit(self, name: str, offset: int, bit: int = 0) -> None:
        """Damage one bit of a file."""
        self._files[name].data[offset] ^= 1 << bit

    def clone(self) -> SimDisk:
        """A disk without faults that holds the same files, to look at them without touching these."""
        other = SimDisk(Random(0), name=self._name)
        for name, content in self._files.items():
            other._files[name] = other._durable[name] = _Content(bytearray(content.data), len(content.data))
        return other

    def _forget_unsynced(self, content: _Content) -> None:
        data, first = content.data, content.synced
        for start, end in content.forsaken:
            if self._random.random() < 0.7:
                data[start:end] = bytes(end - start)
        if len(data) > first and (fate := self._random.random()) < 0.8:
            kept = 0 if fate < 0.4 else self._random.randrange(len(data) - first + 1)
            del data[first + kept :]
            for start, end in _pieces(content):
                if self._random.random() < 0.35:
                    data[start:end] = bytes(end - start)
        content.synced = len(data)
        content.writes, content.forsaken, content.rewritten = [], [], []

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
        self._check("read")
        return bytes(self._content(name).data)

    def size(self, name: str) -> int:
        """How many bytes the file has."""
        return len(self._content(name).data)

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on."""
        self._check("read")
        return bytes(self._content(name).data[offset : offset + size])

    def create(self, name: str) -> SimFile:
        """A new empty file, replacing one of that name."""
        if self._operate():
            raise self._end()
        self._check("write")
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
        self._check("sync")
        content = self._content(name)
        del content.data[size:]
        self._now_synced(content)

    def rewrite(self, name: str, offset: int, data: bytes) -> None:
        """Write again what stands there already; durable after a sync of the file."""
        if self._operate():
            raise self._end()
        self._check("write")
        content = self._content(name)
        if content.data[offset : offset + len(data)] != data:
            raise ValueError(f"{name} holds something else at byte {offset}")
        content.rewritten.append((offset, offset + len(data)))

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
        self._check("sync")
        self._changes = []
        self._durable = dict(self._files)

    # -- for SimFile ---------------------------------------------------------------------------------------------

    def write(self, content: _Content, data: bytes) -> None:
        """Append to a file; a power cut or a full disk may leave a part."""
        content.writes.append(len(content.data))
        if self._operate():
            content.data += data[: self._random.randrange(len(data) + 1)]
            raise self._end()
        self._check("write")
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
        if "sync" in self.failing and content.synced < len(content.data):
            content.forsaken.append((content.synced, len(content.data)))
            content.synced = len(content.data)
            content.writes = []
        self._check("sync")
        if not self.lies:
            self._now_synced(content)
        if cut:
            raise self._end()

    def _now_synced(self, content: _Content) -> None:
        content.synced = len(content.data)
        content.writes = []
        content.forsaken = [
            (start, min(end, content.synced))
            for start, end in content.forsaken
            if start < content.synced and not any(a <= start and end <= b for a, b in content.rewritten)
        ]
        content.rewritten = []

    def _check(self, operation: str) -> None:
        if operation in self.failing:
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


def _pieces(content: _Content) -> list[tuple[int, int]]:
    """What was not synced, as ranges of which each is on the disk or not: sectors, and writes that share one."""
    end = len(content.data)
    first_sector = content.synced - content.synced % SECTOR_BYTES
    cuts = {content.synced, end, *content.writes, *range(first_sector, end, SECTOR_BYTES)}
    edges = sorted(cut for cut in cuts if content.synced <= cut <= end)
    return list(pairwise(edges))


def _apply(names: dict[str, _Content], change: _NameChange) -> None:
    if change.content is None:
        names.pop(change.name, None)
        return
    if change.from_name is not None and names.get(change.from_name) is change.content:
        del names[change.from_name]
    names[change.name] = change.content
