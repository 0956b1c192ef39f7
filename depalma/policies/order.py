"""Whose turn it is among the jobs of one priority: the user who is furthest behind his share, then his oldest job.
[pure]

What is placed in a round is charged to its user at once, as far as it is known how long such tasks take, so that
users alternate within a round as they do over time.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace
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

    def room(self, lane: Lane, account: Account) -> int:
        """Returns how many more tasks of the user in the lane the limits let through."""
        if not lane.gates and not self._limits.users and not self._quotas:
            return MAX_TASKS
        room = self._limits.room_of_user(account) - self._by_user.get(account.number, 0)
        for gate in lane.gates:
            room = min(room, self._limits.room(gate) - self._by_gate.get(gate[:2], 0))
        if self._quotas:
            holders = [("user", account.name), *(gate[:2] for gate in lane.gates)]
            room = min(room, self._quotas.room(holders, lane.shape, self._by_holder))
        return room

    def tasks_before(self, rival: float, lane: Lane, account: Account, mean_s: float) -> int:
        """Returns how many tasks are the user's before it is the turn of one whose key is `rival`."""
        cost = self._cost(lane, account, mean_s)
        return max(1, ceil(min(1e9, (rival - self.key(account)) / cost)))

    def charge(self, lane: Lane, job: Job, account: Account, tasks: int, mean_s: float) -> None:
        """Notes that tasks of a job were placed."""
        number = account.number
        self._keys[number] = self.key(account) + tasks * self._cost(lane, account, mean_s)
        self._by_user[number] = self._by_user.get(number, 0) + tasks
        for holder in holders_of(job) if self._quotas else ():
            add(self._by_holder, holder, lane.shape, tasks)
        spec = job.spec
        if not (spec.tags or spec.limits or spec.group):
            return
        for key in counted(job):
            self._by_gate[key] = self._by_gate.get(key, 0) + tasks

    def _cost(self, lane: Lane, account: Account, mean_s: float) -> float:
        return lane.shape.weight * max(mean_s, _LEAST_S) * self._unit / account.weight


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


class Queue:
    """The jobs of one priority in their order, for one phase of a round. It reads no more users than get a turn."""

    def __init__(
        self, state: ClusterState, priority: int, turns: Turns, walks: dict[Line, Walk], closed: set[Shape]
    ) -> None:
        self._state = state
        self._priority = priority
        self._turns = turns
        self._walks = walks  #: of the round: what one phase has placed the next one does not place again
        self._lanes = list(state.ready.levels[priority].values())
        self._closed = closed  #: shapes of which nothing more can be placed in this phase
        self._users: list[tuple[float, int]] = []  #: heap of the users that were read, by key and number
        self._lines: dict[int, list[tuple[int, int, Walk]]] = {}  #: heap of each of them, by job
        #: heap of the next user in each lane's own order: key, number, which lane, which place there
        self._unread = [(*lane.order[0], number, 0) for number, lane in enumerate(self._lanes)]
        heapify(self._unread)

    def first(self) -> Walk | None:
        """Returns the line whose turn it is; None when there is none left."""
        users, turns = self._users, self._turns
        while True:
            # Keys only grow in a round, so one that is out of date stands too early, never too late.
            while self._unread and (not users or self._unread[0][:2] <= users[0]):
                self._read()
            if not users:
                return None
            key, number = users[0]
            walk = self._walk_of(number)
            if walk is None:
                heappop(users)
                continue
            now = turns.key(walk.account)
            if now == key:
                return walk
            heapreplace(users, (now, number))

    def rival(self) -> float:
        """Returns a key that no user but the first is before; inf if there is no other."""
        rival = min((key for key, _ in self._users[1:3]), default=inf)
        return min(rival, self._unread[0][0]) if self._unread else rival

    @property
    def is_lone(self) -> bool:
        """Returns whether the first line is the only one."""
        return not self._unread and len(self._users) == 1 and len(self._lines[self._users[0][1]]) == 1

    def _read(self) -> None:
        """Takes in the next user of a lane, with all lines of this priority."""
        _, number, place, at = self._unread[0]
        lane = self._lanes[place]
        closed = lane.shape in self._closed
        if closed or at + 1 == len(lane.order):
            heappop(self._unread)
        else:
            heapreplace(self._unread, (*lane.order[at + 1], place, at + 1))
        if closed or number in self._lines:
            return
        account = lane.lines[number].account
        lines = [line for line in self._state.ready.lines_of(account) if line.lane.priority == self._priority]
        walks = [self._walk(line) for line in lines]
        self._lines[number] = heap = [(walk.job.id, each, walk) for each, walk in enumerate(walks) if not walk.is_over]
        heapify(heap)
        heappush(self._users, (self._turns.key(account), number))

    def _walk(self, line: Line) -> Walk:
        walk = self._walks.get(line)
        if walk is None:
            walk = self._walks[line] = Walk(self._state, line)
        return walk

    def _walk_of(self, number: int) -> Walk | None:
        """Returns the line of a user that has his oldest job; None when there is none left."""
        heap = self._lines[number]
        while heap:
            job, each, walk = heap[0]
            if walk.is_over or walk.lane.shape in self._closed:
                heappop(heap)
            elif walk.job.id != job:
                heapreplace(heap, (walk.job.id, each, walk))
            else:
                return walk
        return None
