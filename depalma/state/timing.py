"""What happens at a time: a job's time to start, the end of a back-off, a start deadline. [pure]

The state has no clock. `Due` says what is next; the leader looks at its clock and proposes `PassTime` when that time
has come, and only what is due by the time in the command happens. So a new leader goes on where the last one was, and
whatever is late, or asked for twice, happens once.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

from depalma.state.commands import Applied, Rejected
from depalma.state.deadlines import TASKS, give_up_tasks
from depalma.state.event_log import Detail
from depalma.state.gangs import members
from depalma.state.job_commands import PassTime
from depalma.state.jobs import Job

if TYPE_CHECKING:
    from depalma.state.cluster_state import ClusterState

_WHOLE = -1  #: in place of a position: the start deadline of the job
_WAKE = -2  #: its time to start
_MAX_LIMIT = 10_000


class Due:
    """A heap of (time, job, position). What has been overtaken by other events is dropped when its turn comes."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, at: float, job: int, position: int) -> None:
        """Notes that something is due for a task."""
        heappush(self._heap, (at, job, position))

    def add_job(self, job: Job) -> None:
        """Notes all that is due for a job."""
        if job.spec.start_within_s and never_started(job):
            self.add(job.submitted_at + job.spec.start_within_s, job.id, _WHOLE)
        for _, added_at in () if job.is_final else job.added:
            self.add(added_at + job.spec.task_start_within_s, job.id, TASKS)
        if job.asleep:
            self.add(job.spec.start_at, job.id, _WAKE)
        for position, until in job.delayed.items():
            self.add(until, job.id, position)

    def next_at(self) -> float | None:
        """Returns when the next thing is due; it may turn out to be overtaken."""
        return self._heap[0][0] if self._heap else None

    def pop(self, until: float) -> tuple[float, int, int] | None:
        """Takes out the first thing that is due by then."""
        return heappop(self._heap) if self._heap and self._heap[0][0] <= until else None


def pass_time(state: ClusterState, command: PassTime) -> Applied | Rejected:
    """Lets happen what is due by the time of the command."""
    happened = 0
    touched: dict[int, Job] = {}
    while happened < min(command.limit, _MAX_LIMIT) and (due := state.due.pop(command.at)) is not None:
        at, job_id, position = due
        job = state.jobs.get(job_id)
        if job is None or job.is_final:
            continue
        if position == _WAKE and job.asleep:
            job.asleep = False
        elif position >= 0 and job.delayed.get(position) == at:
            for each in members(job, position // job.shape.gang) if job.shape.gang else (position,):
                del job.delayed[each]
                job.unblock(each)
        elif position == _WHOLE and never_started(job):
            _give_up(state, job, command.at)
        elif position == TASKS and (late := give_up_tasks(state, job, at, command.at)):
            happened += late - 1
        else:
            continue
        happened += 1
        touched[job_id] = job
    for job in touched.values():
        state.settle(job, command.at)
    return Applied(happened, state.version)


def never_started(job: Job) -> bool:
    """Returns whether no task of the job was ever given to a host. Once it is not so, it never is again: a replica
    that was restored since must come to the same answer."""
    return not (job.running or job.stories or job.is_final or job.cancelled) and job.started_at is None


def _give_up(state: ClusterState, job: Job, at: float) -> None:
    reason = f"had not started {job.spec.start_within_s:g} s after its submission"
    job.cancelled, job.cancel_reason, job.open = True, reason, False
    detail: Detail = {"by": "", "reason": reason, "cancelled": job.cancel_queued(at), "running": 0}
    state.events.add("job.cancelled", at, job=job.id, detail=detail)
