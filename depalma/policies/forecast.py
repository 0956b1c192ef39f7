"""When a job would start, as far as that can be told from how long tasks have taken. [pure]

What a task needs comes out of *basins*: the slots of the hosts that it fits, what is counted there, and each limit and
quota that it is under. What runs gives its part back when it ends; what comes before the job (`ahead.py`) takes it. A
basin is worked off at its full breadth, so the job's turn there comes when the work before it is done: right for tasks
of one slot, about right for others. The job starts when the last of its basins has room for a task, and some host has.

An estimate, never a promise: nothing that decides looks at it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf

from msgspec import Struct

from depalma.model import MAX_TASKS
from depalma.policies.ahead import Before, Durations, Held, Work, before, bounds, held_apart
from depalma.policies.basins import Basin, Takes, level
from depalma.policies.places import HostRoom, Place, places_of
from depalma.state.cluster_state import ClusterState
from depalma.state.jobs import Job
from depalma.state.limits import counted
from depalma.state.placement import misfit
from depalma.state.quotas import Holder, amount, holders_of, in_units
from depalma.state.texts import moment
from depalma.state.ways import one_way_each

#: How far a chain of jobs that wait for each other is followed, and how many of them are looked at in all.
_MOST_LINKS = 20
_MOST_SOURCES = 20
#: Jobs that are named one by one.
_NAMED = 3


class Forecast(Struct, frozen=True):
    """When the first task starts, about; None: nobody can say. And why."""

    at: float | None
    why: str


def start_lines(
    state: ClusterState, hosts: Mapping[str, HostRoom], mean_s: Mapping[int, float], job: Job, now: float
) -> Iterator[str]:
    """Yields in words when a job starts of which nothing runs yet; nothing for others."""
    if job.running or not job.queued or job.held or job.suspension is not None:
        return
    found = Forecaster(state, hosts, mean_s, now).start(job)
    if found.at is None:
        yield f"nobody can say when it starts: {found.why}"
    else:
        yield f"starts about {moment(found.at)}: {found.why}"


class Forecaster:
    """Makes forecasts for the state of this moment, which it does not change."""

    def __init__(
        self, state: ClusterState, hosts: Mapping[str, HostRoom], mean_s: Mapping[int, float], now: float
    ) -> None:
        self._state = state
        self._now = now
        self._durations = Durations(mean_s)
        self._places = places_of(state, hosts)
        self._runs = {
            place.host.name: [
                (state.jobs[ref[0]], self._durations.end(state.jobs[ref[0]], began_at, now))
                for ref, began_at in place.live(now)
            ]
            for place in self._places
        }
        self._known: dict[int, tuple[list[Work], list[Held]]] = {}  #: what comes before a job
        self._ends: dict[tuple[int, bool], float] = {}  #: of jobs that are waited for, see `_end`
        state.fits.begin(state.hosts)

    def start(self, job: Job) -> Forecast:
        """Returns when the job's first task that waits starts, about: in the way that has room first."""
        if job.shape.others:
            found = [self.start(each) for each in one_way_each(job)]
            return min(found, key=lambda one: inf if one.at is None else one.at)
        if job.held or job.suspension is not None:
            return Forecast(None, "it is held until it is released" if job.held else "it is suspended")
        if not job.queued:
            return Forecast(None, "it has no task that waits")
        if not self._fitting(job):
            return Forecast(None, "no host that is connected fits it")
        at = self._start(job, _MOST_LINKS)
        if at == inf:
            return Forecast(None, self._unknown(job))
        work, held = self._before(job)
        tasks = round(sum(each.tasks for each in [*work, *(each for group in held for each in group.work)]))
        first = f"{tasks} tasks that wait come before it" if tasks else "nothing that waits comes before it"
        return Forecast(at, f"{first}; by how long tasks have taken")

    def _unknown(self, job: Job) -> str:
        """Returns why nobody knows."""
        running = {each for place in self._fitting(job) for each, end in self._runs[place.host.name] if end == inf}
        work, held = self._before(job)
        waiting = {each.job for each in [*work, *(each for group in held for each in group.work)]}
        waiting |= {self._state.jobs[one.job] for one in job.unmet if one.job in self._state.jobs}
        missing = sorted(each.id for each in running | waiting if self._durations.of(each) == inf)
        if not missing:
            return "what it waits for has no end that can be told"
        more = f" and {len(missing) - _NAMED} more" * (len(missing) > _NAMED)
        names = ", ".join(map(str, missing[:_NAMED])) + more
        return f"no task of job{'s' * (len(missing) > 1)} {names} has ended yet, and there is no time limit"

    # ------------------------------------------------------------ times

    def _start(self, job: Job, links: int) -> float:
        """Returns when its first task that waits starts; inf if nobody knows."""
        at = max(self._now, job.spec.start_at if job.asleep else 0.0)
        for one in job.unmet:
            source = self._state.jobs.get(one.job)
            if source is not None and not (one.each and job.queued > job.blocked):
                at = max(at, self._end(source, links - 1, first=one.each))
        fitting = self._fitting(job)
        at = max([at, *(level(basin, self._now) for basin in self._basins(job, fitting))])
        if job.shape.gang:
            return at
        return max(at, min((self._room_on(job, place) for place in fitting), default=inf))

    def _end(self, job: Job, links: int, *, first: bool) -> float:
        """Returns when a job has ended that another one waits for; `first`: when one of its tasks has.

        Each is looked at once: of paths through a graph there are more than anybody can follow.
        """
        key = job.id, first
        if key not in self._ends:
            if len(self._ends) >= _MOST_SOURCES:
                return inf
            self._ends[key] = inf
            self._ends[key] = self._look_at_end(job, links, first=first)
        return self._ends[key]

    def _look_at_end(self, job: Job, links: int, *, first: bool) -> float:
        if job.is_final or (first and len(job.done)):
            return self._now
        ends = [
            self._durations.end(job, attempt.started_at or attempt.assigned_at, self._now)
            for attempt in job.running.values()
        ]
        if first and ends:
            return min(ends)
        if job.queued and links > 0:
            mean_s = self._durations.of(job)
            rounds = 1 if first else -(-job.queued // self._breadth(job))
            ends.append(self._start(job, links) + rounds * mean_s)
        elif job.queued:
            return inf
        return max(ends, default=inf)  # an open job without tasks ends when somebody says so

    def _breadth(self, job: Job) -> int:
        """Returns how many tasks of the job run at once when nothing else does."""
        slots = sum(place.slots for place in self._fitting(job))
        limits = [job.spec.max_running or MAX_TASKS, *(bound for _, bound in bounds(self._state, job))]
        return max(1, min(int(slots / job.shape.weight), *limits))

    def _room_on(self, job: Job, place: Place) -> float:
        """Returns when the host has room for a task, if nothing comes before it."""
        at = max(level(basin, self._now) for basin in self._of_hosts(job, [place], 1))
        return max(at, self._gpus_on(job, place)) if job.spec.gpus else at

    def _gpus_on(self, job: Job, place: Place) -> float:
        """Returns when GPUs of the host have room for a task, beside what runs there: sums of parts do not say that."""
        host, needs, taken = place.host, job.shape.needs, dict(place.taken)
        jobs, ends = self._state.jobs, self._durations.end
        live = sorted((ends(jobs[ref[0]], began_at, self._now), ref) for ref, began_at in place.live(self._now))
        at = self._now
        while not host.has_room(needs, taken) and live:
            at, ref = live.pop(0)
            for name, number in place.held(ref, place.shape_of(ref, jobs[ref[0]])):
                taken[name] -= number
        return at if host.has_room(needs, taken) else inf

    # ------------------------------------------------------------ basins

    def _fitting(self, job: Job) -> list[Place]:
        return [each for each in self._places if not misfit(job.shape, each.host, each.slots)]

    def _basins(self, job: Job, fitting: list[Place]) -> list[Basin]:
        """Returns what the job needs, with what runs and what comes before it."""
        size = job.shape.gang or 1
        on_hosts = list(self._of_hosts(job, fitting, size))
        everywhere = list(self._of_limits(job, size))
        work, held = self._before(job)
        bits = self._bits(fitting)
        for basin in on_hosts:
            basin.fill(work, held, self._now, lambda other: self._overlap(other, bits))
        for basin in everywhere:
            basin.fill(work, held, self._now, lambda other: 1.0)
        return [*on_hosts, *everywhere]

    def _of_hosts(self, job: Job, places: list[Place], size: int) -> Iterator[Basin]:
        """Yields what the job needs of hosts, with what runs there."""
        runs = [run for place in places for run in self._runs[place.host.name]]
        slots = sum(place.limit if len(places) > 1 else place.slots for place in places)
        yield Basin(slots, job.shape.weight * size, lambda other: other.shape.weight, runs)
        for name, number in job.shape.needs:
            others = sum(place.taken.get(name, 0) - place.host.taken.get(name, 0) for place in places)
            has = sum(place.host.capacity(name) for place in places) - others
            yield Basin(has, number * size, _of(name), runs)

    def _of_limits(self, job: Job, size: int) -> Iterator[Basin]:
        """Yields the limits and quotas that the job is under, with what runs."""
        state, runs = self._state, [run for found in self._runs.values() for run in found]
        for key, bound in bounds(state, job):
            if bound < MAX_TASKS:
                yield Basin(bound, size, _under(key), runs)
        for holder in holders_of(job) if state.quotas else ():
            for name, most in state.quotas.of(holder).items():
                if need := amount(job.shape, name) * size:
                    yield Basin(in_units(name, most), need, _of(name, holder), runs)

    def _before(self, job: Job) -> tuple[list[Work], list[Held]]:
        """Returns what comes before a job; apart what takes no more than a limit of its own lets it."""
        known = self._known.get(job.id)
        if known is not None:
            return known
        found = [*before(self._state, job, self._durations, self._now), *self._at_own_limit(job)]
        work = [Work(each, tasks, self._durations.of(each)) for each, tasks in found]
        known = self._known[job.id] = held_apart(self._state, work)
        return known

    def _at_own_limit(self, job: Job) -> Iterator[Before]:
        """Yields jobs of which as many tasks run as may, and more wait: as one ends the next one takes its place."""
        running = {each.id: each for runs in self._runs.values() for each, _ in runs}
        for each in running.values():
            waits = each.queued > each.blocked and not each.ready and not each.held and not each.suspension
            if waits and (each.spec.priority, -each.id) > (job.spec.priority, -job.id):
                yield each, each.queued - each.blocked

    def _bits(self, places: list[Place]) -> int:
        numbers = self._state.fits.numbers
        return sum(1 << numbers[place.host.name] for place in places)

    def _overlap(self, other: Job, bits: int) -> float:
        """Returns which part of the hosts that another job may use these are."""
        ready = other.line is not None
        theirs = self._state.fits.of(other.line.lane, self._state.hosts) if ready else self._bits(self._fitting(other))
        return (theirs & bits).bit_count() / theirs.bit_count() if theirs else 0.0


def _of(name: str, holder: Holder | None = None) -> Takes:
    """Returns what takes so much of something as a task does, if it is under a holder's quota."""
    return lambda other: amount(other.shape, name) if holder is None or holder in holders_of(other) else 0.0


def _under(key: tuple[str, str]) -> Takes:
    """Returns what takes 1 if a task counts under a limit."""
    kind, name = key
    return lambda other: float(other.spec.user == name if kind == "user" else key in counted(other))
