"""Which task goes where next. [pure]

Strict priority, then FIFO by job id, over all jobs at once; a job that cannot start keeps lower ones off what it
waits for, so nothing overtakes. Three rules of a round:

1. Free slots of all hosts are filled first, in order. On which host: `policies/places.py`.
2. Only then are tasks queued ahead on hosts whose slots are taken: tasks of jobs known to be short (`AHEAD_S` at
   most on average), behind slots that short tasks hold, and never more than about `AHEAD_S` of work for each of those
   slots. So what comes later and is more urgent waits no longer than that, and nothing waits behind a long task.
3. A job that could not place all its tasks keeps hosts from those behind it: one host for a task that needs much
   (rule 1, `policies/reserve.py`), all hosts it could use (rule 2).

Cost: proportional to the tasks placed, the connected hosts and the distinct shapes, not to what is queued.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heapreplace

from depalma.policies.places import Choice, HostRoom, Place, Pool, choice, places_of
from depalma.policies.reserve import reserve
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import AssignTasks
from depalma.state.jobs import Job
from depalma.state.placement import ReadyJobs, order_key
from depalma.state.shapes import Shape

__all__ = ["HostRoom", "plan"]

#: Work that may wait on a host ahead of its slots, in seconds a slot; and the longest mean of a short task.
AHEAD_S = 0.25
#: Jobs with known means up to which it pays to look for the last short one.
_MANY = 500


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
    places = places_of(state, hosts, ahead=last_short is not None)
    if not places:
        return []
    _Round(state, places, mean_s, now, limit).run(last_short)
    return [command for place in places for command in place.commands(len(places), now, term)]


def _last_short(state: ClusterState, mean_s: Mapping[int, float]) -> int | None:
    """Returns the place in the order of the last ready job of short tasks, None when there is none.

    Only spares work: hosts with taken slots, and what stands behind that job, need not be looked at.
    """
    if len(mean_s) > _MANY:
        return 1 << 62
    jobs = (state.jobs.get(job) for job, mean in mean_s.items() if mean <= AHEAD_S)
    return max((order_key(job.spec.priority, job.id) for job in jobs if job is not None and job.ready), default=None)


class _Queue:
    """The ready jobs of one shape, from the first that is not placed in full on."""

    __slots__ = ("choices", "job", "key", "keys", "left", "position", "positions", "shape")

    def __init__(self, state: ClusterState, shape: Shape, keys: Iterator[int]) -> None:
        self.shape = shape
        self.keys = keys
        self.choices: list[Choice] | None = None  #: heap of the places of this phase, made when its turn comes
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

    def __init__(
        self, state: ClusterState, places: list[Place], mean_s: Mapping[int, float], now: float, limit: int
    ) -> None:
        self.state = state
        self.now = now
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
        pool = Pool([place for place in self.places if place.used < place.slots])
        heads = [(queue.key, number) for number, queue in enumerate(queues)]
        heapify(heads)
        stuck: list[_Queue] = []
        while heads and self.left > 0 and self.free > 0:
            number = heads[0][1]
            queue = queues[number]
            if not self._place_job(queue, pool, None):
                heappop(heads)
                stuck.append(queue)
                reserve(self.state, queue.shape, pool.fitting(queue.shape), self.now)
            elif queue.next_job(self.state):
                heapreplace(heads, (queue.key, number))
            else:
                heappop(heads)
        return stuck + [queues[number] for _, number in heads]

    def _queue_ahead(self, queues: list[_Queue], last: int) -> None:
        """Queues short tasks ahead, in order; a job that has to wait closes the hosts it waits for."""
        pool = Pool([place for place in self.places if place.used < place.slots + place.ahead])
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

    def _place_job(self, queue: _Queue, pool: Pool, mean_s: float | None) -> bool:
        """Places tasks of the queue's job; returns False when one found no host. `mean_s`: ahead of free slots."""
        job, shape = queue.job, queue.shape
        weight, needs, plain = shape.weight, shape.needs, not (shape.prefer or shape.pack)
        job_id, first, stories = job.id, job.first, job.stories
        if queue.choices is None:
            queue.choices = [choice(place, queue.shape) for place in pool.fitting(queue.shape)]
            heapify(queue.choices)
        while queue.position >= 0 and queue.left > 0 and self.left > 0:
            place = self._choose(queue.choices, shape, mean_s)
            if place is None:
                return False
            position = queue.position
            story = stories.get(position) if stories else None
            ref = (job_id, first + position, story.last + 1 if story else 1)
            place.used += weight
            if needs:
                place.take(shape)
            if mean_s is None:
                (place.free_refs if plain else place.refs(shape, ahead=False)).append(ref)
                self.free -= weight
            else:
                place.ahead_refs.append(ref)
            queue.left -= 1
            self.left -= 1
            queue.position = next(queue.positions, -1)
        return True

    def _choose(self, choices: list[Choice], shape: Shape, mean_s: float | None) -> Place | None:
        """Returns the best place with room for a task; `mean_s` None: a free slot only.

        Places only ever get fuller in a round, so an entry that is out of date stands too early, never too late.
        """
        weight = shape.weight
        while choices:
            entry = choices[0]
            place = entry[5]
            room = place.slots if mean_s is None else place.slots + self._ahead(place, mean_s)
            used = place.used
            if used + weight > room or not self._may_take(place, shape):
                heappop(choices)
            elif used / place.slots != abs(entry[2]):
                heapreplace(choices, choice(place, shape))
            else:
                return place
        return None

    def _may_take(self, place: Place, shape: Shape) -> bool:
        """Returns whether all but slots allows a task of the shape there."""
        if shape.needs and not place.host.has_room(shape.needs, place.taken):
            return False
        return place.reserved is None or place.reserved.admits(shape, place, self.now)

    def _ahead(self, place: Place, mean_s: float) -> int:
        """Returns how many slots' worth of such tasks may wait on the host."""
        if place.closed:
            return 0
        if place.short_slots < 0:
            place.short_slots = self._short_slots(place)
        work_s = AHEAD_S * place.short_slots
        return place.ahead if mean_s * place.ahead <= work_s else int(work_s / mean_s)

    def _short_slots(self, place: Place) -> int:
        """Returns how many slots are not held by tasks that are long, or may be."""
        means, jobs = self.mean_s, self.state.jobs
        held = [(job, count) for job, count in place.host.by_job.items() if means.get(job, AHEAD_S + 1) > AHEAD_S]
        held += [(ref[0], 1) for ref in place.placed() if means.get(ref[0], AHEAD_S + 1) > AHEAD_S]
        return max(0, place.slots - sum(count * jobs[job].shape.weight for job, count in held))
