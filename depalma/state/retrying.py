"""The command that runs failed tasks again, within the same job. [pure]"""

from __future__ import annotations

from depalma.state.cluster_state import ClusterState
from depalma.state.commands import Applied, Rejected
from depalma.state.completions import Finished
from depalma.state.gangs import members
from depalma.state.job_commands import RetryJobs
from depalma.state.jobs import MAX_PAST_ERROR, Job
from depalma.state.requeueing import put_back
from depalma.state.steering import bad_jobs
from depalma.state.stories import PastAttempt
from depalma.state.task_states import FAILED, LOST, QUEUED, TIMED_OUT, WORDS

_AGAIN = (FAILED, TIMED_OUT, LOST)


def retry_jobs(state: ClusterState, command: RetryJobs) -> Applied | Rejected:
    """Queues what failed, timed out or was lost; all jobs that are named, or none."""
    if known := state.answers.find("retry", command.request):
        return Applied(known.value, state.version)
    if wrong := bad_jobs(state, command.jobs, command.by):
        return wrong
    cancelled = next((job for job in command.jobs if state.jobs[job].cancelled), None)
    if cancelled is not None:
        return Rejected("job_cancelled", f"job {cancelled} was cancelled: nothing of it runs again; submit it anew")
    changed = []
    for job_id in dict.fromkeys(command.jobs):
        job = state.jobs[job_id]
        again = _queue_again(job)
        if again:
            changed.append(job_id)
            state.events.add("job.retried", command.at, job=job_id, detail={"by": command.by, "tasks": again})
            state.settle(job, command.at)
    answer = tuple(changed)
    state.answers.keep("retry", command.request, answer, command.at)
    return Applied(answer, state.version)


def _queue_again(job: Job) -> int:
    """Puts the failed tasks of a job back; returns how many. Cost: a byte search, and what is found."""
    found = _queue_gangs(job) if job.shape.gang else 0
    for code in () if job.shape.gang else _AGAIN:
        position = job.states.find(code) if job.tally[code] else -1
        while position >= 0:
            _queue_one(job, position, code)
            found += 1
            position = job.states.find(code, position + 1)
        job.tally[code] = 0
    if found:
        if job.is_final:
            job.done.unseal()
        job.finished_at = None
        job.first_bad, job.exit_code_seen = -1, 0
    return found


def _queue_gangs(job: Job) -> int:
    """Puts back the gangs of which a member failed and none is on a host any more: all members of each."""
    found = 0
    for number in range(job.total // job.shape.gang):
        positions = members(job, number)
        if number in job.gangs or not any(job.states[position] in _AGAIN for position in positions):
            continue
        for position in positions:
            code = job.states[position]
            _queue_one(job, position, code)
            job.tally[code] -= 1
        found += len(positions)
    return found


def _queue_one(job: Job, position: int, code: int) -> None:
    """Takes back the end of a task; its last attempt becomes a past one, and no retry is used any more."""
    index = job.first + position
    record = job.done.find(index, WORDS[code])
    job.done.withdraw(index)
    job.states[position] = QUEUED
    put_back(job, position)
    if record is not None and record.host:
        _remember(job, position, record)
    story = job.stories.get(position)
    if story is not None:
        story.failures = story.timeouts = story.losses = 0


def _remember(job: Job, position: int, record: Finished) -> None:
    error, times = record.error[-MAX_PAST_ERROR:], (record.started_at, record.finished_at)
    past = PastAttempt(record.attempt, record.host, record.state, *times, error, record.tail, record.alternative)
    job.remember(position, past)
