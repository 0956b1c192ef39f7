"""What a master does for its blobs by itself: it fetches those that the state names, and collects those that nothing
names any more.

A blob is removed only here, and only when this master has seen it unnamed for the whole grace, nobody used it
meanwhile (`Blobs.used_s`), and this master's state is as new as the leader's: whoever is about to name a blob renews
the grace of every copy that it counts on, and names it within a small part of that. Grace is monotonic time of this
process, so neither a restart nor a wrong clock shortens it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from itertools import chain, islice

from depalma.blobs import Blobs, UnknownBlob
from depalma.state.cluster_state import ClusterState
from depalma.state.jobs import Job
from depalma.state.restoring import blobs_of_code, blobs_of_job, blobs_of_schedules

log = logging.getLogger(__name__)

ROUND_S = 5.0
#: Rounds take at most this part of the time.
_SHARE = 0.02
#: Tasks that are looked at, and files that are removed, before the loop gets its turn again.
_AT_ONCE = 1_000
_FILES_AT_ONCE = 100
_FETCHES = 4


class NamedBlobs:
    """What the state names. A look costs what changed since the one before, not what is there: with 100,000 finished
    jobs, looking at each every 5 s stopped the loop for 50 ms, which on busy cores was half a second and an election.
    """

    def __init__(self, state: Callable[[], ClusterState]) -> None:
        self._state = state
        self._changed: set[int] = set()
        self._by_job: dict[int, set[str]] = {}  #: only those that name any

    def changed(self, jobs: Iterable[int]) -> None:
        """Notes jobs that may name others from now on; after a restored snapshot that is all of them."""
        self._changed.update(jobs)

    async def look(self) -> set[str]:
        """Returns all that is named; what is named while we look was used a moment ago."""
        changed, self._changed = self._changed, set()
        jobs = self._state().jobs
        for gone in [job for job in self._by_job if job not in jobs]:
            del self._by_job[gone]
        for place, number in enumerate(changed, 1):
            job = jobs.get(number)
            if job is not None:
                await self._look_at(job)
            if place % _AT_ONCE == 0:
                await asyncio.sleep(0)
        return self._beside_jobs().union(*self._by_job.values())

    async def look_again(self) -> set[str]:
        """Returns all that is named, and relies on nothing that was noted."""
        found = self._beside_jobs()
        digests = chain.from_iterable(blobs_of_job(job) for job in list(self._state().jobs.values()))
        while some := list(islice(digests, _AT_ONCE)):
            found.update(some)
            await asyncio.sleep(0)
        return found

    async def _look_at(self, job: Job) -> None:
        found: set[str] = set()
        digests = blobs_of_job(job)
        while some := list(islice(digests, _AT_ONCE)):
            found.update(some)
            if len(some) == _AT_ONCE:
                await asyncio.sleep(0)
        found.discard("")
        if found:
            self._by_job[job.id] = found
        else:
            self._by_job.pop(job.id, None)

    def _beside_jobs(self) -> set[str]:
        state = self._state()
        found = blobs_of_code(state)
        found.update(blobs_of_schedules(state))
        found.discard("")
        return found


class BlobKeeper:
    """One master's. `newest`: a version that includes everything acknowledged so far, None if that is not known."""

    def __init__(
        self,
        blobs: Blobs,
        state: Callable[[], ClusterState],
        newest: Callable[[], Awaitable[int | None]],
        grace_s: float,
    ) -> None:
        self._blobs = blobs
        self._state = state
        self.named = NamedBlobs(state)
        self._newest = newest
        self._grace_s = grace_s
        self._unnamed: dict[str, float] = {}  #: since when each file here has been named by nothing
        self._seen_missing: set[str] = set()  #: that no peer has either, as far as was said

    async def run(self) -> None:
        """Keeps them, for ever."""
        pause_s = ROUND_S
        while True:
            await asyncio.sleep(pause_s)
            begin_s = time.monotonic()
            await self.round()
            pause_s = max(ROUND_S, (time.monotonic() - begin_s) / _SHARE)

    async def round(self) -> tuple[int, int]:
        """Looks once at everything. Returns how many blobs came, and how many went."""
        begin_s = time.monotonic()
        version = await self._newest()
        if version is None:
            # Without a leader nothing can be named. An agent that has uploaded a result gets its time when one is back.
            self._unnamed.clear()
            return 0, 0
        if self._state().version < version:
            return 0, 0
        here = set(await self._blobs.store.digests())
        named = await self.named.look()
        gone = await self._collect(here - named, begin_s)
        return await self._fetch(named - here), gone

    async def _fetch(self, missing: set[str]) -> int:
        queue = sorted(missing)
        came = 0

        async def work() -> None:
            nonlocal came
            while queue:
                digest = queue.pop()
                try:
                    await self._blobs.fetch(digest)
                    came += 1
                    self._seen_missing.discard(digest)
                except UnknownBlob as error:
                    if digest not in self._seen_missing:
                        log.error("the state names a blob that cannot be had: %s", error)
                        self._seen_missing.add(digest)
                except OSError as error:
                    log.error("blob %s cannot be stored: %s", digest, error)

        await asyncio.gather(*(work() for _ in range(_FETCHES)))
        if came:
            log.info("%d blobs that the state names were fetched from other masters", came)
        return came

    async def _collect(self, unnamed: set[str], begin_s: float) -> int:
        """Removes what was unnamed and unused for the grace that ended when this round began."""
        self._unnamed = {digest: self._unnamed.get(digest, begin_s) for digest in unnamed}
        used, before_s = self._blobs.used_s, begin_s - self._grace_s
        for digest in [digest for digest, at in used.items() if at < before_s]:
            del used[digest]
        if begin_s < self._blobs.held_until_s:
            return 0
        gone = [digest for digest, since in self._unnamed.items() if since <= before_s]
        if gone:
            # What goes is gone: that nothing names it is not left to notes.
            named = await self.named.look_again()
            for digest in named.intersection(gone):
                log.error("blob %s is named, and was taken for unnamed: it stays; please report this", digest)
            gone = [digest for digest in gone if digest not in named]
        for place, digest in enumerate(gone, 1):
            if digest not in used:
                self._blobs.drop(digest)
                del self._unnamed[digest]
            if place % _FILES_AT_ONCE == 0:
                await asyncio.sleep(0)
        count = sum(digest not in self._unnamed for digest in gone)
        if count:
            log.info("%d blobs that nothing names any more were removed", count)
        return count
