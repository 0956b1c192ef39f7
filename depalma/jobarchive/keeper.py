"""The archive of one master: takes in what is forgotten, answers what is asked of it, keeps to its limits.

All methods are to be called on the loop's thread. The state is read in slices of a ms, packing and the disk are the
work of threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from depalma.accounting import JobUse
from depalma.jobarchive import peers as between
from depalma.jobarchive import record as records
from depalma.jobarchive.database import Database, Dropped
from depalma.jobarchive.files import RESERVE_BYTES, ArchiveFile, ArchivePaused
from depalma.jobarchive.gaps import Gaps
from depalma.jobarchive.peers import BYTES_AT_ONCE, RECORDS_AT_ONCE, Peers
from depalma.jobarchive.ranges import Range, count, shown
from depalma.jobarchive.record import BadRecord, Raw, Record, parts
from depalma.jobarchive.search import Wanted
from depalma.model import JobView
from depalma.state.cluster_state import ClusterState
from depalma.state.jobs import Job
from depalma.state.texts import moment

__all__ = ["ArchivePaused", "JobArchive", "Limits", "Wanted"]

T = TypeVar("T")
log = logging.getLogger(__name__)

DAY_S = 86_400.0
#: How often limits are looked at, and gaps while there are some that a peer may fill.
ROUND_S = 5.0
_WRITE_AT_ONCE = 200
#: Taking jobs out of the state: so long at once, and then as long for others.
_SLICE_S = 0.001
#: Unpacked jobs that are kept: who lists tasks asks page by page.
_UNPACKED = 2
#: A question waits so long for what was forgotten a moment ago to be written.
_SETTLE_S = 1.0


class Limits(Struct, frozen=True):
    """How much is kept. `days` 0: nothing is."""

    days: float
    size_bytes: int


class ArchiveStatus(Struct, frozen=True, kw_only=True):
    """How it stands with the archive of a master."""

    master: str
    jobs: int
    size_bytes: int
    dropped_before: float | None  #: what ended before is no longer kept; None = nothing was dropped
    missing: int  #: jobs that ended and are in no archive that could be asked
    problem: str = ""


class JobArchive:
    """See the module. `state`: the state of this moment; `dispose` gets forgotten jobs when they are done with."""

    def __init__(
        self,
        master_id: str,
        folder: Path,
        limits: Limits,
        state: Callable[[], ClusterState],
        peers: Peers,
        dispose: Callable[[list[Job]], None],
        *,
        wall: Callable[[], float] = time.time,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        self.master_id = master_id
        self.limits = limits
        self._why = (f"archive_days {limits.days:g}", f"archive_bytes {limits.size_bytes}")
        self._state = state
        self._peers = peers
        self._dispose = dispose
        self._wall = wall
        self._file = ArchiveFile(folder, on_new=self._suspect, reserve_bytes=reserve_bytes)
        self._gaps = Gaps(self._file, peers, state)
        self._forgotten: list[Job] = []
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self._storing = asyncio.Lock()
        self._unpacked: OrderedDict[int, Job] = OrderedDict()
        self._dropped = Dropped()
        self._jobs = self._size_bytes = 0
        self._counted = False

    @property
    def enabled(self) -> bool:
        """Whether anything is kept."""
        return self.limits.days > 0

    def _is_empty(self) -> bool:
        """Whether nothing was ever forgotten: then there is no file, and none is made."""
        state = self._state()
        return len(state.jobs) >= state.next_job - 1 and not self._file.path.exists()

    # ------------------------------------------------------------ taking in

    def take(self, jobs: list[Job]) -> None:
        """Takes jobs that the state has forgotten; they are written, unless they are there, and then freed."""
        if not jobs:
            return
        if not self.enabled:
            self._dispose(jobs)
            return
        self._forgotten += jobs
        jobs.clear()
        self._settled.clear()
        self._wake.set()

    async def keep(self, jobs: Sequence[int]) -> set[int]:
        """Returns those of the jobs that are archived, on disk, after doing so with finished ones of the state.

        What policy would drop at once counts as archived. Errors: ArchivePaused.
        """
        state = self._state()
        found = [state.jobs[job] for job in jobs if job in state.jobs]
        return await self._store([job for job in found if job.is_final])

    async def keep_on_majority(self, jobs: Sequence[int]) -> set[int]:
        """Returns those of the jobs that a majority of masters has archived, after asking all for it."""
        if not self.enabled:
            return set(jobs)

        async def here() -> set[int]:
            try:
                return await self.keep(jobs)
            except ArchivePaused:
                return set()

        own, there = await asyncio.gather(here(), between.kept_by_peers(self._peers, jobs))
        there.update(own)
        majority = (len(self._peers.peers()) + 1) // 2 + 1
        return {job for job in jobs if there[job] >= majority}

    async def _store(self, jobs: Sequence[Job]) -> set[int]:
        """Returns the ids of those that are on disk now, those left out that run again. Errors: ArchivePaused."""
        if not self.enabled:
            return {job.id for job in jobs}
        oldest = self._wall() - self.limits.days * DAY_S
        old = {job.id: job.finished_at or 0.0 for job in jobs if (job.finished_at or 0.0) < oldest}
        ids = set(old)
        wanted = [job for job in jobs if job.id not in old]
        async with self._storing:
            if old:
                went = Dropped(max(old), max(old.values()), self._why[0])
                await self._file.tidy(partial(_note_dropped, went))
            known = await self._file.read(lambda database: database.ended([job.id for job in wanted]))
            fresh = [job for job in wanted if known.get(job.id) != job.finished_at]
            ids.update(job.id for job in wanted if job.is_final and known.get(job.id) == job.finished_at)
            for part in parts(fresh, _WRITE_AT_ONCE):
                batch = await self._raw(part)
                await self._file.write(partial(_pack_into, batch))
                for raw in batch:
                    self._unpacked.pop(raw.id, None)
                    self._jobs += raw.id not in known
                ids.update(raw.id for raw in batch)
        return ids

    async def _raw(self, jobs: Sequence[Job]) -> list[Raw]:
        found = []
        begin_s = time.monotonic()
        for job in jobs:
            taking = records.take(job)
            while True:
                try:
                    next(taking)
                except StopIteration as done:
                    raw = done.value
                    break
                finally:
                    if time.monotonic() - begin_s > _SLICE_S:
                        await asyncio.sleep(_SLICE_S)
                        begin_s = time.monotonic()
            if raw is not None:
                found.append(raw)
        return found

    # ------------------------------------------------------------ for ever

    async def run(self) -> None:
        """Writes what is forgotten, removes what is too old, looks for gaps. Ends when cancelled."""
        if not self.enabled:
            return
        while True:
            await self._write_forgotten()
            try:
                if self._is_empty():
                    self._gaps.nothing_missing()
                else:
                    await self._look()
            except ArchivePaused as error:
                log.debug("%s", error)  # said when it began
            try:
                async with asyncio.timeout(ROUND_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def close(self) -> None:
        """Writes what is left and closes the file."""
        if self.enabled:
            await self._write_forgotten()
        await self._file.close()

    async def _write_forgotten(self) -> None:
        while self._forgotten:
            jobs, self._forgotten = self._forgotten, []
            try:
                await self._store(jobs)
            except ArchivePaused:
                # They must not pile up in memory. Others have them, as a majority did before they were forgotten.
                log.warning("%d finished jobs were forgotten while the archive is paused", len(jobs))
                self._suspect()
            self._dispose(jobs)
        self._settled.set()

    def _suspect(self) -> None:
        self._gaps.suspect()
        self._wake.set()

    async def _look(self) -> None:
        if self._gaps.due:
            await self._gaps.fill()
            self._counted = False
        await self._trim()

    async def _trim(self) -> None:
        limits, why = self.limits, self._why
        oldest = self._wall() - limits.days * DAY_S

        def look(database: Database) -> tuple[bool, Dropped, int, int]:
            more = database.trim(oldest, limits.size_bytes, why)
            jobs = -1 if self._counted and not more else database.count()
            return more, database.dropped(), jobs, database.used_bytes()

        more = True
        while more:
            more, self._dropped, jobs, self._size_bytes = await self._file.tidy(look)
            if jobs >= 0:
                self._jobs, self._counted = jobs, True

    async def records(self, ranges: Sequence[Range]) -> list[Record]:
        """Returns some of the records of these ids, none if there are none. Errors: ArchivePaused."""
        await self._settle()
        return await self._file.read(partial(_records_from, ranges))

    # ------------------------------------------------------------ answering

    async def job(self, job: int) -> Job | None:
        """Returns the job as it was when it was forgotten, for the views of the state; None if it is not here.

        Errors: ArchivePaused.
        """
        if not self.enabled:
            return None
        if job in self._unpacked:
            self._unpacked.move_to_end(job)
            return self._unpacked[job]
        await self._settle()

        def look(database: Database) -> Job | None:
            detail = database.detail(job)
            return None if detail is None else records.unpack(detail)

        try:
            found = await self._file.read(look)
        except BadRecord as error:
            await self._lose([job], error)
            return None
        if found is not None:
            self._unpacked[job] = found
            if len(self._unpacked) > _UNPACKED:
                self._unpacked.popitem(last=False)
        return found

    async def views(self, wanted: Wanted, before: int, limit: int) -> tuple[list[JobView], int]:
        """Returns jobs, newest first, and from which id on these are all (0: of all). Errors: ArchivePaused."""
        return await self._search(wanted, before, limit, records.view)

    async def uses(self, wanted: Wanted, before: int, limit: int) -> tuple[list[JobUse], int]:
        """Returns rows of accounting, as `views` does. Errors: ArchivePaused."""
        return await self._search(wanted, before, limit, records.use)

    async def _search(
        self, wanted: Wanted, before: int, limit: int, show: Callable[[Record], T]
    ) -> tuple[list[T], int]:
        if not self.enabled or self._is_empty():
            return [], 0
        await self._settle()
        # A file that came from elsewhere may have ids that this cluster has not given out yet.
        before = min(before, self._state().next_job)
        bad: dict[int, Exception] = {}

        def look(database: Database) -> tuple[list[T], int]:
            page = database.search(wanted, before, limit)
            return list(_shown(page.records, show, bad)), page.looked_to

        found = await self._file.read(look)
        for job, error in bad.items():
            await self._lose([job], error)
        return found

    async def _settle(self) -> None:
        try:
            async with asyncio.timeout(_SETTLE_S):
                await self._settled.wait()
        except TimeoutError:
            log.info("forgotten jobs are still being written")

    async def _lose(self, jobs: Collection[int], error: Exception) -> None:
        log.error("the archive's record of job %s is damaged (%s): taken from another master", shown_ids(jobs), error)
        for job in jobs:
            await self._file.tidy(partial(_remove_from, job))
        self._suspect()

    def status(self) -> ArchiveStatus:
        """Returns how it stands, as of some seconds ago."""
        before = self._dropped.before or None
        return ArchiveStatus(
            master=self.master_id, jobs=self._jobs, size_bytes=self._size_bytes, dropped_before=before,
            missing=count(self._gaps.missing), problem=self._file.problem,
        )  # fmt: skip

    def lacks(self, since: float | None = None) -> list[str]:
        """Returns lines about what is not here of the jobs that ended at `since` or later (None: ever)."""
        if not self.enabled:
            return ["there is no archive (archive_days 0): forgotten jobs are not listed"]
        lines = []
        dropped = self._dropped
        if dropped.before and (since is None or since < dropped.before):
            lines.append(f"jobs that finished before {moment(dropped.before)} are no longer kept ({dropped.why})")
        if self._gaps.missing:
            ids = shown(self._gaps.missing)
            lines.append(
                f"{count(self._gaps.missing)} finished jobs are not in the archive of {self.master_id} (ids {ids})"
            )
        if self._file.problem:
            lines.append(f"{self.master_id}: {self._file.problem}")
        return lines

    def why_not(self, job: int) -> str:
        """Returns why a job that there was is not here."""
        if not self.enabled:
            return "it finished, and there is no archive (archive_days 0)"
        if job <= self._dropped.job:
            before = moment(self._dropped.before)
            return f"jobs that finished before {before} are no longer kept ({self._dropped.why})"
        return f"it finished, and the archive of {self.master_id} does not have it"


def _pack_into(raws: list[Raw], database: Database) -> None:
    database.write(map(records.pack, raws))


def _records_from(ranges: Sequence[Range], database: Database) -> list[Record]:
    found: list[Record] = []
    for first, last in ranges:
        size = sum(len(each.detail) for each in found)
        if len(found) >= RECORDS_AT_ONCE or size >= BYTES_AT_ONCE:
            break
        found += database.records(first, last, RECORDS_AT_ONCE - len(found), BYTES_AT_ONCE - size)
    return found


def _note_dropped(went: Dropped, database: Database) -> None:
    database.note_dropped(went)


def _remove_from(job: int, database: Database) -> None:
    database.remove(job)


def _shown(found: Sequence[Record], show: Callable[[Record], T], bad: dict[int, Exception]) -> Iterator[T]:
    for each in found:
        try:
            yield show(each)
        except (ValueError, TypeError) as error:  # a changed byte may make anything of a column
            bad[each.id] = error


def shown_ids(jobs: Collection[int]) -> str:
    """Returns ids for a message."""
    return ", ".join(map(str, sorted(jobs)))
