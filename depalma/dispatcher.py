"""Which task goes where next. [pure]

Strict priority over all jobs; within a priority the user who is furthest behind his share (`policies/order.py`), of
his jobs the oldest. A job that cannot start keeps those behind it off what it waits for. Six rules of a round:

1. A priority that has got nothing for long (`age_s`) gets one task first, so nothing starves.
2. Free slots of all hosts are filled, in order. On which host: `policies/places.py`.
3. Only then are tasks queued ahead on hosts whose slots are taken: tasks of jobs known to be short (`AHEAD_S` at
   most on average), behind slots that short tasks hold, and never more than about `AHEAD_S` of work for each of those
   slots. So what comes later and is more urgent waits no longer than that, and nothing waits behind a long task.
4. A job that could not place all its tasks keeps hosts from those behind it: one host for a task that needs much
   (rule 2, `policies/reserve.py`), all hosts it could use (rule 3). A job at a limit keeps nothing.
5. The tasks of a gang are placed together, in free slots, or not at all (`policies/gangs.py`).
6. A task with alternatives runs in the first of its ways that has room on some host, in a free slot.

Cost: proportional to the tasks placed; and a fraction of a microsecond for each connected host, and for each lane
(`state/ready.py`) and user that comes first and may not start, of which one of gangs looks at its hosts one by one. Not
to what is queued.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heapreplace
from math import inf

from depalma.model import AttemptRef
from depalma.policies.gangs import could_start, gang_command, hold, room_at
from depalma.policies.near import data_of
from depalma.policies.order import UNKNOWN_S, Queue, Turns, Walk
from depalma.policies.places import Choice, HostRoom, Place, Pool, choice
from depalma.policies.reserve import reserve
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import AssignTasks
from depalma.state.jobs import Job
from depalma.state.order_commands import AssignGang
from depalma.state.ready import Lane, Line, Way
from depalma.state.shapes import Shape
from depalma.state.shares import Account

__all__ = ["Assignment", "HostRoom", "parts", "plan"]

#: What a round decides.
Assignment = AssignTasks | AssignGang

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
) -> list[Assignment]:
    """Returns the assignments of one round, at most `limit` tasks; changes nothing.

    `hosts`: those that are connected now. `mean_s`: how long tasks of a job take, for jobs where that is known.
    """
    if not state.ready or limit <= 0:
        return []
    last_short = _last_short(state, mean_s)
    pool = Pool(state, hosts, ahead=last_short is not None)
    if not pool:
        return []
    state.ready.put_in_order()
    _Round(state, pool, mean_s, now, limit).run(last_short)
    return [*(gang_command(*gang, now, term) for gang in pool.gangs), *pool.commands(now, term)]


def parts(command: Assignment) -> list[tuple[str, tuple[AttemptRef, ...]]]:
    """Returns which host an assignment gives what."""
    if isinstance(command, AssignTasks):
        return [(command.host, command.tasks)]
    return [(host, refs) for host, _, refs in command.parts]


def _last_short(state: ClusterState, mean_s: Mapping[int, float]) -> float | None:
    """Returns the lowest priority of a ready job of short tasks, None when there is none.

    Only spares work: hosts with taken slots, and what stands behind that job, need not be looked at.
    """
    if len(mean_s) > _MANY:
        return -inf
    jobs = (state.jobs.get(job) for job, mean in mean_s.items() if mean <= AHEAD_S)
    return min((job.spec.priority for job in jobs if job is not None and job.ready), default=None)


class _Round:
    """One planning round."""

    def __init__(self, state: ClusterState, pool: Pool, mean_s: Mapping[int, float], now: float, limit: int) -> None:
        self.state = state
        self.limit = limit
        self.now = now
        self.pool = pool
        self.mean_s = mean_s
        self.left = limit
        self.turns = Turns(state, now)
        self.walks: dict[Line, Walk] = {}
        self.choices: dict[Shape, list[Choice]] = {}  #: heaps of the places of this phase, made when needed
        self.closed: set[Shape] = set()  #: of which nothing more can be placed in this phase
        self.shut: set[Lane] = set()  #: lanes of which that is known, for that or for another reason
        self.near: dict[tuple[Shape, tuple[str, ...]], list[Choice]] = {}  #: heaps of places with certain data
        self.ahead = False

    def run(self, last_short: float | None) -> None:
        """Fills free slots, then queues ahead down to the last priority for which that may be done."""
        ready, pool = self.state.ready, self.pool
        if pool.open:
            for priority in ready.starved(self.now, self.state.age_s):
                if priority != ready.highest:
                    self._serve(priority, 1)
            for priority in ready.priorities():
                if self.left <= 0 or not pool.open:
                    break
                self._serve(priority, self.left)
        if last_short is None or self.left <= 0:
            return
        self.ahead, self.choices = True, {}
        self.closed.clear()
        self.shut.clear()
        pool.go_ahead()
        for priority in ready.priorities():
            if priority < last_short or self.left <= 0 or not pool.open:
                break
            self._serve(priority, self.left)

    def _serve(self, priority: int, most: int) -> None:
        """Places up to so many tasks of a priority, in order."""
        queue = Queue(self.state, priority, self.turns, self.walks, self._admits)
        while most > 0 and self.left > 0 and self.pool.open:
            walk = queue.first()
            if walk is None:
                return
            rival, lone = queue.rival(), queue.is_lone
            most -= self._place_turn(walk, most, rival)
            while lone and most > 0 and self._goes_on(walk):
                most -= self._place_turn(walk, most, rival)  # what most clusters have: there is nobody to compare with

    def _admits(self, lane: Lane, account: Account) -> bool:
        """Returns whether something of a user in a lane may still be placed in this phase. Most lanes of a long queue
        may not, so this looks at no job and at no single host."""
        if lane in self.shut:
            return False
        bits = self.state.fits.of(lane, self.state.hosts)
        # A lane at a limit keeps nothing from others, so it is not closed; nor one that fits no host at all.
        if bits and lane.shape not in self.closed and not (lane.gates and self.turns.is_shut(lane)):
            if bits & self.pool.open:
                return True
            if self.turns.room(lane, account) < (lane.shape.gang or 1):
                return False  # this user is at a limit or quota of his own: he keeps nothing, others in the lane may
            self._close(lane, [way for way in lane.ways if self.turns.room(lane, account, way.shape)])
        self.shut.add(lane)
        return False

    def _goes_on(self, walk: Walk) -> bool:
        """Returns whether more of a line may find a place."""
        return self.left > 0 and not walk.is_over and walk.lane not in self.shut and self.pool.open > 0

    def _place_turn(self, walk: Walk, most: int, rival: float) -> int:
        """Places what the user may have before it is another's turn. Returns how many tasks that were."""
        lane, job, account = walk.lane, walk.job, walk.account
        if lane.shape.gang:
            return self._place_gang(walk)
        if lane.ways:
            return self._place_ways(walk, most, rival)
        most = min(most, walk.left, self.turns.room(lane, account))
        if most <= 0:
            walk.is_over = True
            return 0
        known_s = self.mean_s.get(job.id)
        if self.ahead and (known_s is None or known_s > AHEAD_S):
            self._close(lane)
            return 0
        mean_s = UNKNOWN_S if known_s is None else known_s
        if rival < inf:
            most = min(most, self.turns.tasks_before(rival, lane.shape, account, mean_s))
        placed = self._place(walk, most, known_s if self.ahead else None, lane)
        if placed:
            self.left -= placed
            self.turns.charge(lane.shape, job, account, placed, mean_s)
        if placed < most and walk.position >= 0:
            self._close(lane)
        elif walk.position < 0 or walk.left <= 0:
            walk.next_job(self.state)
        return placed

    def _place_ways(self, walk: Walk, most: int, rival: float) -> int:
        """Does the same for tasks with alternatives: each runs in the first way that has room somewhere now."""
        lane, job, account, placed = walk.lane, walk.job, walk.account, 0
        mean_s = self.mean_s.get(job.id, UNKNOWN_S)
        full: list[Way] = []  #: those that would be allowed, had a host room
        for number, way in enumerate(lane.ways if not self.ahead else ()):
            room = min(most - placed, walk.left, self.turns.room(lane, account, way.shape))
            if room <= 0:
                continue
            if rival < inf:
                if placed and self.turns.key(account) >= rival:
                    break
                room = min(room, self.turns.tasks_before(rival, way.shape, account, mean_s))
            count = self._place(walk, room, None, way, number)
            if count:
                placed += count
                self.left -= count
                self.turns.charge(way.shape, job, account, count, mean_s)
            if count == room or walk.position < 0:
                break  # it is another's turn, or comes again
            full.append(way)
        else:
            if self.ahead or len(full) == len(lane.ways):
                self._close(lane, full)
            else:
                walk.is_over = True  # he is at a quota of his own for the other ways: users behind him may not be
                self._keep(lane, full)
            return placed
        if walk.position < 0 or walk.left <= 0:
            walk.next_job(self.state)
        return placed

    def _place_gang(self, walk: Walk) -> int:
        """Places the next gang of the walk's job, if there is room for all of it. Returns how many tasks that are."""
        lane, job, account, shape = walk.lane, walk.job, walk.account, walk.lane.shape
        size = shape.gang
        if min(walk.left, self.turns.room(lane, account)) < size:
            walk.is_over = True
            return 0
        if self.ahead:
            self._close(lane)
            return 0
        if self.left < min(size, self.limit):
            self.left = 0  # it is the first one of the next round
            return 0
        choices = self._choices(lane)
        room = 0
        for entry in choices:
            room += room_at(shape, entry[5], self.now, size - room)
            if room == size:
                break
        if room < size:
            self._close(lane)
            return 0
        refs: list[AttemptRef] = []
        chosen: list[Place] = []
        near = self._near(job, shape, choices)
        while len(refs) < size and (place := self._choose_near(choices, near, shape)[0]) is not None:
            index = job.first + walk.position
            refs.append((job.id, index, job.last_attempt(index) + 1))
            chosen.append(place)
            self.pool.give(place, shape, refs[-1])
            walk.position = next(walk.positions, -1)
        self.pool.gangs.append((refs, chosen))
        walk.left -= size
        self.left = max(0, self.left - size)
        self.turns.charge(shape, job, account, size, self.mean_s.get(job.id, UNKNOWN_S))
        if walk.position < 0 or walk.left < size:
            walk.next_job(self.state)
        return size

    def _close(self, lane: Lane, ways: Sequence[Way] = ()) -> None:
        """Nothing more of the lane's shape can be placed: it keeps hosts from those behind it. `ways`: of several,
        those in which it would be allowed."""
        self.closed.add(lane.shape)
        self.shut.add(lane)
        self._keep(lane, ways or lane.ways or (lane,))

    def _keep(self, lane: Lane, ways: Sequence[Way | Lane]) -> None:
        """Keeps hosts for tasks of a lane that found none in any of these ways."""
        shape, pool, hosts = lane.shape, self.pool, self.state.hosts
        wanted = [(way.shape, self.state.fits.of(way, hosts)) for way in ways]
        if self.ahead and not shape.gang:
            for each, bits in wanted:
                pool.close(each, bits)
        elif not shape.gang:
            pool.keep(reserve(self.state, pool.keeps_for(wanted), self.now))
            for each, bits in wanted:
                pool.want(each, bits)
        else:
            self._keep_for_gang(shape, wanted[0][1])

    def _keep_for_gang(self, shape: Shape, bits: int) -> None:
        pool = self.pool
        if not could_start(shape, pool.all_for(shape, bits)):
            return  # it waits for more hosts than there are
        if self.ahead:
            pool.close(shape, bits)
            return
        pool.keep(hold(self.state, shape, pool.unwanted(shape, bits), self.now))
        pool.want(shape, bits)

    def _place(self, walk: Walk, most: int, mean_s: float | None, way: Way | Lane, number: int = 0) -> int:
        """Places up to so many tasks of the walk's job in a way, the so-manieth of several; returns how many found a
        host. `mean_s`: ahead of free slots."""
        job, shape, pool = walk.job, way.shape, self.pool
        weight, needs, plain = shape.weight, shape.needs, not (shape.prefer or shape.pack or number)
        job_id, first, stories = job.id, job.first, job.stories
        choices = self._choices(way)
        near = self._near(job, shape, choices) if mean_s is None else []
        is_near = False
        placed = 0
        position, positions = walk.position, walk.positions
        while placed < most and position >= 0:
            if near:
                place, is_near = self._choose_near(choices, near, shape)
            else:
                place = self._choose(choices, shape, mean_s)
            if place is None:
                break
            story = stories.get(position) if stories else None
            ref = (job_id, first + position, story.last + 1 if story else 1)
            place.used += weight
            if needs:
                place.take(shape, ref)
            if mean_s is None:
                own = place.free_refs if plain and not is_near else place.refs(shape, near=is_near, way=number)
                own.append(ref)
                if number:
                    place.note_way(ref, number)
                pool.changed(place)
            else:
                place.ahead_refs.append(ref)
            placed += 1
            position = next(positions, -1)
        walk.position = position
        walk.left -= placed
        return placed

    def _choices(self, lane: Lane | Way) -> list[Choice]:
        """Returns the heap of the places for the shape of a lane, or of one way, in this phase."""
        choices = self.choices.get(lane.shape)
        if choices is None:
            bits = self.state.fits.of(lane, self.state.hosts)
            choices = self.choices[lane.shape] = self.pool.choices(lane.shape, bits)
        return choices

    def _near(self, job: Job, shape: Shape, choices: list[Choice]) -> list[Choice]:
        """Returns the heap of the places that hold a job's data; empty if it has none that matters."""
        data = data_of(job.spec) if job.spec.inputs is not None or job.spec.function_pickle is not None else ()
        if not data:
            return []
        found = self.near.get((shape, data))
        if found is None:
            holding = [entry[5] for entry in choices if all(digest in entry[5].holds for digest in data)]
            found = self.near[shape, data] = [choice(place, shape) for place in holding]
            heapify(found)
        return found

    def _choose_near(self, choices: list[Choice], near: list[Choice], shape: Shape) -> tuple[Place | None, bool]:
        """Returns the best place with a free slot for a task, and whether that is because its data is there: wishes
        and the level of a host come before that."""
        best = self._choose(choices, shape, None)
        holder = self._choose(near, shape, None) if best is not None else None
        if holder is None or holder is best or near[0][:2] != choices[0][:2]:
            return best, False
        return holder, True

    def _choose(self, choices: list[Choice], shape: Shape, mean_s: float | None) -> Place | None:
        """Returns the best place with room for a task; `mean_s` None: a free slot only.

        Places only ever get fuller in a round, so an entry that is out of date stands too early, never too late.
        """
        weight = shape.weight
        while choices:
            entry = choices[0]
            place = entry[5]
            room = place.limit if mean_s is None else place.limit + self._ahead(place, mean_s)
            used = place.used
            # A wide task may have a host that has nothing else of ours, however busy it is.
            if (used and used + weight > room) or not self._may_take(place, shape):
                heappop(choices)
            elif used / place.limit != abs(entry[2]):
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
        if self.pool.closed >> place.number & 1 or place.limit < place.slots:
            return 0
        if place.short_slots < 0:
            place.short_slots = self._short_slots(place)
        work_s = AHEAD_S * place.short_slots
        return place.ahead if mean_s * place.ahead <= work_s else int(work_s / mean_s)

    def _short_slots(self, place: Place) -> float:
        """Returns how many slots are not held by tasks that are long, or may be."""
        means, jobs = self.mean_s, self.state.jobs
        held = [(job, count) for job, count in place.host.by_job.items() if means.get(job, AHEAD_S + 1) > AHEAD_S]
        held += [(ref[0], 1) for ref in place.placed() if means.get(ref[0], AHEAD_S + 1) > AHEAD_S]
        return max(0, place.slots - sum(count * jobs[job].shape.widest for job, count in held))
