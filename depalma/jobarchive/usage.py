"""What a job used, reckoned from its attempts. [pure]"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from depalma.accounting import HostUse, JobUse
from depalma.model import slots_of
from depalma.state.jobs import Job
from depalma.state.task_states import CANCELLED, FAILED, LOST, SUCCEEDED, TIMED_OUT

#: Rows and stories between two yields: a ms or two.
SLICE = 1_000
_STATES = (SUCCEEDED, FAILED, TIMED_OUT, CANCELLED, LOST)
#: Places of a host's numbers: attempts, seconds, and then tasks by _STATES.
_PLACE = {state: place for place, state in enumerate(_STATES, 2)}


def host_uses(job: Job, now: float) -> Generator[None, None, tuple[HostUse, ...]]:
    """Returns what the attempts of a job used, host by host, so far; yields between slices of the work.

    Attempts without a known begin count, their time does not. Of a task that was tried more than 20 times only the
    latest attempts have times. What never left the queue is under the host "".
    """
    found: dict[str, list[float]] = {}
    done, states, first = job.done, job.states, job.first
    for start in range(0, done.rows, SLICE):
        for index, note, started, finished in done.attempts(start, start + SLICE):
            use = found.get(note.host) or found.setdefault(note.host, [0.0] * 7)
            use[0] += 1
            if started == started:
                use[1] += max(0.0, finished - started)
            place = _PLACE.get(states[index - first])
            if place is not None:
                use[place] += 1
        yield
    for number, story in enumerate(list(job.stories.values()), 1):
        for past in story.attempts:
            use = found.get(past.host) or found.setdefault(past.host, [0.0] * 7)
            use[0] += 1
            if past.started_at is not None:
                use[1] += max(0.0, past.finished_at - past.started_at)
        if number % SLICE == 0:
            yield
    for attempt in job.running.values():
        use = found.get(attempt.host) or found.setdefault(attempt.host, [0.0] * 7)
        use[0] += 1
        if attempt.started_at is not None:
            use[1] += max(0.0, now - attempt.started_at)
    queued = [job.tally[state] - sum(use[_PLACE[state]] for use in found.values()) for state in _STATES]
    if any(queued):
        found[""] = [0.0, 0.0, *queued]
    return tuple(
        HostUse(host, int(use[0]), round(use[1], 3), *map(int, use[2:])) for host, use in sorted(found.items())
    )


def job_use(job: Job, hosts: tuple[HostUse, ...], now: float) -> JobUse:
    """Returns the row of a job of the state."""
    spec, tally = job.spec, job.tally
    return use_row(
        job.id, spec.name, spec.user, spec.tags, spec.group, job.state(),
        (job.submitted_at, job.started_at, job.finished_at), (job.total, *(tally[state] for state in _STATES)),
        (spec.cpus, spec.memory_bytes, spec.gpus), hosts, now,
    )  # fmt: skip


def use_row(
    job: int,
    name: str,
    user: str,
    tags: tuple[str, ...],
    group: str,
    state: str,
    times: tuple[float, float | None, float | None],
    tasks: Sequence[int],
    asked: tuple[float, int, float],
    hosts: tuple[HostUse, ...],
    now: float,
) -> JobUse:
    """Returns a row. `times`: submitted, started, finished; `tasks`: all, and by state; `asked`: cpus, memory, GPUs."""
    submitted, started, finished = times
    attempt_s = sum(use.attempt_s for use in hosts)
    end = now if finished is None else finished
    return JobUse(
        job=job,
        name=name,
        user=user,
        tags=tags,
        group=group,
        state=state,
        submitted_at=submitted,
        started_at=started,
        finished_at=finished,
        wait_s=round(max(0.0, (end if started is None else started) - submitted), 3),
        run_s=0.0 if started is None else round(max(0.0, end - started), 3),
        tasks=tasks[0],
        succeeded=tasks[1],
        failed=tasks[2],
        timed_out=tasks[3],
        cancelled=tasks[4],
        lost=tasks[5],
        attempts=sum(use.attempts for use in hosts),
        attempt_s=round(attempt_s, 3),
        slot_s=round(attempt_s * slots_of(asked[0]), 3),
        memory_byte_s=round(attempt_s * asked[1], 3),
        gpu_s=round(attempt_s * asked[2], 3),
        hosts=hosts,
    )
