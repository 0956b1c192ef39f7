"""The archive's file: one connection that writes, one that reads, each with a thread of its own.

What goes wrong with the file never goes further than here: a damaged one is set aside and begun anew, a full disk (or
one that is about to be) makes the archive pause, and both are said in the log and by `problem`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from depalma.errors import DepalmaError
from depalma.jobarchive.database import Database, NewerFormat, is_damage

T = TypeVar("T")
log = logging.getLogger(__name__)

FILE = "jobs.sqlite"
#: What is left free on the disk: the journal of the consensus needs it more, a master that cannot write stops.
RESERVE_BYTES = 256 * 1024 * 1024
#: A file that could not be used is tried again after this long.
RETRY_S = 30.0
_SIDE_FILES = ("-wal", "-shm")


class ArchivePaused(DepalmaError):
    """The archive cannot be used now; the message says why. Nothing was written."""


class ArchiveFile:
    """Opens itself at the first use. `on_new`: called when a damaged file was replaced by an empty one."""

    def __init__(self, folder: Path, *, on_new: Callable[[], None], reserve_bytes: int = RESERVE_BYTES) -> None:
        self.path = folder / FILE
        self.problem = ""  #: why it is paused, or empty
        self._reserve_bytes = reserve_bytes
        self._on_new = on_new
        self._writing = ThreadPoolExecutor(1, "archive-writes")
        self._reading = ThreadPoolExecutor(1, "archive-reads")
        self._writer: Database | None = None
        self._reader: Database | None = None
        self._opening = asyncio.Lock()
        self._retry_at = self._aside_until = 0.0

    async def write(self, work: Callable[[Database], T]) -> T:
        """Returns what `work` returns of the writing connection. Errors: ArchivePaused."""
        return await self._use(self._writing, lambda: self._writer, work, check_room=True)

    async def tidy(self, work: Callable[[Database], T]) -> T:
        """The same for what needs no room on the disk, such as removing."""
        return await self._use(self._writing, lambda: self._writer, work, check_room=False)

    async def read(self, work: Callable[[Database], T]) -> T:
        """Returns what `work` returns of the reading connection. Errors: ArchivePaused."""
        return await self._use(self._reading, lambda: self._reader, work, check_room=False)

    async def close(self) -> None:
        """Ends the threads after what they are at."""
        for lane in (self._writing, self._reading):
            await asyncio.to_thread(lane.shutdown)
        for database in (self._reader, self._writer):
            if database is not None:
                await asyncio.to_thread(database.close)
        self._writer = self._reader = None

    # ------------------------------------------------------------ inside

    async def _use(
        self,
        lane: ThreadPoolExecutor,
        connection: Callable[[], Database | None],
        work: Callable[[Database], T],
        *,
        check_room: bool,
    ) -> T:
        await self._open()

        def run() -> T:
            if check_room:
                self._check_room()
            database = connection()
            if database is None:  # it was set aside meanwhile
                raise ArchivePaused("the archive is being opened anew; ask again")
            return work(database)

        loop = asyncio.get_running_loop()
        try:
            done = await loop.run_in_executor(lane, run)
        except (sqlite3.Error, OSError) as error:
            raise await self._failed(error) from error
        if check_room and self.problem:
            log.info("the archive of finished jobs goes on")
            self.problem = ""
        return done

    async def _open(self) -> None:
        async with self._opening:
            if self._writer is not None and self._reader is not None:
                return
            if self.problem and time.monotonic() < self._retry_at:
                raise ArchivePaused(self.problem)
            loop = asyncio.get_running_loop()
            try:
                await loop.run_in_executor(self._writing, self._open_writer)
                await loop.run_in_executor(self._reading, self._open_reader)
                self.problem = ""
                return
            except sqlite3.Error as error:
                await self._close_connections()
                if not is_damage(error):
                    raise self._pause(error) from error
                self._set_aside(error)
            except (OSError, NewerFormat) as error:
                await self._close_connections()
                raise self._pause(error) from error
        await self._open()

    # Noted by the threads themselves: whoever waited for them may be gone, and `close` has to know.

    def _open_writer(self) -> None:
        self._writer = Database(self.path)

    def _open_reader(self) -> None:
        self._reader = Database(self.path, read_only=True)

    async def _failed(self, error: sqlite3.Error | OSError) -> ArchivePaused:
        """Follows up an error; returns what to raise."""
        if not is_damage(error):
            return self._pause(error)
        async with self._opening:
            if self._writer is not None:  # else somebody else has found out
                await self._close_connections()
                self._set_aside(error)
        return ArchivePaused(f"the archive was damaged ({error}) and is begun anew; ask again")

    def _pause(self, error: Exception) -> ArchivePaused:
        self._retry_at = time.monotonic() + RETRY_S
        problem = f"the archive of finished jobs is paused: {self.path}: {error}"
        if problem != self.problem:
            log.error("%s; everything else goes on", problem)
        self.problem = problem
        return ArchivePaused(problem)

    def _set_aside(self, error: Exception) -> None:
        if time.monotonic() < self._aside_until:  # the disk damages whatever is written: no use to go on at once
            raise self._pause(error) from error
        self._aside_until = time.monotonic() + RETRY_S
        aside = self.path.with_name(FILE + ".damaged")
        try:
            for suffix in _SIDE_FILES:
                self.path.with_name(FILE + suffix).unlink(missing_ok=True)
            os.replace(self.path, aside)
        except OSError as problem:
            raise self._pause(problem) from error
        log.error(
            "%s is damaged (%s): set aside as %s, a new one is begun and filled from other masters",
            self.path, error, aside.name,
        )  # fmt: skip
        self._on_new()

    async def _close_connections(self) -> None:
        loop = asyncio.get_running_loop()
        writer, reader, self._writer, self._reader = self._writer, self._reader, None, None
        if reader is not None:
            await loop.run_in_executor(self._reading, reader.close)
        if writer is not None:
            await loop.run_in_executor(self._writing, writer.close)

    def _check_room(self) -> None:
        disk = os.statvfs(self.path.parent)
        free_bytes = disk.f_bavail * disk.f_frsize
        if free_bytes < self._reserve_bytes:
            needed = f"{self._reserve_bytes >> 20} MiB are left to the rest"
            raise OSError(f"{free_bytes >> 20} MiB are free on the disk, {needed}")
