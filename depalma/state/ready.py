"""The jobs that have a task which may start now, in an order of which only the beginning is ever looked at. [pure]

A *line* is the ready jobs of one user, of one priority, one shape and one set of limits, oldest first. Lines that
differ only in the user are a *lane*, with its users in the order of their shares. Whoever plans looks at the lanes of
the highest priority, in each at the first user, and of that line at the first job: what it costs does not grow with
the jobs that wait nor with the users. When a lane cannot go on (no host has room, a limit is reached), none of its
lines can.

Derived from the jobs; `refresh` is called after every change of one.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from depalma.state.jobs import Job
from depalma.state.limits import Gate, Limits
from depalma.state.ordered import OrderedKeys
from depalma.state.quotas import Quotas
from depalma.state.shapes import Shape
from depalma.state.shares import Account, Shares


class Line:
    """Ready jobs of one user in a lane, by id."""

    __slots__ = ("account", "jobs", "key", "lane")

    def __init__(self, lane: Lane, account: Account) -> None:
        self.lane = lane
        self.account = account
        self.jobs = OrderedKeys()
        self.key = account.key  #: by which it stands in the lane


class Lane:
    """Lines that differ only in the user."""

    __slots__ = ("gates", "lines", "order", "priority", "shape")

    def __init__(self, priority: int, shape: Shape, gates: tuple[Gate, ...]) -> None:
        self.priority = priority
        self.shape = shape
        self.gates = gates
        self.lines: dict[int, Line] = {}  #: by the number of the user's account
        self.order: list[tuple[float, int]] = []  #: keys and numbers of the users, smallest first

    def put(self, line: Line) -> None:
        """Takes a new line in."""
        self.lines[line.account.number] = line
        insort(self.order, (line.key, line.account.number))

    def drop(self, line: Line) -> None:
        """Lets a line go that is empty."""
        del self.lines[line.account.number]
        del self.order[bisect_left(self.order, (line.key, line.account.number))]

    def move(self, line: Line) -> None:
        """Puts a line where its user's share says."""
        number, key = line.account.number, line.account.key
        if key == line.key:
            return
        if len(self.order) == 1:
            self.order[0] = (key, number)
        else:
            del self.order[bisect_left(self.order, (line.key, number))]
            insort(self.order, (key, number))
        line.key = key

    def sort(self) -> None:
        """Makes the order anew."""
        for line in self.lines.values():
            line.key = line.account.key
        self.order = sorted((line.key, number) for number, line in self.lines.items())


#: The lanes of one priority.
Level = dict[tuple[Shape, tuple[Gate, ...]], Lane]


class ReadyJobs:
    """All lines. `fed_at` is replicated: since when the jobs of a priority, if there are any, got nothing."""

    def __init__(self, limits: Limits, shares: Shares, quotas: Quotas) -> None:
        self._limits = limits
        self._quotas = quotas
        self._shares = shares
        self.levels: dict[int, Level] = {}
        self.fed_at: dict[int, float] = {}
        self.jobs = 0
        self._priorities: list[int] = []  #: negated, so that the highest is first
        self._lines: dict[int, list[Line]] = {}  #: by the number of the user's account
        self._moved: set[Account] = set()  #: users whose usage has changed since the lanes were put in order

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
            level = self.levels[priority] = {}
            insort(self._priorities, -priority)
            self.fed_at.setdefault(priority, at)  # restored ones are there already
        lane = level.get((job.shape, gates))
        if lane is None:
            lane = level[job.shape, gates] = Lane(priority, job.shape, gates)
        account = self._shares.account(job.spec.user)
        line = lane.lines.get(account.number)
        if line is None:
            line = Line(lane, account)
            lane.put(line)
            self._lines.setdefault(account.number, []).append(line)
        line.jobs.add(job.id)
        job.line = line
        self.jobs += 1

    def _take(self, job: Job) -> None:
        line: Line = job.line
        job.line = None
        line.jobs.remove(job.id)
        self.jobs -= 1
        if line.jobs:
            return
        lane, number = line.lane, line.account.number
        lane.drop(line)
        self._lines[number].remove(line)
        if not self._lines[number]:
            del self._lines[number]
        if not lane.lines:
            level = self.levels[lane.priority]
            del level[lane.shape, lane.gates]
            if not level:
                del self.levels[lane.priority], self.fed_at[lane.priority]
                del self._priorities[bisect_left(self._priorities, -lane.priority)]

    def fed(self, priority: int, at: float) -> None:
        """Notes that a task of the priority was given to a host."""
        if priority in self.fed_at:
            self.fed_at[priority] = at

    def used(self, account: Account) -> None:
        """Notes that the usage of a user has changed."""
        if account.number in self._lines:
            self._moved.add(account)

    def put_in_order(self) -> None:
        """Puts lines where the shares of their users now say: to be called before the order is looked at."""
        if self._shares.rebased:
            self._shares.rebased = False
            self._moved.clear()
            for level in self.levels.values():
                for lane in level.values():
                    lane.sort()
        for account in self._moved:
            for line in self._lines.get(account.number, ()):
                line.lane.move(line)
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
        if account is not None and account.number not in self._lines:
            self._moved.discard(account)
            self._shares.trim(user, at)

    def lines_of(self, account: Account) -> list[Line]:
        """Returns the lines of a user."""
        return self._lines.get(account.number, [])

    def relane(self, jobs: list[Job], at: float) -> None:
        """Takes jobs out and in again: the limits that they are under have changed."""
        for job in jobs:
            if job.ready:
                fed_at = self.fed_at[job.spec.priority]
                self._take(job)
                self._put(job, at)
                self.fed_at[job.spec.priority] = fed_at
