"""Which finished jobs have been kept for long enough, and which open ones nobody feeds any more. [pure]"""

from __future__ import annotations

from collections.abc import Iterable

from depalma.state.jobs import Job


def to_forget(jobs: Iterable[Job], *, finished_before: float, keep: int) -> list[int]:
    """Returns the finished jobs that ended before that time, and the oldest of those beyond `keep`."""
    final = [job for job in jobs if job.is_final]
    too_many = max(0, len(final) - keep)
    return [
        job.id
        for position, job in enumerate(final)
        if position < too_many or (job.finished_at is not None and job.finished_at < finished_before)
    ]


class IdleJobs:
    """Open jobs without any task to run, and since when this leader has seen them so.

    A client that was killed never closes the job behind its executor. What this leader has not seen it counts from its
    own first look: a fail-over makes it later, never earlier.
    """

    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        self._seen: dict[int, tuple[int, float]] = {}  #: job → tasks it had, and since when it was idle with them

    def over(self, jobs: Iterable[Job], now: float) -> list[int]:
        """Returns those that were idle for `idle_s` at least."""
        seen: dict[int, tuple[int, float]] = {}
        due = []
        for job in jobs:
            if not job.open or job.is_final:
                continue
            counts = job.counts()
            if counts.queued or counts.running:
                continue
            total, since = self._seen.get(job.id, (-1, now))
            since = since if total == counts.total else now
            seen[job.id] = (counts.total, since)
            if now - since >= self._idle_s:
                due.append(job.id)
        self._seen = seen
        return due
