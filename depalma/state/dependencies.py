"""Jobs and tasks that wait for the end of others. [pure]

A job keeps what it still waits for (`Job.unmet`); a task that waits for tasks of equal index has a bit for each in
`Job.masks`. `Waiting` is the way back: who waits for a job. It is derived, and asked only for jobs that change, so
nothing here costs more because more jobs wait for something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from depalma.model import AttemptRef, Dependency, JobSpec
from depalma.state.checks import bad_field
from depalma.state.commands import Rejected
from depalma.state.event_log import Detail
from depalma.state.task_states import BLOCKED

if TYPE_CHECKING:
    from depalma.state.cluster_state import ClusterState
    from depalma.state.jobs import Job

_MEETS: Final = {
    "ok": frozenset({"succeeded"}),
    "fail": frozenset({"failed", "timed_out", "lost"}),
    "any": frozenset({"succeeded", "failed", "timed_out", "lost", "cancelled"}),
}
_HOPED: Final = {"ok": "succeed", "fail": "fail", "any": "end"}
#: Jobs that are named one by one when all of them are waited for.
_NAMED = 3


class Waiting:
    """Who waits for which job: for its end, or for each of its tasks."""

    __slots__ = ("each", "seen", "whole")

    def __init__(self) -> None:
        self.whole: dict[int, dict[int, None]] = {}  #: job → jobs that wait for its end, in order of id
        self.each: dict[int, dict[int, None]] = {}  #: job → jobs whose tasks wait for its tasks
        self.seen: dict[int, int] = {}  #: job in `each` → how much of its order of completion they have seen

    def __contains__(self, job: int) -> bool:
        return job in self.each or job in self.whole

    def add(self, job: Job, seen: Mapping[int, int]) -> None:
        """Notes a job under all that it waits for; `seen`: how many completions of these it has seen."""
        for one in job.unmet:
            (self.each if one.each else self.whole).setdefault(one.job, {})[job.id] = None
            if one.each:
                self.seen[one.job] = seen[one.job]

    def drop(self, job: Job) -> None:
        """Forgets that the job waits for anything."""
        for one in job.unmet:
            self.remove(one, job.id)
        job.unmet = ()

    def remove(self, one: Dependency, waiter: int) -> None:
        """Forgets one thing that a job waits for."""
        index = self.each if one.each else self.whole
        waiters = index[one.job]
        del waiters[waiter]
        if not waiters:
            del index[one.job]
            if one.each:
                del self.seen[one.job]


def bad_jobs_after(state: ClusterState, spec: JobSpec) -> Rejected | None:
    """Refuses dependencies on jobs that are not there."""
    unknown = next((one.job for one in spec.after if one.job not in state.jobs), None)
    if unknown is None:
        return bad_each(spec, lambda job: state.jobs[job].spec)
    return Rejected("unknown_job", f"after: there is no job {unknown} (or it is no longer kept)")


def bad_each(spec: JobSpec, named: Callable[[int], JobSpec]) -> Rejected | None:
    """Refuses to wait for single members of gangs: one that has succeeded may run again."""
    gang = next((one.job for one in spec.after if one.each and named(one.job).gang), None)
    return bad_field("after.each", True, f"false for job {gang}, whose tasks are in gangs") if gang else None


def doomed(state: ClusterState, spec: JobSpec) -> str:
    """Returns why a job that is submitted now would be cancelled at once; empty if it would not."""
    for one in spec.after:
        source = state.jobs[one.job]
        if not one.each and source.is_final and source.state() not in _MEETS[one.when]:
            return f"it would wait for job {one.job} to {_HOPED[one.when]}, which {_was(source.state())}"
    return ""


def begin(state: ClusterState, job: Job, at: float) -> None:
    """Lets a new job wait for what its spec names; what has ended already counts at once. Settle it afterwards."""
    after = job.spec.after
    if not after:
        return
    each = sum(one.each for one in after)
    if each and job.total:
        job.block((1 << each) - 1)
    job.unmet = after
    state.waiting.add(job, {one.job: len(state.jobs[one.job].finished_order) for one in after if one.each})
    for one in after:
        if job.cancelled:
            return
        source = state.jobs[one.job]
        if one.each:
            _take_tasks(state, job, one, source, 0, at)
        if source.is_final:
            _take_end(state, job, one, source, at)


def follow(state: ClusterState, job: Job, at: float) -> None:
    """Tells those that wait for the job what became of it; those that thereby end, to those that wait for them.

    In a queue instead of by recursion: chains of jobs may be longer than the interpreter's stack.
    """
    changed = [job]
    for source in changed:
        for waiter in _told_of_tasks(state, source, at) | _told_of_end(state, source, at):
            state.settle_alone(state.jobs[waiter], at)
            changed.append(state.jobs[waiter])


def _told_of_tasks(state: ClusterState, source: Job, at: float) -> dict[int, None]:
    """Tells those whose tasks wait for tasks of the source; returns them if any task ended."""
    waiting = state.waiting
    waiters = waiting.each.get(source.id)
    seen = waiting.seen.get(source.id, 0)
    if waiters is None or seen == len(source.finished_order):
        return {}
    waiting.seen[source.id] = len(source.finished_order)
    told = dict(waiters)
    for waiter in told:
        job = state.jobs[waiter]
        one = next(one for one in job.unmet if one.each and one.job == source.id)
        _take_tasks(state, job, one, source, seen, at)
    return told


def _told_of_end(state: ClusterState, source: Job, at: float) -> dict[int, None]:
    """Tells all who wait for the source that it has ended; returns them."""
    if not source.is_final:
        return {}
    told = state.waiting.each.get(source.id, {}) | state.waiting.whole.get(source.id, {})
    for waiter in told:
        job = state.jobs[waiter]
        for one in [one for one in job.unmet if one.job == source.id]:
            if not job.cancelled:
                _take_end(state, job, one, source, at)
    return told


def _take_tasks(state: ClusterState, job: Job, one: Dependency, source: Job, seen: int, at: float) -> None:
    """Takes notice of what ended in the source after its first `seen` completions."""
    order, bit = source.finished_order, _bit(job, one)
    cancelled: list[AttemptRef] = []
    for place in range(seen, len(order)):
        index = order[place]
        position = index - job.first
        if not 0 <= position < job.total or not _waits(job, position, bit) or not order.counts_at(place):
            continue
        word = source.state_of(index)
        if word in _MEETS[one.when]:
            job.masks[position] &= ~bit
            if not job.masks[position]:
                job.unblock(position)
        else:
            reason = f"waited for task {source.id}.{index} to {_HOPED[one.when]}; it {_was(word)}"
            job.cancel_waiting(position, at, reason)
            cancelled.append((job.id, index, 0))
    _tell_cancelled(state, cancelled, f"waited for tasks of job {source.id} to {_HOPED[one.when]}", at)


def _take_end(state: ClusterState, job: Job, one: Dependency, source: Job, at: float) -> None:
    """Takes notice that the source has ended."""
    if one.each:
        bit = _bit(job, one)
        cancelled: list[AttemptRef] = []
        for position in range(job.total if job.blocked else 0):  # what is left has no counterpart there
            if _waits(job, position, bit):
                index = job.first + position
                job.cancel_waiting(position, at, f"waited for task {source.id}.{index}; there is none")
                cancelled.append((job.id, index, 0))
        _tell_cancelled(state, cancelled, f"waited for tasks that job {source.id} does not have", at)
    elif source.state() not in _MEETS[one.when]:
        reason = f"waited for job {source.id} to {_HOPED[one.when]}; it {_was(source.state())}"
        job.cancelled, job.cancel_reason, job.open = True, reason, False
        detail: Detail = {"by": "", "reason": reason, "cancelled": job.cancel_queued(at), "running": len(job.running)}
        state.events.add("job.cancelled", at, job=job.id, detail=detail)
        return
    state.waiting.remove(one, job.id)
    job.unmet = tuple(other for other in job.unmet if other is not one)


def _tell_cancelled(state: ClusterState, refs: list[AttemptRef], reason: str, at: float) -> None:
    if refs:
        state.events.add("task.cancelled", at, refs=tuple(refs), detail={"reason": reason})


def _waits(job: Job, position: int, bit: int) -> bool:
    return job.states[position] == BLOCKED and bool(job.masks[position] & bit)


def _bit(job: Job, one: Dependency) -> int:
    return 1 << [(other.job, other.each) for other in job.spec.after if other.each].index((one.job, True))


def _was(word: str) -> str:
    return {"timed_out": "timed out", "lost": "was lost", "cancelled": "was cancelled"}.get(word, word)


def waiting_for(job: Job) -> str:
    """Returns in one line what a job that waits for others waits for; empty if for nothing."""
    if not job.unmet:
        return ""
    names = [
        f"{'each task of equal index of ' if one.each else ''}job {one.job} to {_HOPED[one.when]}"
        for one in job.unmet[:_NAMED]
    ]
    more = len(job.unmet) - _NAMED
    return f"waits for {', '.join(names)}{f' and {more} more' if more > 0 else ''}"


def check_dependencies(state: ClusterState, must: Callable[[bool, str], None]) -> None:
    """Checks that the index is what the jobs say, and that only those wait that have something to wait for."""
    derived = Waiting()
    for job in state.jobs.values():
        name, blocked = f"job {job.id}", job.states.count(BLOCKED)
        must(not job.unmet or not (job.is_final or job.cancelled), f"{name}: over, and waits for {job.unmet}")
        must(blocked == job.blocked, f"{name}: {blocked} tasks are blocked, it says {job.blocked}")
        late = [position for position in job.delayed if job.states[position] != BLOCKED]
        must(not late, f"{name}: positions {late} are to be tried again later, and are not blocked")
        tied = 0 if job.shape.gang else blocked - len(job.delayed)  # members of gangs wait for each other
        must(not tied or any(one.each for one in job.unmet), f"{name}: {tied} tasks wait for nothing")
        must(not job.running or not job.waits_for_jobs, f"{name}: waits for jobs and runs")
        must(not tied or len(job.masks) == job.total, f"{name}: {len(job.masks)} masks of {job.total} tasks")
        for position, mask in enumerate(job.masks):
            waits = job.states[position] == BLOCKED and position not in job.delayed
            must((mask != 0) == waits, f"{name}: position {position} has mask {mask}")
        for one in job.unmet:
            source = state.jobs.get(one.job)
            must(source is not None and not source.is_final, f"{name}: waits for job {one.job}, which is over")
        derived.add(job, {one.job: len(state.jobs[one.job].finished_order) for one in job.unmet})
    must(derived.whole == state.waiting.whole, "the index of jobs that are waited for is not what the jobs say")
    must(derived.each == state.waiting.each, "the index of tasks that are waited for is not what the jobs say")
    must(derived.seen == state.waiting.seen, "completions were missed by those that wait for them")
