"""How many jobs and tasks are in which state, over all jobs, at a cost that the finished ones do not add to."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Mapping

from depalma.leader.hub import Key
from depalma.state.cluster_state import ClusterState
from depalma.state.jobs import Job

#: An answer is used again for this long, or for this many times what it took to make.
_FRESH_S = 0.2
_FRESH_FACTOR = 20.0
#: So many jobs are looked at before the loop gets its turn: a ms or two.
_SLICE = 1_000
_TASK_FIELDS = ("queued", "running", "succeeded", "failed", "cancelled", "lost")


class Totals:
    """Counts that are at most moments old. Jobs that ended are counted once; only live ones are looked at again."""

    def __init__(self) -> None:
        self._seen = 0  #: highest job id that was looked at
        self._live: dict[int, None] = {}
        self._ended = 0
        self._ended_jobs: Counter[str] = Counter()
        self._ended_tasks: Counter[str] = Counter()
        self._fresh_until = 0.0
        self._state: ClusterState | None = None
        self.jobs: Mapping[str, int] = {}
        self.tasks: Mapping[str, int] = {}
        self._counting = asyncio.Lock()

    def changed(self, keys: Collection[Key]) -> None:
        """Takes note of a job that had ended and lives again, because its tasks are retried."""
        for key in keys:
            if key[0] != "job" or len(key) < 2 or self._state is None:
                continue
            job = self._state.jobs.get(key[1])
            if job is not None and not job.is_final and job.id <= self._seen and job.id not in self._live:
                self._state = None  # all begins again; it is rare

    async def refresh(self, state: ClusterState) -> None:
        """Brings `jobs` and `tasks` up to date, if they are not recent anyway. They are not those of one moment."""
        async with self._counting:
            if state is not self._state or time.monotonic() >= self._fresh_until:
                await self._look(state)

    async def _look(self, state: ClusterState) -> None:
        took, began = 0.0, time.monotonic()
        if state is not self._state:
            self._start_again(state)
        self._take_new(state)
        if self._ended + len(self._live) != len(state.jobs):  # old jobs were dropped
            self._start_again(state)
            self._take_new(state)
        jobs, tasks = Counter(self._ended_jobs), Counter(self._ended_tasks)
        for number, job_id in enumerate(tuple(self._live), 1):
            if not number % _SLICE:
                took += time.monotonic() - began
                await asyncio.sleep(0)
                began = time.monotonic()
            job = state.jobs.get(job_id)
            if job is None:
                del self._live[job_id]
                continue
            if job.is_final:
                del self._live[job_id]
                self._ended += 1
                _count(job, self._ended_jobs, self._ended_tasks)
            _count(job, jobs, tasks)
        self.jobs = dict(jobs)
        self.tasks = {field: tasks[field] for field in _TASK_FIELDS}
        end = time.monotonic()
        self._fresh_until = end + max(_FRESH_S, _FRESH_FACTOR * (took + end - began))

    def _take_new(self, state: ClusterState) -> None:
        for job_id in reversed(state.jobs):
            if job_id <= self._seen:
                break
            self._live[job_id] = None
        self._seen = next(reversed(state.jobs), self._seen)

    def _start_again(self, state: ClusterState) -> None:
        self._state = state
        self._seen = self._ended = 0
        self._live.clear()
        self._ended_jobs.clear()
        self._ended_tasks.clear()


def _count(job: Job, jobs: Counter[str], tasks: Counter[str]) -> None:
    jobs[job.state()] += 1
    counts = job.counts()
    for field in _TASK_FIELDS:
        number = getattr(counts, field)
        if number:
            tasks[field] += number
