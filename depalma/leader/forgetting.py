"""Forgetting finished jobs: the replicated state is memory on all masters, so it keeps only the recent ones.

A job is forgotten once a majority of masters has it in its archive, on disk; so neither a crash of one between the two
nor the loss of any minority loses it. When no majority can (disks that are full, masters that are down), jobs wait, but
not without end: memory comes first.
"""

from __future__ import annotations

import asyncio
import logging

from depalma.consensus import NotLeader, OutcomeUnknown
from depalma.errors import Rejected
from depalma.jobarchive.record import parts
from depalma.leader.context import Context
from depalma.leader.history import to_forget
from depalma.state.commands import ForgetJobs
from depalma.state.jobs import Job

log = logging.getLogger(__name__)

#: How often it is looked, and how often whether it is worth a look before that.
TRIM_S = 60.0
LOOK_S = 1.0
#: It is when so many jobs ended as this part of those that are to be kept, …
_GROWN = 10
#: … and beyond this part more than those, jobs are forgotten without being archived.
_SPARE = 5
_AT_ONCE = 500
#: Jobs that are looked at before others get their turn: a ms.
_SLICE = 2_000


class Forgetting:
    """A leader's duty; `run` ends never."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._kept = context.config.settings.history_jobs  #: finished jobs after the last look, at most
        self._ended = 0  #: that ended since
        self._told = False  #: that jobs wait to be archived

    def note_ended(self) -> None:
        """Takes note that a job has ended; one that is told twice only makes a look come sooner."""
        self._ended += 1

    async def run(self) -> None:
        """Looks again and again."""
        most, clock = self._context.config.settings.history_jobs, self._context.clock
        looked_s = clock()
        while True:
            await asyncio.sleep(LOOK_S)
            too_many = self._ended > most // _GROWN and self._kept + self._ended > most
            if too_many or clock() - looked_s >= TRIM_S:
                await self.trim()
                looked_s = clock()

    async def trim(self) -> None:
        """Forgets what is old, and what is too much."""
        context, settings = self._context, self._context.config.settings
        self._ended = 0
        due = [context.state.jobs[job] for job in await self._due() if job in context.state.jobs]
        waiting = looked_at = 0
        for part in parts(due, _AT_ONCE):
            some = [job.id for job in part]
            kept = await context.archive.keep_on_majority(some)
            await self._forget([job for job in some if job in kept])
            waiting += len(some) - len(kept)
            looked_at += len(some)
            if waiting > _AT_ONCE:  # the archives do not take any: what is behind waits, too
                waiting += len(due) - looked_at
                break
        self._tell(waiting)
        most = settings.history_jobs + settings.history_jobs // _SPARE
        final = await self._final() if waiting else []
        if len(final) > most:
            lost = [job.id for job in final[: len(final) - most]]
            log.warning("%d finished jobs are forgotten without being archived: memory comes first", len(lost))
            for start in range(0, len(lost), _AT_ONCE):
                await self._forget(lost[start : start + _AT_ONCE])

    async def _due(self) -> list[int]:
        """Returns what `to_forget` says of all jobs, looking at some at a time."""
        settings, final = self._context.config.settings, await self._final()
        self._kept = min(len(final), settings.history_jobs)
        oldest = self._context.wall() - settings.history_days * 86_400
        too_many, due = len(final) - settings.history_jobs, []
        for start in range(0, len(final), _SLICE):
            part = final[start : start + _SLICE]
            keep = len(part) - min(len(part), max(0, too_many - start))
            due += to_forget(part, finished_before=oldest, keep=keep)
            await asyncio.sleep(0)
        return due

    async def _final(self) -> list[Job]:
        jobs = list(self._context.state.jobs.values())
        found = []
        for start in range(0, len(jobs), _SLICE):
            found += [job for job in jobs[start : start + _SLICE] if job.is_final]
            await asyncio.sleep(0)
        # By their end: who waited for a job for weeks has its results for as long as others have theirs.
        return sorted(found, key=_ended_at)

    async def _forget(self, jobs: list[int]) -> None:
        if not jobs:
            return
        try:
            await self._context.execute(ForgetJobs(tuple(jobs), self._context.wall()))
        except (Rejected, NotLeader, OutcomeUnknown) as error:
            log.info("ForgetJobs: %s", error)

    def _tell(self, waiting: int) -> None:
        if waiting and not self._told:
            log.warning("%d finished jobs are not forgotten: no majority of masters can archive them", waiting)
        self._told = bool(waiting)


def _ended_at(job: Job) -> float:
    return job.finished_at or 0.0
