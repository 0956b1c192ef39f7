"""Whose turn it is among the jobs of one priority: the user who is furthest behind his share, then his oldest job.
[pure]

What is placed in a round is charged to its user at once, as far as it is known how long such tasks take, so that
users alternate within a round as they do over time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heappop, heappush, heapreplace
from math import ceil, inf

from depalma.model import MAX_TASKS
from depalma.state.cluster_state import ClusterState
from depalma.state.jobs import Job
from depalma.state.limits import counted
from depalma.state.quotas import Amounts, Holder, add, holders_of
from depalma.state.ready import Lane, Line
from depalma.state.shapes import Shape
from depalma.state.shares import Account

#: What a task is taken to need that nobody knows anything about.
UNKNOWN_S = 1.0
_LEAST_S = 1e-3


class Turns:
    """What this round has placed, by user and by limit."""

    def __init__(self, state: ClusterState, now: float) -> None:
        self._shares = state.shares
        self._limits = state.limits
        self._now = now
        self._unit = state.shares.factor(now)
        self._keys: dict[int, float] = {}
        self._by_user: dict[int, int] = {}
        self._by_gate: dict[tuple[str, str], int] = {}
        self._quotas = state.quotas
        self._by_holder: dict[Holder, Amounts] = {}

    def key(self, account: Account) -> float:
        """Returns the user's place now: the smallest comes first."""
        key = self._keys.get(account.number)
        if key is None:
            key = self._keys[account.number] = self._shares.key_at(account, self._now)
        return key

    def room(self, lane: Lane, account: Account, way: Shape | None = None) -> int:
        """Returns how many more tasks of the user in the lane the limits let through: all in one way, or any."""
        if not lane.gates and not self._limits.users and not self._quotas:
            return MAX_TASKS
        room = self._limits.room_of_user(account) - self._by_user.get(account.number, 0)
        for gate in lane.gates:
            room = min(room, self._limits.room(gate) - self._by_gate.get(gate[:2], 0))
        if self._quotas:
            holders = [("user", account.name), *(gate[:2] for gate in lane.gates)]
            ways = lane.shape.ways if way is None else (way,)
            room = min(room, max(self._quotas.room(holders, each, self._by_holder) for each in ways))
        return room

    def may_have_more(self, account: Account) -> bool:
        """Returns whether the limit of the user lets another task of his through."""
        return not self._limits.users or self._limits.room_of_user(account) > self._by_user.get(account.number, 0)

    def is_shut(self, lane: Lane) -> bool:
        """Returns whether the limits and quotas that all jobs of the lane are under let none of them through now."""
        least = lane.shape.gang or 1
        if any(self._limits.room(gate) - self._by_gate.get(gate[:2], 0) < least for gate in lane.gates):
            return True
        if not lane.gates or not self._quotas:
            return False
        holders = [gate[:2] for gate in lane.gates]
        return all(self._quotas.room(holders, way, self._by_holder) < least for way in lane.shape.ways)

    def tasks_before(self, rival: float, shape: Shape, account: Account, mean_s: float) -> int:
        """Returns how many tasks are the user's before it is the turn of one whose key is `rival`."""
        cost = self._cost(shape, account, mean_s)
        return max(1, ceil(min(1e9, (rival - self.key(account)) / cost)))

    def charge(self, shape: Shape, job: Job, account: Account, tasks: int, mean_s: float) -> None:
        """Notes that tasks of a job were placed that take what the shape says."""
        number = account.number
        self._keys[number] = self.key(account) + tasks * self._cost(shape, account, mean_s)
        self._by_user[number] = self._by_user.get(number, 0) + tasks
        for holder in holders_of(job) if self._quotas else ():
            add(self._by_holder, holder, shape, tasks)
        spec = job.spec
        if not (spec.tags or spec.limits or spec.group):
            return
        for key in counted(job):
            self._by_gate[key] = self._by_gate.get(key, 0) + tasks

    def _cost(self, shape: Shape, account: Account, mean_s: float) -> float:
        return shape.weight * max(mean_s, _LEAST_S) * self._unit / account.weight


class Walk:
    """One line, from the first job that is not placed in full on."""

    __slots__ = ("account", "ids", "is_over", "job", "lane", "left", "position", "positions")

    def __init__(self, state: ClusterState, line: Line) -> None:
        self.lane = line.lane
        self.account = line.account
        self.ids = iter(line.jobs)
        self.is_over = False  #: nothing more of it in this round
        self.job: Job
        self.positions: Iterator[int]
        self.position = -1  #: the task that is next; -1 = none left of this job
        self.left = 0  #: how many tasks of the job may still be handed out
        self.next_job(state)

    def next_job(self, state: ClusterState) -> None:
        """Goes to the next job, or is over."""
        number = next(self.ids, None)
        if number is None:
            self.is_over = True
            return
        self.job = job = state.jobs[number]
        self.positions = job.queued_positions()
        self.position = next(self.positions, -1)
        limit = job.spec.max_running
        self.left = limit - len(job.running) if limit else job.queued


class _Reading:
    """How far the stand of a user was read."""

    __slots__ = ("at", "heads", "walks")

    def __init__(self, heads: list[tuple[int, Line]]) -> None:
        self.heads = heads
        self.at = 0  #: the first line that was not read
        self.walks: list[tuple[int, int, Walk]] = []  #: heap of those that were, by job


class Queue:
    """The jobs of one priority in their order, for one phase of a round. It reads no more users, and of each no more
    lines, than get a turn. `admits` says whether anything of a user in a lane may be placed now; once it does not, it
    never does again in this phase."""

    def __init__(
        self,
        state: ClusterState,
        priority: int,
        turns: Turns,
        walks: dict[Line, Walk],
        admits: Callable[[Lane, Account], bool],
    ) -> None:
        self._state = state
        self._turns = turns
        self._walks = walks  #: of the round: what one phase has placed the next one does not place again
        self._admits = admits
        self._level = state.ready.levels[priority]
        self._order = self._level.order
        self._at = 0  #: the first user who was not read
        self._users: list[tuple[float, int]] = []  #: heap of those who were, by key and number
        self._readings: dict[int, _Reading] = {}

    def first(self) -> Walk | None:
        """Returns the line whose turn it is; None when there is none left."""
        users, order, key_of = self._users, self._order, self._turns.key
        stands, may_have_more = self._level.stands, self._turns.may_have_more
        while True:
            # Keys only grow in a round, so one that is out of date stands too early, never too late.
            while self._at < len(order) and (not users or order[self._at] <= users[0]):
                number = order[self._at][1]
                self._at += 1
                self._readings[number] = _Reading(stands[number].heads)
                heappush(users, (key_of(stands[number].account), number))
            if not users:
                return None
            key, number = users[0]
            now = key_of(stands[number].account)
            if now != key:
                heapreplace(users, (now, number))
                continue
            # A user at his limit keeps nothing from others, so his jobs are not even looked at.
            walk = self._walk_of(self._readings[number]) if may_have_more(stands[number].account) else None
            if walk is not None:
                return walk
            heappop(users)

    def rival(self) -> float:
        """Returns a key that no user but the first is before; inf if there is no other."""
        rival = min((key for key, _ in self._users[1:3]), default=inf)
        return min(rival, self._order[self._at][0]) if self._at < len(self._order) else rival

    @property
    def is_lone(self) -> bool:
        """Returns whether the first line is the only one."""
        if self._at < len(self._order) or len(self._users) != 1:
            return False
        reading = self._readings[self._users[0][1]]
        return reading.at == len(reading.heads) and len(reading.walks) == 1

    def _walk_of(self, reading: _Reading) -> Walk | None:
        """Returns the line of a user that has his oldest job; None when there is none left."""
        heads, walks, admits = reading.heads, reading.walks, self._admits
        while True:
            while reading.at < len(heads) and (not walks or heads[reading.at][0] < walks[0][0]):
                line = heads[reading.at][1]
                reading.at += 1
                walk = self._walks.get(line)
                if (walk is None or not walk.is_over) and admits(line.lane, line.account):
                    if walk is None:
                        walk = self._walks[line] = Walk(self._state, line)
                    heappush(walks, (walk.job.id, reading.at, walk))
            if not walks:
                return None
            job, each, walk = walks[0]
            if walk.is_over:
                heappop(walks)
            elif walk.job.id != job:
                heapreplace(walks, (walk.job.id, each, walk))  # others may be before it now, and are asked first
            elif not admits(walk.lane, walk.account):
                heappop(walks)
            else:
                return walk
