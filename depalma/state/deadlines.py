"""Start deadlines of single tasks: one that no host was given in time is cancelled. [pure]

The clock of a task begins when it was submitted, or added to its job. What is due is a look at the job, not a note a
task. A task that was given to a host in time and came back without having begun is looked at again then, so a replica
that was restored, which looks once more at everything, finds what the others find.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from depalma.model import AttemptRef
from depalma.state.jobs import NOTHING_ADDED, Job
from depalma.state.task_states import BLOCKED, QUEUED

if TYPE_CHECKING:
    from depalma.state.cluster_state import ClusterState

#: In place of a position, in what is due: the start deadline of tasks.
TASKS: Final = -3
#: Tasks that one command cancels so; the rest by the next one.
_AT_ONCE: Final = 10_000


def note_added(state: ClusterState, job: Job, position: int, at: float) -> None:
    """Notes that the tasks from a position on are there since now."""
    if job.spec.task_start_within_s:
        if job.added is NOTHING_ADDED:
            job.added = []
        job.added.append((position, at))
        state.due.add(at + job.spec.task_start_within_s, job.id, TASKS)


def note_returned(state: ClusterState, job: Job, position: int) -> None:
    """Notes that a task came back which may not have begun."""
    if job.added:
        place = bisect_right(job.added, position, key=lambda each: each[0]) - 1
        state.due.add(job.added[place][1] + job.spec.task_start_within_s, job.id, TASKS)


def give_up_tasks(state: ClusterState, job: Job, due_at: float, at: float) -> int:
    """Cancels the tasks whose deadline is `due_at` or before, and that have not begun; returns how many."""
    limit_s = job.spec.task_start_within_s
    reason = f"had not started within {limit_s:g} s"
    refs: list[AttemptRef] = []
    for position in _late(job, due_at):
        if len(refs) == _AT_ONCE:
            state.due.add(due_at, job.id, TASKS)
            break
        refs.append((job.id, job.first + position, 0))
        job.cancel_waiting(position, at, reason)
    if refs:
        state.events.add("task.cancelled", at, refs=tuple(refs), detail={"reason": reason})
        if job.waits and not (job.queued or job.running or job.open):
            job.cancelled, job.cancel_reason = True, reason  # nothing is left that could wait
    return len(refs)


def _late(job: Job, due_at: float) -> Iterator[int]:
    ends = [position for position, _ in job.added[1:]] + [job.total]
    for (start, added_at), end in zip(job.added, ends, strict=True):
        if added_at + job.spec.task_start_within_s <= due_at:
            for code in (QUEUED, BLOCKED):
                position = job.states.find(code, start, end)
                while position >= 0:
                    if not _has_begun(job, position):
                        yield position
                    position = job.states.find(code, position + 1, end)


def _has_begun(job: Job, position: int) -> bool:
    story = job.stories.get(position)
    return story is not None and any(past.state != "returned" for past in story.attempts)
