"""Jobs whose tasks have alternatives: as which of them each attempt runs, and what that comes to. [pure]

The first way is what the job says, the others are its alternatives, in their order. What is on hosts is looked at task
by task, which only jobs with alternatives pay.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy

from depalma.state.jobs import Attempt, Job
from depalma.state.shapes import Shape


def shape_of_attempt(job: Job, attempt: Attempt) -> Shape:
    """Returns what an attempt takes."""
    return job.shape.others[attempt.alternative - 1] if attempt.alternative else job.shape


def on_hosts(job: Job) -> list[tuple[Shape, int]]:
    """Returns how many tasks of a job are on hosts, by what they take."""
    if not job.shape.others:
        return [(job.shape, len(job.running))]
    counts = [0] * len(job.shape.ways)
    for attempt in job.running.values():
        counts[attempt.alternative] += 1
    return [(shape, count) for shape, count in zip(job.shape.ways, counts, strict=True) if count]


def slots_on_hosts(job: Job) -> float:
    """Returns the slots that a job has on hosts."""
    return sum(shape.weight * count for shape, count in on_hosts(job))


def one_way_each(job: Job) -> list[Job]:
    """Returns the job as if it had but one of its ways, for each; not to be changed."""
    found = []
    for way in job.shape.ways:
        one = copy(job)
        one.shape = way._replace(others=())
        found.append(one)
    return found


def difference(before: Iterable[tuple[Shape, int]], after: Iterable[tuple[Shape, int]]) -> list[tuple[Shape, int]]:
    """Returns how many tasks more there are on hosts than before, by what they take."""
    changes: dict[Shape, int] = {}
    for shape, count in [*after, *((shape, -count) for shape, count in before)]:
        changes[shape] = changes.get(shape, 0) + count  # two alternatives may take the same
    return [(shape, count) for shape, count in changes.items() if count]
