"""What comes before a job in the order, and how long it takes. [pure]

Only for estimates (`forecast.py`): of many jobs alike the first ones stand for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from math import ceil, inf
from typing import NamedTuple

from depalma.model import MAX_TASKS
from depalma.state.cluster_state import ClusterState
from depalma.state.jobs import Job
from depalma.state.ready import Level, Line, Stand
from depalma.state.shares import DEFAULT_WEIGHT

#: Finished tasks of a job that say how long one takes: the latest.
_LATEST = 20
#: Jobs of a line that are looked at: all of those of a short queue, one of each line when there are very many.
_OF_A_LINE = 20
_MANY_LINES = 500
#: A task that runs for longer than the others did is taken to need so much of their mean still.
_LEAST_LEFT = 0.1
#: So many tasks of a job (it need not be whole) come first.
Before = tuple[Job, float]


class Work(NamedTuple):
    """What waits and comes before."""

    job: Job
    tasks: float
    seconds: float  #: a task


class Held:
    """Jobs that wait for a limit of their own as well: they take no more than that, but for longer."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.work: list[Work] = []

    def until(self, now: float, ends: Iterable[float]) -> float:
        """Returns about when the last of it ends; `ends`: when what runs of it does."""
        left_s = sum(end - now for end in ends) + sum(each.tasks * each.seconds for each in self.work)
        return now + left_s / self.bound


class Durations:
    """How long tasks of jobs take: as measured, else as the log has it, else their time limit."""

    def __init__(self, measured_s: Mapping[int, float]) -> None:
        self._known_s: dict[int, float | None] = dict(measured_s)

    def of(self, job: Job) -> float:
        """Returns seconds; inf if nothing is known."""
        if job.id not in self._known_s:
            self._known_s[job.id] = job.done.lately_s(_LATEST) or job.spec.timeout_s or None
        known = self._known_s[job.id]
        return inf if known is None else known

    def end(self, job: Job, began_at: float, now: float) -> float:
        """Returns when a task that began then ends; inf if nothing is known."""
        mean_s = self.of(job)
        return now + max(mean_s - (now - began_at), _LEAST_LEFT * mean_s)


def before(state: ClusterState, job: Job, durations: Durations, now: float) -> Iterator[Before]:
    """Yields what waits and comes first: all of higher priority, what the user has submitted before, and of other users
    what they may have until they have as much of their shares as he then has."""
    number = sum(len(stand.heads) for level in state.ready.levels.values() for stand in level.stands.values())
    most = _OF_A_LINE if number <= _MANY_LINES else 1
    for priority in state.ready.priorities():
        if priority < job.spec.priority:
            return
        level = state.ready.levels[priority]
        if priority > job.spec.priority:
            for stand in level.stands.values():
                yield from _waiting(state, stand, most, inf)
        else:
            yield from _shared(state, level, job, durations, most, now)


def bounds(state: ClusterState, job: Job) -> Iterator[tuple[tuple[str, str], int]]:
    """Yields the limits that the job is under, and how many tasks each lets be on hosts at once."""
    yield ("user", job.spec.user), state.limits.bound_of_user(job.spec.user)
    for gate in state.limits.gates(job):
        yield gate[:2], state.limits.bound(gate)


def held_apart(state: ClusterState, work: list[Work]) -> tuple[list[Work], list[Held]]:
    """Returns what takes whatever is free, and in groups what is held back by limits: shared ones, or its own."""
    wanted: dict[tuple[str, str], int] = {}  #: limit → tasks that would run under it
    for each in work:
        for key, bound in bounds(state, each.job):
            if bound < MAX_TASKS:
                wanted[key] = wanted.get(key, 0) + _own_most(each)
    free: list[Work] = []
    held: dict[tuple[str, str], Held] = {}
    for each in work:
        job = each.job
        tight = [(bound, key) for key, bound in bounds(state, job) if wanted.get(key, 0) > bound]
        if job.spec.max_running and not tight and _own_most(each) < each.tasks + len(job.running):
            tight = [(job.spec.max_running, ("job", str(job.id)))]
        if not tight:
            free.append(each)
        elif min(tight)[0] > 0:
            held.setdefault(min(tight)[1], Held(min(tight)[0])).work.append(each)
    return free, list(held.values())


def _own_most(work: Work) -> int:
    """Returns how many tasks of the job would run if it were for the job alone."""
    return min(work.job.spec.max_running or MAX_TASKS, ceil(work.tasks) + len(work.job.running))


def _waiting(state: ClusterState, stand: Stand, most: int, below: float) -> Iterator[Before]:
    """Yields the ready jobs of a stand whose ids are below a bound."""
    for _, line in stand.heads:
        looked = [state.jobs[each] for each in islice(line.jobs, most) if each < below]
        for each in looked:
            if each.queued > each.blocked:
                yield each, (each.queued - each.blocked) * _number(line, below) / len(looked)


def _number(line: Line, below: float) -> int:
    return len(line.jobs) if below == inf else line.jobs.rank(int(below))


def _shared(
    state: ClusterState, level: Level, job: Job, durations: Durations, most: int, now: float
) -> Iterator[Before]:
    """Yields what comes first of the job's own priority."""
    shares = state.shares
    account = shares.accounts.get(job.spec.user)
    key, weight = (shares.key_at(account, now), account.weight) if account is not None else (0.0, DEFAULT_WEIGHT)
    own = level.stands.get(account.number) if account is not None else None
    for each, tasks in _waiting(state, own, most, job.id) if own is not None else ():
        key += _cost_s(each, tasks, durations) * shares.factor(now) / weight
        yield each, tasks
    for stand in level.stands.values():
        if stand is not own:
            behind_s = (key - shares.key_at(stand.account, now)) * stand.account.weight / shares.factor(now)
            yield from _until_even(_waiting(state, stand, most, inf), behind_s, durations)


def _until_even(waiting: Iterable[Before], behind_s: float, durations: Durations) -> Iterator[Before]:
    """Yields which tasks of another user come first: until he has used so many slot seconds more."""
    for each, tasks in waiting:
        if behind_s <= 0:
            return
        cost_s = _cost_s(each, tasks, durations)
        yield each, tasks if cost_s <= behind_s or cost_s == inf else tasks * behind_s / cost_s
        behind_s -= cost_s


def _cost_s(job: Job, tasks: float, durations: Durations) -> float:
    return tasks * job.shape.weight * durations.of(job)
