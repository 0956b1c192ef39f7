"""Tasks that come back to the queue of their job. [pure]"""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from depalma.state.jobs import Job

#: So many stand in the list of those that came back; with a million there, each that was handed out cost half a ms.
MOST = 1_000


def put_back(job: Job, position: int) -> None:
    """Notes that a task is queued again. When many are, the cursor goes back to the first of them instead."""
    if position < job.cursor:
        insort(job.requeued, position)
        if len(job.requeued) > MOST:
            job.cursor, job.requeued = job.requeued[0], []
