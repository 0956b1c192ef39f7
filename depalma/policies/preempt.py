"""Which tasks have to make room for jobs that preempt. [pure]

A job preempts only if it was asked to, only tasks of lower priority, and only such as may run again elsewhere. Of the
hosts that it fits, the one is chosen where the least is lost: the lowest priority first, then what began last. What is
ended is warned, has its grace time, and goes back to the queue without using up a retry.

Looked at when a round could place nothing more. A job that does not preempt and comes first would take the room that
is made, so nothing is ended for those behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from msgspec import Struct

from depalma.model import AttemptRef
from depalma.policies.places import HostRoom, Place, places_of
from depalma.state.cluster_state import ClusterState
from depalma.state.gpus import Taken
from depalma.state.jobs import Job
from depalma.state.placement import misfit
from depalma.state.ready import Lane, Level
from depalma.state.shapes import Shape, held
from depalma.state.shares import Account
from depalma.state.ways import shape_of_attempt

#: Waiting tasks for which room is made at a time.
MOST = 32
#: Tasks that are named to people.
_NAMED = 5


#: What it costs to end an attempt: the priority first, then how long it has run.
Loss = tuple[int, float, AttemptRef]


class Preemption(Struct, frozen=True):
    """Attempts on a host that are to end, and why."""

    host: str
    refs: tuple[AttemptRef, ...]
    reason: str


def preemptions(
    state: ClusterState, hosts: Mapping[str, HostRoom], ending: Collection[AttemptRef]
) -> Iterator[Preemption]:
    """Yields what is to end now. `ending`: what was told to end already; its room is counted as free."""
    if not state.ready.preempting:
        return
    rooms = [_Room(state, place, ending) for place in places_of(state, hosts)]
    state.fits.begin(state.hosts)
    left = MOST
    for priority in state.ready.priorities():
        level = state.ready.levels[priority]
        if _is_held_up(state, level, rooms):
            return
        for lane in level.lanes.values():
            if lane.shape.preempts:
                ways = lane.shape.ways
                fitting = [(way, room) for way in ways for room in rooms if not misfit(way, room.host, room.slots)]
                for job in _wanted(state, lane, left):
                    left -= lane.shape.gang or 1
                    yield from _make_room_for_all(fitting, lane, f"{_by(job)}of priority {priority}")


def _by(job: int) -> str:
    return f"preempted by job {job} "


def ending_lines(
    state: ClusterState, job: Job, index: int | None, why_ending: Callable[[str, AttemptRef], str]
) -> Iterator[str]:
    """Yields for people what is under way: that the task was told to end, and which tasks make room for the job.

    `why_ending` is what the leader knows: why a host was told to end an attempt; empty if it was not.
    """
    if index is None and job.total == 1:
        index = job.first
    attempt = job.running.get(index) if index is not None else None
    if index is not None and attempt is not None:
        if reason := why_ending(attempt.host, (job.id, index, attempt.number)):
            yield f"told to end within {job.spec.grace_s:g} s: {reason}"
    elif job.shape.preempts and job.ready:
        places = [
            f"task {ref[0]}.{ref[1]} on {host.name}"
            for host in state.hosts.values()
            for ref in host.attempts
            if why_ending(host.name, ref).startswith(_by(job.id))
        ]
        if places:
            more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
            yield f"room is made for it; told to end: {', '.join(places[:_NAMED])}{more}"


class _Room:
    """A host as it will be when everything has ended that was told to."""

    def __init__(self, state: ClusterState, place: Place, ending: Collection[AttemptRef]) -> None:
        self.state = state
        self.host = host = place.host
        self.slots = place.slots
        self.limit = place.limit  #: the rest is left to something else; so are GPUs in `taken`
        self.used = host.used
        self.taken = dict(place.taken)
        self.left: list[AttemptRef] = []  #: what lives there and may be ended, first what costs least
        for ref in host.attempts:
            if ref in ending:
                self.give_back(ref)
            elif state.jobs[ref[0]].spec.restartable:
                self.left.append(ref)
        self.left.sort(key=self.loss)
        self._asked: tuple[Shape, int] | None = None  #: for whom `cost` was reckoned last, as things stand
        self._cost: tuple[list[Loss], list[AttemptRef]] | None = None

    def loss(self, ref: AttemptRef) -> Loss:
        """Returns what it costs to end an attempt."""
        return self.state.jobs[ref[0]].spec.priority, -self.host.attempts[ref].assigned_at, ref

    def give_back(self, ref: AttemptRef) -> None:
        """Counts what an attempt has as free."""
        shape = self.shape_of(ref)
        self.used -= shape.weight
        for name, number in held(shape.needs, self.host.attempts[ref].gpus):
            self.taken[name] -= number

    def shape_of(self, ref: AttemptRef) -> Shape:
        """Returns what an attempt takes that lives there."""
        return shape_of_attempt(self.state.jobs[ref[0]], self.host.attempts[ref])

    def take(self, shape: Shape) -> None:
        """Counts what a task will have as taken."""
        self._asked = None
        self.used += shape.weight
        for name, number in held(shape.needs, self.host.choose_gpus(shape, self.taken) or ()):
            self.taken[name] = self.taken.get(name, 0) + number

    def standing(self) -> tuple[float, Taken, list[AttemptRef]]:
        """Returns how things stand, to come back to."""
        return self.used, dict(self.taken), list(self.left)

    def stand(self, standing: tuple[float, Taken, list[AttemptRef]]) -> None:
        """Comes back to how things stood."""
        self._asked = None
        self.used, self.taken, self.left = standing

    def fits(self, shape: Shape, used: float, taken: Taken) -> bool:
        """Returns whether a task may start there beside what is used and taken."""
        # A wide task may have a host that has nothing else of ours, however busy it is.
        return (not used or used + shape.weight <= self.limit) and self.host.has_room(shape.needs, taken)

    def victims(self, shape: Shape, priority: int) -> list[AttemptRef] | None:
        """Returns what has to end for a task of the priority, as little as possible; None when that is not enough."""
        jobs, used, taken = self.state.jobs, self.used, dict(self.taken)

        def count(ref: AttemptRef, times: int) -> None:
            nonlocal used
            shape = self.shape_of(ref)
            used += times * shape.weight
            for name, number in held(shape.needs, self.host.attempts[ref].gpus):
                taken[name] += times * number

        chosen: list[AttemptRef] = []
        for ref in self.left:
            if self.fits(shape, used, taken) or jobs[ref[0]].spec.priority >= priority:
                break
            chosen.append(ref)
            count(ref, -1)
        if not self.fits(shape, used, taken):
            return None
        needed = []
        for ref in chosen:
            count(ref, 1)
            if not self.fits(shape, used, taken):  # what does not help stays
                needed.append(ref)
                count(ref, -1)
        return needed

    def cost(self, shape: Shape, priority: int) -> tuple[list[Loss], list[AttemptRef]] | None:
        """Returns what it costs to make room for a task, dearest first, and what has to end; None if nothing helps.
        Reckoned once as things stand: of a thousand hosts one is chosen for each task."""
        if self._asked != (shape, priority):
            victims = self.victims(shape, priority)
            self._cost = (sorted(map(self.loss, victims), reverse=True), victims) if victims else None
            self._asked = shape, priority
        return self._cost


def _is_held_up(state: ClusterState, level: Level, rooms: list[_Room]) -> bool:
    """Returns whether a job of the level would take any room that is made, and does not preempt."""
    return any(
        not lane.shape.preempts
        and any(not misfit(way, room.host, room.slots) for room in rooms for way in lane.shape.ways)
        for lane in level.lanes.values()
        if state.fits.of(lane, state.hosts)  # most lanes of a long queue fit no host at all
        and all(state.limits.room(gate) > 0 for gate in lane.gates)
        and any(_room_of_user(state, lane, line.account) > 0 for line in lane.lines.values())
    )


def _room_of_user(state: ClusterState, lane: Lane, account: Account) -> int:
    """Returns how many tasks his limit and all quotas that the lane is under let a user start."""
    holders = [("user", account.name), *(gate[:2] for gate in lane.gates)]
    of_quotas = max(state.quotas.room(holders, way) for way in lane.shape.ways)
    return min(state.limits.room_of_user(account), of_quotas)


def _wanted(state: ClusterState, lane: Lane, most: int) -> Iterator[int]:
    """Yields the job of each task, or gang, in the lane that limits would let start, up to so many tasks."""
    size = lane.shape.gang or 1
    room = min([max(most, size) if most > 0 else 0, *(state.limits.room(gate) for gate in lane.gates)])
    for line in lane.lines.values():
        of_user = _room_of_user(state, lane, line.account)
        for number in line.jobs:
            job = state.jobs[number]
            limit = job.spec.max_running
            tasks = min(room, of_user, limit - len(job.running) if limit else job.queued)
            if room <= 0 or of_user <= 0:
                break
            room, of_user = room - tasks, of_user - tasks
            for _ in range(tasks // size):
                yield number


def _make_room_for_all(fitting: list[tuple[Shape, _Room]], lane: Lane, reason: str) -> list[Preemption]:
    """Returns what has to end for a task of the lane; for a gang only if that is room for all of it. `fitting`: the
    ways of the lane, each with the hosts that it fits."""
    before = [room.standing() for _, room in fitting] if lane.shape.gang else []
    found: list[Preemption] = []
    for _ in range(lane.shape.gang or 1):
        made = _make_room(fitting, lane, reason)
        if made is None and lane.shape.gang:
            for (_, room), standing in zip(fitting, before, strict=True):
                room.stand(standing)
            return []
        found += [made] if made is not None and made.refs else []
    return found


def _make_room(fitting: list[tuple[Shape, _Room]], lane: Lane, reason: str) -> Preemption | None:
    """Returns what has to end for one task of the lane, nothing if there is room; None if none can be made."""
    for shape, room in fitting:
        if room.fits(shape, room.used, room.taken):
            room.take(shape)
            return Preemption(room.host.name, (), reason)
    best: tuple[list[Loss], Shape, _Room, list[AttemptRef]] | None = None
    for shape, room in fitting:
        cost = room.cost(shape, lane.priority)
        if cost is not None and (best is None or cost[0] < best[0]):
            best = cost[0], shape, room, cost[1]
    if best is None:
        return None
    _, shape, room, victims = best
    for ref in victims:
        room.give_back(ref)
        room.left.remove(ref)
    room.take(shape)
    return Preemption(room.host.name, tuple(sorted(victims)), reason)
