"""Which task goes where next. [pure]

Strict priority, then FIFO by job id, over all jobs at once; a job that cannot start keeps lower ones off what it
waits for, so nothing overtakes. Three rules of a round:

1. Free slots of all hosts are filled first, in order. On which host: priority level, then the least full, then the
   least loaded as measured.
2. Only then are tasks queued ahead on hosts whose slots are taken: tasks of jobs known to be short (`AHEAD_S` at
   most on average), behind slots that short tasks hold, and never more than about `AHEAD_S` of work for each of those
   slots. So what comes later and is more urgent waits no longer than that, and nothing waits behind a long task.
3. A job that could not place all its tasks closes hosts for those behind it: one host to drain for a task of several
   slots (rule 1), all hosts it could use (rule 2).

Cost: proportional to the tasks placed, the connected hosts and the distinct shapes, not to what is queued.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heapreplace

from msgspec import Struct

from depalma.model import AttemptRef, Load
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import AssignTasks
from depalma.state.hosts import Host
from depalma.state.jobs import Job
from depalma.state.placement import ReadyJobs, misfit, order_key
from depalma.state.shapes import Shape

#: Work that may wait on a host ahead of its slots, in seconds a slot; and the longest mean of a short task.
AHEAD_S = 0.25
#: Jobs with known means up to which it pays to look for the last short one.
_MANY = 500


class HostRoom(Struct, frozen=True, gc=False):
    """What the leader knows of a connected host beyond the state."""

    incarnation: str
    slots: int
    ahead: int = 0  #: most slots' worth of tasks that may wait there beyond the slots; 0 = none
    load: Load = Load()


def plan(
    state: ClusterState,
    hosts: Mapping[str, HostRoom],
    mean_s: Mapping[int, float],
    now: float,
    term: int,
    limit: int,
) -> list[AssignTasks]:
    """Returns the assignments of one round, at most `limit` tasks; changes nothing.

    `hosts`: those that are connected now. `mean_s`: how long tasks of a job take, for jobs where that is known.
    """
    if not state.ready or limit <= 0:
        return []
    last_short = _last_short(state, mean_s)
    places = _places(state, hosts, ahead=last_short is not None)
    if not places:
        return []
    _Round(state, places, mean_s, limit).run(last_short)
    return [command for place in places for command in place.commands(len(places), now, term)]


class _Place:
    """A host in this round, with what is placed there."""

    __slots__ = (
        "ahead",
        "ahead_refs",
        "closed",
        "cpu",
        "free_refs",
        "host",
        "incarnation",
        "reserved",
        "short_slots",
        "slots",
        "used",
        "was",
    )

    def __init__(self, host: Host, room: HostRoom) -> None:
        self.host = host
        self.incarnation = room.incarnation
        self.slots = room.slots
        self.ahead = room.ahead
        self.cpu = room.load.cpu_percent
        self.used = self.was = host.used
        self.reserved: Shape | None = None  #: being drained for a task of this shape
        self.closed = False  #: nothing more is queued ahead here
        self.short_slots = -1  #: slots that short tasks hold; -1 = not counted yet
        self.free_refs: list[AttemptRef] = []
        self.ahead_refs: list[AttemptRef] = []

    def commands(self, hosts: int, now: float, term: int) -> Iterator[AssignTasks]:
        """Yields what was placed here, with the reason."""
        name, level = self.host.name, self.host.priority
        choice = f"least full of {hosts} host{'s' * (hosts > 1)} with room, priority level {level}"
        free = max(0, self.slots - self.was)
        for refs, reason in (
            (self.free_refs, f"{free} of {self.slots} slots were free; {choice}"),
            (self.ahead_refs, f"queued ahead: short tasks, all {self.slots} slots taken; {choice}"),
        ):
            if refs:
                yield AssignTasks(term, name, self.incarnation, tuple(refs), now, reason)


def _last_short(state: ClusterState, mean_s: Mapping[int, float]) -> int | None:
    """Returns the place in the order of the last ready job of short tasks, None when there is none.

    Only spares work: hosts with taken slots, and what stands behind that job, need not be looked at.
    """
    if len(mean_s) > _MANY:
        return 1 << 62
    jobs = (state.jobs.get(job) for job, mean in mean_s.items() if mean <= AHEAD_S)
    return max((order_key(job.spec.priority, job.id) for job in jobs if job is not None and job.ready), default=None)


def _places(state: ClusterState, hosts: Mapping[str, HostRoom], *, ahead: bool) -> list[_Place]:
    """Returns the hosts that may take anything at all now; `ahead`: those with taken slots, too."""
    places = []
    for name, room in hosts.items():
        host = state.hosts.get(name)
        if host is None or host.used >= room.slots + (room.ahead if ahead else 0):
            continue
        if host.takes_work and host.incarnation == room.incarnation and room.slots > 0:
            places.append(_Place(host, room))
    places.sort(key=lambda place: place.host.name)
    return places


class _Pool:
    """Places to choose from, found by what a shape names before they are looked at one by one."""

    def __init__(self, places: list[_Place]) -> None:
        self.places = places
        self.open = len(places)
        self._by_name = {place.host.name: [place] for place in places}
        self._by_group: dict[str, list[_Place]] = {}
        for place in places:
            for group in place.host.groups:
                self._by_group.setdefault(group, []).append(place)

    def fitting(self, shape: Shape) -> list[_Place]:
        """Returns the open places that tasks of the shape may use."""
        places = self.places
        if shape.on_host:
            places = self._by_name.get(shape.on_host, [])
        elif shape.group:
            places = self._by_group.get(shape.group, [])
        return [place for place in places if not place.closed and not misfit(shape, place.host, place.slots)]

    def close(self, shape: Shape) -> None:
        """Closes the places that tasks of the shape may use."""
        for place in self.fitting(shape):
            place.closed = True
            self.open -= 1


#: Order of choice: priority level, how full, measured load, name.
_Choice = tuple[int, float, float, str, _Place]


def _choice(place: _Place) -> _Choice:
    host = place.host
    return -host.priority, place.used / place.slots, place.cpu, host.name, place


class _Queue:
    """The ready jobs of one shape, from the first that is not placed in full on."""

    __slots__ = ("choices", "job", "key", "keys", "left", "position", "positions", "shape")

    def __init__(self, state: ClusterState, shape: Shape, keys: Iterator[int]) -> None:
        self.shape = shape
        self.keys = keys
        self.choices: list[_Choice] | None = None  #: heap of the places of this phase, made when its turn comes
        self.key = 0
        self.job: Job
        self.positions: Iterator[int]
        self.position = -1  #: the task that is next; -1 = none left of this job
        self.left = 0  #: how many tasks of the job may still be handed out
        self.next_job(state)

    def next_job(self, state: ClusterState) -> bool:
        """Goes to the next job; returns whether there is one."""
        key = next(self.keys, None)
        if key is None:
            return False
        self.key = key
        self.job = job = state.jobs[ReadyJobs.job_of(key)]
        self.positions = job.queued_positions()
        self.position = next(self.positions, -1)
        limit = job.spec.max_running
        self.left = limit - len(job.running) if limit else job.queued
        return True


class _Round:
    """One planning round."""

    def __init__(self, state: ClusterState, places: list[_Place], mean_s: Mapping[int, float], limit: int) -> None:
        self.state = state
        self.places = places
        self.mean_s = mean_s
        self.left = limit
        self.free = sum(max(0, place.slots - place.used) for place in places)

    def run(self, last_short: int | None) -> None:
        """Fills free slots, then queues ahead up to the last job for which that may be done."""
        stuck = [_Queue(self.state, shape, keys) for shape, keys in self.state.ready.shapes()]
        if self.free:
            stuck = self._fill(stuck)
        if stuck and last_short is not None and self.left > 0:
            self._queue_ahead(stuck, last_short)

    def _fill(self, queues: list[_Queue]) -> list[_Queue]:
        """Fills free slots in order over all queues; returns the queues that got stuck, each at its job."""
        pool = _Pool([place for place in self.places if place.used < place.slots])
        heads = [(queue.key, number) for number, queue in enumerate(queues)]
        heapify(heads)
        stuck: list[_Queue] = []
        while heads and self.left > 0 and self.free > 0:
            number = heads[0][1]
            queue = queues[number]
            if not self._place_job(queue, pool, None):
                heappop(heads)
                stuck.append(queue)
                _reserve(queue, pool)
            elif queue.next_job(self.state):
                heapreplace(heads, (queue.key, number))
            else:
                heappop(heads)
        return stuck + [queues[number] for _, number in heads]

    def _queue_ahead(self, queues: list[_Queue], last: int) -> None:
        """Queues short tasks ahead, in order; a job that has to wait closes the hosts it waits for."""
        pool = _Pool([place for place in self.places if place.used < place.slots + place.ahead])
        heads = []
        for number, queue in enumerate(queues):
            queue.choices = None
            heads.append((queue.key, number))
        heapify(heads)
        while heads and heads[0][0] <= last and self.left > 0 and pool.open:
            number = heads[0][1]
            queue = queues[number]
            mean_s = self.mean_s.get(queue.job.id, AHEAD_S + 1)
            if mean_s > AHEAD_S or not self._place_job(queue, pool, mean_s):
                heappop(heads)
                pool.close(queue.shape)
            elif queue.next_job(self.state):
                heapreplace(heads, (queue.key, number))
            else:
                heappop(heads)

    def _place_job(self, queue: _Queue, pool: _Pool, mean_s: float | None) -> bool:
        """Places tasks of the queue's job; returns False when one found no host. `mean_s`: ahead of free slots."""
        job, weight = queue.job, queue.shape.weight
        job_id, first, stories = job.id, job.first, job.stories
        if queue.choices is None:
            queue.choices = [_choice(place) for place in pool.fitting(queue.shape)]
            heapify(queue.choices)
        while queue.position >= 0 and queue.left > 0 and self.left > 0:
            place = self._choose(queue.choices, queue.shape, mean_s)
            if place is None:
                return False
            position = queue.position
            story = stories.get(position) if stories else None
            ref = (job_id, first + position, story.last + 1 if story else 1)
            place.used += weight
            if mean_s is None:
                place.free_refs.append(ref)
                self.free -= weight
            else:
                place.ahead_refs.append(ref)
            queue.left -= 1
            self.left -= 1
            queue.position = next(queue.positions, -1)
        return True

    def _choose(self, choices: list[_Choice], shape: Shape, mean_s: float | None) -> _Place | None:
        """Returns the best place with room for a task; `mean_s` None: a free slot only.

        Places only ever get fuller in a round, so an entry that is out of date stands too early, never too late.
        """
        weight = shape.weight
        while choices:
            entry = choices[0]
            place = entry[4]
            room = place.slots if mean_s is None else place.slots + self._ahead(place, mean_s)
            used = place.used
            if used + weight > room or (place.reserved is not None and place.reserved != shape):
                heappop(choices)
            elif used / place.slots != entry[1]:
                heapreplace(choices, _choice(place))
            else:
                return place
        return None

    def _ahead(self, place: _Place, mean_s: float) -> int:
        """Returns how many slots' worth of such tasks may wait on the host."""
        if place.closed:
            return 0
        if place.short_slots < 0:
            place.short_slots = self._short_slots(place)
        work_s = AHEAD_S * place.short_slots
        return place.ahead if mean_s * place.ahead <= work_s else int(work_s / mean_s)

    def _short_slots(self, place: _Place) -> int:
        """Returns how many slots are not held by tasks that are long, or may be."""
        means, jobs = self.mean_s, self.state.jobs
        held = [(job, count) for job, count in place.host.by_job.items() if means.get(job, AHEAD_S + 1) > AHEAD_S]
        held += [(ref[0], 1) for ref in place.free_refs if means.get(ref[0], AHEAD_S + 1) > AHEAD_S]
        return max(0, place.slots - sum(count * jobs[job].shape.weight for job, count in held))


def _reserve(queue: _Queue, pool: _Pool) -> None:
    """Drains the emptiest fitting host for a task of several slots, or small ones would keep it out for ever."""
    if queue.shape.weight > 1:
        places = pool.fitting(queue.shape)
        free = [place for place in places if place.reserved is None]
        if free and not any(place.reserved == queue.shape for place in places):
            max(free, key=lambda place: place.slots - place.used).reserved = queue.shape
