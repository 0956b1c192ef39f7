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

Cost: proportional to the tasks placed, the hosts with room and the distinct shapes, not to what is queued.
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
from depalma.state.placement import ReadyJobs, misfit
from depalma.state.shapes import Shape

#: Work that may wait on a host ahead of its slots, in seconds a slot; and the longest mean of a short task.
AHEAD_S = 0.25


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
    places = _places(state, hosts)
    if not places or limit <= 0:
        return []
    round_ = _Round(state, places, mean_s, limit)
    round_.run()
    return [command for place in places for command in place.commands(len(places), now, term)]


class _Place:
    """A host in this round, with what is placed there."""

    __slots__ = (
        "ahead",
        "ahead_refs",
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
        self.short_slots = 0  #: slots that short tasks hold, known once the free ones are filled
        self.free_refs: list[AttemptRef] = []
        self.ahead_refs: list[AttemptRef] = []

    def count_short_slots(self, state: ClusterState, mean_s: Mapping[int, float]) -> None:
        """Counts the slots behind which short tasks may wait."""
        long = 0
        for job_id, count in self.host.by_job.items():
            if mean_s.get(job_id, AHEAD_S + 1) > AHEAD_S:
                long += count * state.jobs[job_id].shape.weight
        for ref in self.free_refs:
            if mean_s.get(ref[0], AHEAD_S + 1) > AHEAD_S:
                long += state.jobs[ref[0]].shape.weight
        self.short_slots = max(0, self.slots - long)

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


#: Order of choice: priority level, how full, measured load, name.
_Choice = tuple[int, float, float, str, _Place]


def _places(state: ClusterState, hosts: Mapping[str, HostRoom]) -> list[_Place]:
    """Returns the hosts that may take anything at all now."""
    places = []
    for name in sorted(hosts):
        room, host = hosts[name], state.hosts.get(name)
        if host is None or host.state != "up" or host.incarnation != room.incarnation or room.slots <= 0:
            continue
        if host.used < room.slots + room.ahead:
            places.append(_Place(host, room))
    return places


class _Queue:
    """The ready jobs of one shape, from the first that is not placed in full on."""

    __slots__ = ("choices", "job", "key", "keys", "left", "places", "position", "positions", "shape")

    def __init__(self, state: ClusterState, shape: Shape, keys: Iterator[int], places: list[_Place]) -> None:
        self.shape = shape
        self.keys = keys
        self.places = [place for place in places if not misfit(shape, place.host, place.slots)]
        self.choices: list[_Choice] = []
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

    def set_choices(self) -> None:
        """Orders the hosts for choosing."""
        self.choices = [_choice(place) for place in self.places]
        heapify(self.choices)

    def choose(self, mean_s: float | None) -> _Place | None:
        """Returns the best host with room for a task; `mean_s` None: a free slot only.

        Hosts only ever get fuller in a round, so an entry that is out of date stands too early, never too late.
        """
        choices, shape = self.choices, self.shape
        weight = shape.weight
        while choices:
            entry = choices[0]
            place = entry[4]
            room = place.slots if mean_s is None else place.slots + _ahead(place, mean_s)
            used = place.used
            if used + weight > room or (place.reserved is not None and place.reserved != shape):
                heappop(choices)
            elif used / place.slots != entry[1]:
                heapreplace(choices, _choice(place))
            else:
                return place
        return None


def _choice(place: _Place) -> _Choice:
    host = place.host
    return -host.priority, place.used / place.slots, place.cpu, host.name, place


def _ahead(place: _Place, mean_s: float) -> int:
    """Returns how many slots' worth of such tasks may wait on the host."""
    work_s = AHEAD_S * place.short_slots
    return place.ahead if mean_s * place.ahead <= work_s else int(work_s / mean_s)


class _Round:
    """One planning round."""

    def __init__(self, state: ClusterState, places: list[_Place], mean_s: Mapping[int, float], limit: int) -> None:
        self.state = state
        self.places = places
        self.mean_s = mean_s
        self.left = limit

    def run(self) -> None:
        """Fills free slots, then queues ahead."""
        queues = [_Queue(self.state, shape, keys, self.places) for shape, keys in self.state.ready.shapes()]
        stuck = self._merge([queue for queue in queues if queue.places], ahead=False)
        if stuck and self.left > 0:
            for place in self.places:
                place.count_short_slots(self.state, self.mean_s)
            self._merge(stuck, ahead=True)

    def _merge(self, queues: list[_Queue], *, ahead: bool) -> list[_Queue]:
        """Places jobs in order over all queues; returns the queues that got stuck, each at its job."""
        for queue in queues:
            queue.set_choices()
        heads = [(queue.key, number) for number, queue in enumerate(queues)]
        heapify(heads)
        stuck: list[_Queue] = []
        while heads and self.left > 0:
            queue = queues[heads[0][1]]
            if self._place_job(queue, ahead):
                if queue.next_job(self.state):
                    heapreplace(heads, (queue.key, heads[0][1]))
                else:
                    heappop(heads)
                continue
            heappop(heads)
            stuck.append(queue)
            if ahead:
                _close_ahead(queue)
            else:
                _reserve(queue)
        return stuck

    def _place_job(self, queue: _Queue, ahead: bool) -> bool:
        """Places tasks of the queue's job; returns False when one found no host."""
        job, weight = queue.job, queue.shape.weight
        mean_s = self.mean_s.get(job.id) if ahead else None
        if ahead and (mean_s is None or mean_s > AHEAD_S):
            return False
        job_id, first, stories, choose = job.id, job.first, job.stories, queue.choose
        while queue.position >= 0 and queue.left > 0 and self.left > 0:
            place = choose(mean_s)
            if place is None:
                return False
            position = queue.position
            story = stories.get(position) if stories else None
            ref = (job_id, first + position, story.last + 1 if story else 1)
            place.used += weight
            (place.ahead_refs if ahead else place.free_refs).append(ref)
            queue.left -= 1
            self.left -= 1
            queue.position = next(queue.positions, -1)
        return True


def _reserve(queue: _Queue) -> None:
    """Drains the emptiest fitting host for a task of several slots, or small ones would keep it out for ever."""
    if queue.shape.weight > 1:
        free = [place for place in queue.places if place.reserved is None]
        if free and not any(place.reserved == queue.shape for place in queue.places):
            max(free, key=lambda place: place.slots - place.used).reserved = queue.shape


def _close_ahead(queue: _Queue) -> None:
    """Keeps those behind from filling queues that this job waits for."""
    for place in queue.places:
        place.ahead = 0
