"""What becomes of a gang: tasks that start all at once, or none of them. [pure]

A gang is so many consecutive tasks of a job; which one it is follows from their positions. From its start until no
member is on a host any more there is a `GangRun`. A member that succeeds leaves the others alone. When one ends
otherwise the rest is of no use: its leader is told to end it (`GangRun.ending`). If the member would be tried again,
the whole gang is, those that had succeeded included, as soon as the last of them has left its host; that uses up one
retry, of the kind of the first bad end. Otherwise the rest ends as cancelled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from depalma.model import AttemptRef, Report
from depalma.state.completions import shared
from depalma.state.jobs import MAX_PAST_ERROR, Attempt, Job
from depalma.state.retries import Verdict, hold_off
from depalma.state.stories import PastAttempt
from depalma.state.task_states import BLOCKED, LOST, QUEUED, SUCCEEDED, WORDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from depalma.state.cluster_state import ClusterState

_MAX_REASON = 300


class GangRun(Struct, gc=False, array_like=True):
    """One run of a gang: from when its members were given to hosts until none of them is on one any more."""

    hosts: tuple[str, ...]  #: of its members, in order of rank
    live: int  #: members that are on their hosts
    ending: str = ""  #: why the rest is to end; empty = all is well so far
    again: bool = False  #: the whole gang is run again then
    code: int = 0  #: and has used up a retry of this kind (FAILED, TIMED_OUT, LOST); 0 = of none


def gang_of(job: Job, index: int) -> int:
    """Returns the number of the gang that the task of a job of gangs is in."""
    return (index - job.first) // job.shape.gang


def members(job: Job, number: int) -> range:
    """Returns the positions of a gang's members."""
    size = job.shape.gang
    return range(number * size, (number + 1) * size)


def end_member(
    state: ClusterState, job: Job, ref: AttemptRef, attempt: Attempt, report: Report, verdict: Verdict, at: float
) -> bool:
    """Follows up that a member has left its host. Returns whether it goes back, or has ended for good."""
    index = ref[1]
    number = gang_of(job, index)
    run = job.gangs[number]
    run.live -= 1
    if verdict.code == LOST and not job.spec.restartable and run.again:
        _give_up(job, number, run, at)
    back = (run.again if run.ending else verdict.again) and not job.cancelled
    if not run.ending and verdict.code != SUCCEEDED:
        run.ending = _reason(job, index, attempt, report, verdict.word)
        run.again = verdict.again
        if back and (verdict.counts or verdict.word == "lost"):
            run.code = verdict.code
    if back:
        _put_back(job, index, attempt, report, verdict.word, run.ending, at)
    else:
        job.finish(index, verdict.code, attempt, report, at)
    if not run.live:
        del job.gangs[number]
        if run.again and not job.cancelled:
            _run_again(state, job, number, run, at)
    return back


def _reason(job: Job, index: int, attempt: Attempt, report: Report, word: str) -> str:
    lines = report.error.strip().splitlines()
    why = lines[-1] if lines else f"exit code {report.exit_code}" if report.exit_code else ""
    text = f"gang member {word.replace('_', ' ')}: task {job.id}.{index} on {attempt.host}"
    return f"{text}: {why}"[:_MAX_REASON] if why else text


def _put_back(job: Job, index: int, attempt: Attempt, report: Report, word: str, why: str, at: float) -> None:
    """Lets a member wait until the rest of its gang has left the hosts, too."""
    started = attempt.started_at if report.started_at is None else report.started_at
    finished = at if report.finished_at is None else report.finished_at
    error = (report.error or why)[-MAX_PAST_ERROR:]
    del job.running[index]
    past = PastAttempt(attempt.number, attempt.host, word, started, finished, error, shared(report.tail))
    _block(job, index - job.first, past)


def _withdraw(state: ClusterState, job: Job, number: int, why: str, at: float) -> None:
    """Takes back the success of members: nobody could talk to them when the others run again."""
    for position in members(job, number):
        index = job.first + position
        record = job.outcome(index) if job.states[position] == SUCCEEDED else None
        if record is None:
            continue
        job.done.withdraw(index)
        job.tally[SUCCEEDED] -= 1
        times = record.started_at, record.finished_at
        _block(job, position, PastAttempt(record.attempt, record.host, record.state, *times, why, record.tail))
        ref = (job.id, index, record.attempt)
        state.events.add("task.requeued", at, refs=(ref,), words=bytes([SUCCEEDED]), detail={"reason": why})


def _block(job: Job, position: int, past: PastAttempt) -> None:
    job.states[position] = BLOCKED
    job.blocked += 1
    job.remember(position, past)


def _give_up(job: Job, number: int, run: GangRun, at: float) -> None:
    """What was to run again cannot: a member that may not be run twice was lost meanwhile."""
    run.again = False
    for position in members(job, number):
        if job.states[position] == BLOCKED:
            job.cancel_waiting(position, at, run.ending)


def _run_again(state: ClusterState, job: Job, number: int, run: GangRun, at: float) -> None:
    """Queues the whole gang: all of its members have left their hosts."""
    _withdraw(state, job, number, run.ending, at)
    for position in members(job, number):
        job.unblock(position)
        story = job.stories[position]
        if run.code == LOST:
            story.losses += 1
        elif run.code:
            story.failures += 1
            hold_off(state, job, job.first + position, run.code, at)


def rest_of_gangs(job: Job) -> dict[tuple[str, str], list[AttemptRef]]:
    """Returns the attempts that are to end as one of their gang has, by host and reason."""
    found: dict[tuple[str, str], list[AttemptRef]] = {}
    for number, run in job.gangs.items():
        for index in _indices(job, number) if run.ending else ():
            attempt = job.running.get(index)
            if attempt is not None:
                found.setdefault((attempt.host, run.ending), []).append((job.id, index, attempt.number))
    return found


def gang_line(job: Job, index: int) -> str:
    """Returns the place of a task that is on a host in its gang, in words; empty if it is in none."""
    run = job.gangs.get(gang_of(job, index)) if job.shape.gang else None
    if run is None:
        return ""
    rank = (index - job.first) % job.shape.gang
    hosts = [f"{host} {run.hosts.count(host)}" for host in dict.fromkeys(run.hosts)]
    return f"rank {rank} of a gang of {job.shape.gang}: {', '.join(hosts)}"


def ending_line(job: Job) -> str:
    """Returns in one line for what members of gangs wait that have left their hosts; empty if there are none."""
    run = next((run for run in job.gangs.values() if run.again), None)
    return f"runs again when the rest of its gang has ended: {run.ending}" if run is not None else ""


def check_gangs(job: Job, must: Callable[[bool, str], None]) -> None:
    """Checks that all members of a gang wait, or none; and that runs are of those that are on hosts."""
    size = job.shape.gang
    if not size:
        must(not job.gangs, f"job {job.id}: has no gangs, and runs of some")
        return
    for number in range(job.total // size):
        states = [job.states[position] for position in members(job, number)]
        name, run = f"gang {number} of job {job.id}", job.gangs.get(number)
        must(states.count(QUEUED) in (0, size), f"{name}: some of its members wait: {[WORDS[code] for code in states]}")
        live = [job.running[index] for index in _indices(job, number) if index in job.running]
        must(len(live) == (run.live if run else 0), f"{name}: {len(live)} live, {run}")
        must(len({attempt.fence for attempt in live}) < 2, f"{name}: its members were not assigned together")
        must(run is None or len(run.hosts) == size, f"{name}: {run}")
        waiting = states.count(BLOCKED)
        if run is not None:
            must(not waiting or run.again, f"{name}: {waiting} members wait for the end of it")
        else:
            late = sum(position in job.delayed for position in members(job, number))
            must(waiting == late and waiting in (0, size), f"{name}: {waiting} members wait, {late} for a time")


def _indices(job: Job, number: int) -> range:
    span = members(job, number)
    return range(job.first + span.start, job.first + span.stop)
