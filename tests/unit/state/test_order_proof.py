"""The order over 10,000 jobs and three fail-overs: judged by what was started, not by what the dispatcher thinks.

After every round the judge looks at what waits: nothing that waits may have a higher priority than a task that was
just started on a host that it could have used. Each user's jobs start in the order in which they came. What the users
of one priority had in the end is in proportion to their weights.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from heapq import heappop, heappush
from random import Random

import pytest

from depalma.dispatcher import HostRoom, plan
from depalma.model import HostFacts, JobSpec, Report
from depalma.state import commands as c
from depalma.state.machine import Machine

JOBS = 10_000
WEIGHTS = {"ann": 1.0, "bob": 2.0, "eve": 3.0, "joe": 4.0}
#: Mean seconds of a task: shares are of slot seconds, not of tasks.
MEAN_S = {"ann": 4.0, "bob": 20.0, "eve": 8.0, "joe": 12.0}
HOSTS, SLOTS = 8, 5
DB_LIMIT = 4


class Cluster:
    """A machine with hosts, virtual time, tasks that last as long as chance says, and a judge."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.machine = Machine()
        self.now = 1.0e9
        self.ends: list[tuple[float, str, tuple[int, int, int]]] = []
        self.waiting: Counter[tuple[int, str, bool]] = Counter()  #: tasks by priority, group and whether they are db
        self.last_started: defaultdict[tuple[str, int, str, bool], int] = defaultdict(int)
        self.this_round: defaultdict[tuple[str, int, str, bool], int] = defaultdict(int)
        self.used_s: Counter[str] = Counter()
        self.started = self.db_live = 0
        self.groups = {f"h{number}": "g" if number % 2 else "" for number in range(HOSTS)}
        for name, group in self.groups.items():
            self.apply(c.AddHost("", name, (group,) if group else (), {}, 0, SLOTS, 0, self.now))
            self.apply(c.HostUp(name, f"{name}-1", HostFacts(SLOTS, SLOTS, 1 << 33, 0, "0", "3.11", "x"), self.now))
        self.apply(c.SetOrder("", self.now, 3600.0, 0.0))
        self.apply(c.SetLimit("", "tag", "db", DB_LIMIT, self.now))
        for user, weight in WEIGHTS.items():
            self.apply(c.SetShare("", user, weight, self.now))

    def apply(self, command):  # type: ignore[no-untyped-def]
        outcome = self.machine.apply(c.encode(command), self.machine.state.version + 1)
        assert isinstance(outcome, c.Applied), outcome
        return outcome.value

    def submit(self, user: str, priority: int = 0, group: str = "", db: bool = False) -> None:
        tags = ("db",) if db else ()
        spec = JobSpec(kind="command", argv=("x",), user=user, priority=priority, group=group, tags=tags)
        self.apply(c.SubmitJob("", spec, self.now))
        self.waiting[priority, group, db] += 1

    def fail_over(self) -> None:
        """Another replica leads: it has what snapshot and log brought it, and nothing else."""
        machine = Machine()
        machine.restore(list(self.machine.snapshot()))
        machine.state.check_invariants()
        assert list(machine.snapshot()) == list(self.machine.snapshot())
        self.machine = machine

    def turn(self) -> None:
        """Time goes on to the next end; what is free then is filled, and judged."""
        if self.ends:
            self.now = self.ends[0][0]
        while self.ends and self.ends[0][0] <= self.now:
            _, host, ref = heappop(self.ends)
            self.apply(c.FinishTasks(host, f"{host}-1", (Report(*ref, "succeeded"),), self.now))
            self.db_live -= "db" in self.machine.state.jobs[ref[0]].spec.tags
        rooms = {name: HostRoom(f"{name}-1", SLOTS) for name in self.groups}
        lowest: dict[str, int] = {}
        self.last_started.update(self.this_round)
        for command in plan(self.machine.state, rooms, {}, self.now, 1, 1000):
            outcome = self.apply(command)
            assert outcome.refused == ()
            for ref in outcome.accepted:
                self._start(command.host, ref, lowest)
        for host, priority in lowest.items():
            for (other, group, db), count in self.waiting.items():
                fits = group in ("", self.groups[host]) and not (db and self.db_live >= DB_LIMIT)
                assert not (count and fits and other > priority), f"{priority} was started on {host}, {other} waits"

    def _start(self, host: str, ref: tuple[int, int, int], lowest: dict[str, int]) -> None:
        spec = self.machine.state.jobs[ref[0]].spec
        db = "db" in spec.tags
        line = (spec.user, spec.priority, spec.group, db)
        assert self.last_started[line] < ref[0], f"{ref} of {line} after {self.last_started[line]}"
        self.this_round[line] = max(self.this_round[line], ref[0])
        self.waiting[spec.priority, spec.group, db] -= 1
        self.db_live += db
        assert self.db_live <= DB_LIMIT
        assert spec.group in ("", self.groups[host])
        lowest[host] = min(lowest.get(host, spec.priority), spec.priority)
        duration_s = self.random.expovariate(1 / MEAN_S.get(spec.user, 5.0))
        self.used_s[spec.user] += duration_s
        self.started += 1
        heappush(self.ends, (self.now + duration_s, host, ref))


@pytest.mark.long
def test_strict_priority_and_shares_over_three_fail_overs() -> None:
    """See above. Users begin in an unjust order, with tasks of different lengths, and rivals of higher priority."""
    cluster = Cluster(7)
    bulk = {user: round(8800 * weight / MEAN_S[user] / 0.9583) for user, weight in WEIGHTS.items()}
    total = sum(bulk.values())
    for user, count in bulk.items():
        for _ in range(round(count * 9000 / total)):
            cluster.submit(user)
    left = {user: round(count * 9000 / total) for user, count in bulk.items()}
    urgent = JOBS - sum(left.values())
    turns = 0
    fail_overs = 0
    while min(_waiting(cluster, user) for user in WEIGHTS):
        if urgent and cluster.random.random() < 0.12:
            cluster.submit(
                "boss",
                cluster.random.choice([1, 1, 2, 5]),
                cluster.random.choice(["", "g"]),
                cluster.random.random() < 0.3,
            )
            urgent -= 1
        cluster.turn()
        turns += 1
        if turns % 2000 == 0 and fail_overs < 3:
            cluster.fail_over()
            fail_overs += 1

    assert fail_overs == 3
    assert cluster.started > 0.8 * JOBS
    used = {user: cluster.used_s[user] / weight for user, weight in WEIGHTS.items()}
    mean = sum(used.values()) / len(used)
    assert all(abs(each / mean - 1) < 0.05 for each in used.values()), used


def _waiting(cluster: Cluster, user: str) -> int:
    """Returns how many jobs of a user wait."""
    state = cluster.machine.state
    return sum(len(line.jobs) for line in state.ready.lines_of(state.shares.account(user)))
