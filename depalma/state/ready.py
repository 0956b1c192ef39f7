"""The jobs that have a task which may start now, in an order of which only the beginning is ever looked at. [pure]

A *line* is the ready jobs of one user, of one priority, one shape and one set of limits, oldest first. The lines of a
user within a priority are his *stand*, by the oldest job of each; lines that differ only in the user are a *lane*.
Whoever plans looks at the highest priority, there at the first user by share, and in his stand at the first line: what
it costs does not grow with the jobs that wait, nor with users and lines that do not get a turn. When a lane cannot go
on (no host has room, a limit is reached), none of its lines can.

Derived from the jobs; `refresh` is called after every change of one.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from depalma.state.fits import Part
from depalma.state.jobs import Job
from depalma.state.limits import Gate, Limits
from depalma.state.ordered import OrderedKeys
from depalma.state.quotas import Quotas
from depalma.state.shapes import Shape
from depalma.state.shares import Account, Shares


class Line:
    """Ready jobs of one user in a lane, by id."""

    __slots__ = ("account", "head", "jobs", "lane", "stand")

    def __init__(self, lane: Lane, stand: Stand) -> None:
        self.lane = lane
        self.stand = stand
        self.account = stand.account
        self.jobs = OrderedKeys()
        self.head = 0  #: its oldest job, by which it stands in the stand; 0 = it does not yet


class Way:
    """One of several ways to run the tasks of a lane, and what `Fits` keeps of it."""

    __slots__ = ("fits", "fits_seen", "parts", "shape")
    ways: tuple[Way, ...] = ()  #: a way has none of its own

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.parts: tuple[Part, ...] | None = None
        self.fits = 0
        self.fits_seen = -1


class Lane:
    """Lines that differ only in the user."""

    __slots__ = ("fits", "fits_seen", "gates", "lines", "parts", "priority", "shape", "ways")

    def __init__(self, priority: int, shape: Shape, gates: tuple[Gate, ...]) -> None:
        self.priority = priority
        self.shape = shape
        self.gates = gates
        self.lines: dict[int, Line] = {}  #: by the number of the user's account
        self.parts: tuple[Part, ...] | None = None  #: kept by `Fits`, as the next two
        self.fits = 0
        self.fits_seen = -1
        #: of jobs with alternatives: each way to run their tasks by itself; empty = there is one
        self.ways = tuple(Way(each) for each in shape.ways) if shape.others else ()


class Stand:
    """The lines of one user in a level."""

    __slots__ = ("account", "heads", "key", "level")

    def __init__(self, level: Level, account: Account) -> None:
        self.level = level
        self.account = account
        self.key = account.key  #: by which it stands in the level
        self.heads: list[tuple[int, Line]] = []  #: each line by its oldest job, oldest first

    def put(self, line: Line, head: int) -> None:
        """Puts a line where its oldest job says; 0: it has none any more."""
        heads = self.heads
        if line.head and len(heads) == 1:
            heads.clear()
        elif line.head:
            del heads[bisect_left(heads, (line.head,))]
        line.head = head
        if head:
            insort(heads, (head, line))  # no two lines have the same job, so lines are never compared


class Level:
    """The ready jobs of one priority."""

    __slots__ = ("lanes", "order", "priority", "stands")

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.lanes: dict[tuple[Shape, tuple[Gate, ...]], Lane] = {}
        self.stands: dict[int, Stand] = {}  #: by the number of the user's account
        self.order: list[tuple[float, int]] = []  #: keys and numbers of the users, smallest first

    def stand_of(self, account: Account) -> Stand:
        """Returns the stand of a user; a new one if there is none yet."""
        stand = self.stands.get(account.number)
        if stand is None:
            stand = self.stands[account.number] = Stand(self, account)
            insort(self.order, (stand.key, account.number))
        return stand

    def drop(self, stand: Stand) -> None:
        """Lets a stand go that is empty."""
        del self.stands[stand.account.number]
        del self.order[bisect_left(self.order, (stand.key, stand.account.number))]

    def move(self, stand: Stand) -> None:
        """Puts a stand where its user's share says."""
        number, key = stand.account.number, stand.account.key
        if key == stand.key:
            return
        if len(self.order) == 1:
            self.order[0] = (key, number)
        else:
            del self.order[bisect_left(self.order, (stand.key, number))]
            insort(self.order, (key, number))
        stand.key = key

    def sort(self) -> None:
        """Makes the order anew."""
        for stand in self.stands.values():
            stand.key = stand.account.key
        self.order = sorted((stand.key, number) for number, stand in self.stands.items())


class ReadyJobs:
    """All of it. `fed_at` is replicated: since when the jobs of a priority, if there are any, got nothing."""

    def __init__(self, limits: Limits, shares: Shares, quotas: Quotas) -> None:
        self._limits = limits
        self._quotas = quotas
        self._shares = shares
        self.levels: dict[int, Level] = {}
        self.fed_at: dict[int, float] = {}
        self.jobs = 0
        self.preempting = 0  #: lanes of jobs that preempt
        self._priorities: list[int] = []  #: negated, so that the highest is first
        self._stands: dict[int, list[Stand]] = {}  #: by the number of the user's account
        self._moved: set[Account] = set()  #: users whose usage has changed since they were put in order

    def __bool__(self) -> bool:
        return bool(self.levels)

    def refresh(self, job: Job, at: float) -> None:
        """Puts the job in, or takes it out, as its tasks now ask."""
        if not job.wants_host:
            self.withdraw(job)
        elif not job.ready:
            job.ready = True
            self._put(job, at)

    def withdraw(self, job: Job) -> None:
        """Takes the job out; `refresh` puts it back, in the place that it then has."""
        if job.ready:
            job.ready = False
            self._take(job)

    def _put(self, job: Job, at: float) -> None:
        priority, gates = job.spec.priority, self._limits.gates(job, self._quotas.most)
        level = self.levels.get(priority)
        if level is None:
            level = self.levels[priority] = Level(priority)
            insort(self._priorities, -priority)
            self.fed_at.setdefault(priority, at)  # restored ones are there already
        lane = level.lanes.get((job.shape, gates))
        if lane is None:
            lane = level.lanes[job.shape, gates] = Lane(priority, job.shape, gates)
            self.preempting += job.shape.preempts
        account = self._shares.account(job.spec.user)
        line = lane.lines.get(account.number)
        if line is None:
            stand = level.stand_of(account)
            if not stand.heads:
                self._stands.setdefault(account.number, []).append(stand)
            line = lane.lines[account.number] = Line(lane, stand)
        line.jobs.add(job.id)
        if not line.head or job.id < line.head:
            line.stand.put(line, job.id)
        job.line = line
        self.jobs += 1

    def _take(self, job: Job) -> None:
        line: Line = job.line
        job.line = None
        line.jobs.remove(job.id)
        self.jobs -= 1
        if job.id == line.head:
            line.stand.put(line, line.jobs.first if line.jobs else 0)
        if line.jobs:
            return
        lane, stand, number = line.lane, line.stand, line.account.number
        level = stand.level
        del lane.lines[number]
        if not lane.lines:
            del level.lanes[lane.shape, lane.gates]
            self.preempting -= lane.shape.preempts
        if stand.heads:
            return
        level.drop(stand)
        self._stands[number].remove(stand)
        if not self._stands[number]:
            del self._stands[number]
        if not level.stands:
            del self.levels[level.priority], self.fed_at[level.priority]
            del self._priorities[bisect_left(self._priorities, -level.priority)]

    def fed(self, priority: int, at: float) -> None:
        """Notes that a task of the priority was given to a host."""
        if priority in self.fed_at:
            self.fed_at[priority] = at

    def used(self, account: Account) -> None:
        """Notes that the usage of a user has changed."""
        if account.number in self._stands:
            self._moved.add(account)

    def put_in_order(self) -> None:
        """Puts users where their shares now say: to be called before the order is looked at."""
        if self._shares.rebased:
            self._shares.rebased = False
            self._moved.clear()
            for level in self.levels.values():
                level.sort()
        for account in self._moved:
            for stand in self._stands.get(account.number, ()):
                stand.level.move(stand)
        self._moved.clear()

    def priorities(self) -> list[int]:
        """Returns the priorities of which jobs are ready, highest first."""
        return [-negated for negated in self._priorities]

    @property
    def highest(self) -> int:
        """Returns the highest priority of which jobs are ready. Errors: IndexError when there is none."""
        return -self._priorities[0]

    def starved(self, now: float, age_s: float) -> list[int]:
        """Returns the priorities of which jobs are ready and that got nothing for so long; `age_s` 0: none."""
        if not age_s:
            return []
        return sorted((each for each, at in self.fed_at.items() if now - at >= age_s), reverse=True)

    def trim(self, user: str, at: float) -> None:
        """Drops the account of a user who has nothing here and has used nothing that counts."""
        account = self._shares.accounts.get(user)
        if account is not None and account.number not in self._stands:
            self._moved.discard(account)
            self._shares.trim(user, at)

    def lines_of(self, account: Account) -> Iterator[Line]:
        """Yields the lines of a user."""
        for stand in self._stands.get(account.number, ()):
            for _, line in stand.heads:
                yield line

    def relane(self, jobs: list[Job], at: float) -> None:
        """Takes jobs out and in again: the limits that they are under have changed."""
        for job in jobs:
            if job.ready:
                fed_at = self.fed_at[job.spec.priority]
                self._take(job)
                self._put(job, at)
                self.fed_at[job.spec.priority] = fed_at
