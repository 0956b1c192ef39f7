"""What a job used, reckoned from its attempts. [pure]"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from msgspec.structs import replace

from depalma.accounting import HostUse, JobUse
from depalma.alternatives import Alternative
from depalma.model import slots_of
from depalma.state.jobs import Job
from depalma.state.task_states import CANCELLED, FAILED, LOST, SUCCEEDED, TIMED_OUT

#: CPUs, memory and GPUs.
Asked = tuple[float, int, float]
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
    ways: dict[str, list[float]] = {}
    count = len(job.spec.alternatives)

    def as_way(host: str, way: int, seconds: float) -> None:
        if way:
            (ways.get(host) or ways.setdefault(host, [0.0] * count))[way - 1] += seconds

    done, states, first = job.done, job.states, job.first
    for start in range(0, done.rows, SLICE):
        for index, note, started, finished in done.attempts(start, start + SLICE):
            use = found.get(note.host) or found.setdefault(note.host, [0.0] * 7)
            use[0] += 1
            if started == started:
                use[1] += max(0.0, finished - started)
                as_way(note.host, note.alternative, max(0.0, finished - started))
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
                as_way(past.host, past.alternative, max(0.0, past.finished_at - past.started_at))
        if number % SLICE == 0:
            yield
    for attempt in job.running.values():
        use = found.get(attempt.host) or found.setdefault(attempt.host, [0.0] * 7)
        use[0] += 1
        if attempt.started_at is not None:
            use[1] += max(0.0, now - attempt.started_at)
            as_way(attempt.host, attempt.alternative, max(0.0, now - attempt.started_at))
    queued = [job.tally[state] - sum(use[_PLACE[state]] for use in found.values()) for state in _STATES]
    if any(queued):
        found[""] = [0.0, 0.0, *queued]
    rows: dict[str, HostUse] = {}
    for host, (attempts, seconds, *tasks) in found.items():
        succeeded, failed, timed_out, cancelled, lost = map(int, tasks)
        rows[host] = HostUse(host, int(attempts), round(seconds, 3), succeeded, failed, timed_out, cancelled, lost)
    for host, of_ways in ways.items():
        rows[host] = replace(rows[host], ways_s=tuple(round(each, 3) for each in of_ways))
    return tuple(rows[host] for host in sorted(rows))


def asked_for(cpus: float, memory_bytes: int, gpus: float, alternatives: Sequence[Alternative]) -> list[Asked]:
    """Returns what a job asked for, first, and what each of its alternatives did."""
    others = [(one.cpus, one.memory_bytes, one.gpus) for one in alternatives]
    return [(cpus, memory_bytes, gpus), *others]


def job_use(job: Job, hosts: tuple[HostUse, ...], now: float) -> JobUse:
    """Returns the row of a job of the state."""
    spec, tally = job.spec, job.tally
    return use_row(
        job.id, spec.name, spec.user, spec.tags, spec.group, job.state(),
        (job.submitted_at, job.started_at, job.finished_at), (job.total, *(tally[state] for state in _STATES)),
        asked_for(spec.cpus, spec.memory_bytes, spec.gpus, spec.alternatives), hosts, now,
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
    asked: Sequence[Asked],
    hosts: tuple[HostUse, ...],
    now: float,
) -> JobUse:
    """Returns a row. `times`: submitted, started, finished; `tasks`: all, and by state; `asked`: cpus, memory and GPUs,
    of the job and of its alternatives."""
    hosts = tuple(_with_amounts(use, asked) for use in hosts)
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
        slot_s=round(sum(use.slot_s for use in hosts), 3),
        memory_byte_s=round(sum(use.memory_byte_s for use in hosts), 3),
        gpu_s=round(sum(use.gpu_s for use in hosts), 3),
        hosts=hosts,
    )


def _with_amounts(use: HostUse, asked: Sequence[Asked]) -> HostUse:
    """Returns the use of a host with what its attempts had for how long."""
    first_s = use.attempt_s - sum(use.ways_s)
    times = list(zip((first_s, *use.ways_s), asked, strict=False))
    return replace(
        use,
        slot_s=sum(seconds * slots_of(cpus) for seconds, (cpus, _, _) in times),
        memory_byte_s=sum(seconds * memory for seconds, (_, memory, _) in times),
        gpu_s=sum(seconds * gpus for seconds, (_, _, gpus) in times),
    )
