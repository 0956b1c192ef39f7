"""The few things a replica asks of a disk, and the real disk that does them.

Journal and snapshots are written against `Disk` only, so the same code runs on a simulated disk that forgets
what was not synced.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from depalma.consensus.errors import DirectoryInUse, DiskFailed

_LOCK_FILE = "lock"
#: A child that was forked to write a snapshot holds the lock, too, until it has closed what it inherited: it dies with
#: its parent, but a moment later.
_LOCK_WAIT_S = 2.0
#: a file of this size or more is freed by another thread
LARGE_BYTES = 1 << 20


class AppendFile(Protocol):
    """A file that only grows."""

    def write(self, data: bytes) -> None:
        """Append all of `data`. Raises OSError; part of it may then be in the file."""
        ...

    def sync(self) -> None:
        """Return when everything written is on the disk. Raises OSError: then nothing is known about it."""
        ...

    def close(self) -> None:
        """Give the file back; does not sync."""
        ...


class Disk(Protocol):
    """One directory of files. Every method may raise OSError."""

    def names(self) -> list[str]:
        """The files there, sorted."""
        ...

    def path(self, name: str) -> str:
        """How people find the file."""
        ...

    def read(self, name: str) -> bytes:
        """The whole file."""
        ...

    def size(self, name: str) -> int:
        """How many bytes the file has."""
        ...

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on."""
        ...

    def create(self, name: str) -> AppendFile:
        """A new empty file, replacing one of that name."""
        ...

    def append(self, name: str) -> AppendFile:
        """An existing file, to go on at its end."""
        ...

    def truncate(self, name: str, size: int) -> None:
        """Cut the file to `size` bytes, durably."""
        ...

    def rewrite(self, name: str, offset: int, data: bytes) -> None:
        """Write again what stands there already; durable after a sync of the file, and never worse than before."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Move atomically; durable after `sync_dir`."""
        ...

    def remove(self, name: str) -> None:
        """Take the name away; durable after `sync_dir`."""
        ...

    def sync_dir(self) -> None:
        """Return when names made, moved and removed so far are on the disk."""
        ...


@contextmanager
def disk_errors(action: str, path: str) -> Iterator[None]:
    """Turn an OSError into DiskFailed, which stops the replica."""
    try:
        yield
    except OSError as error:
        raise DiskFailed(action, path, error) from error


class _File:
    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class FileDisk:
    """A real directory, held by one process at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = -1

    def open(self) -> None:
        """Make the directory (mode 0700) if need be and lock it. Raises DirectoryInUse, OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._directory / _LOCK_FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        give_up_at = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up_at:
                    os.close(lock)
                    raise DirectoryInUse(str(self._directory)) from None
            time.sleep(0.02)
        self._lock = lock

    def close(self) -> None:
        """Let another process have the directory."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def names(self) -> list[str]:
        return sorted(name for name in os.listdir(self._directory) if name != _LOCK_FILE)

    def path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def read(self, name: str) -> bytes:
        with open(self.path(name), "rb") as file:
            return file.read()

    def size(self, name: str) -> int:
        return os.stat(self.path(name)).st_size

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        fd = os.open(self.path(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(fd, size, offset)
        finally:
            os.close(fd)

    def create(self, name: str) -> _File:
        flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        return _File(os.open(self.path(name), flags, 0o600))

    def append(self, name: str) -> _File:
        return _File(os.open(self.path(name), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))

    def truncate(self, name: str, size: int) -> None:
        fd = os.open(self.path(name), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            os.fsync(fd)
        finally:
            os.close(fd)

    def rewrite(self, name: str, offset: int, data: bytes) -> None:
        fd = os.open(self.path(name), os.O_WRONLY | os.O_CLOEXEC)
        try:
            view = memoryview(data)
            while view:
                written = os.pwrite(fd, view, offset)
                view, offset = view[written:], offset + written
        finally:
            os.close(fd)

    def rename(self, old: str, new: str) -> None:
        os.rename(self.path(old), self.path(new))

    def remove(self, name: str) -> None:
        path = self.path(name)
        if os.stat(path).st_size < LARGE_BYTES:
            os.unlink(path)
            return
        # As long as the file is open its space is not freed: that takes a tenth of a second for some hundred MiB, so
        # whoever closes it last is a thread. (Cutting it down by steps would be gentler, but it may be being read.)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.unlink(path)
        finally:
            threading.Thread(target=os.close, args=(fd,), name="free space", daemon=True).start()

    def sync_dir(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
