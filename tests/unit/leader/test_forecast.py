"""When a job would start: by how long tasks have taken, in every basin that it needs something of."""

from __future__ import annotations

import random
import time
from math import inf

import pytest

from depalma.alternatives import Alternative
from depalma.dispatcher import HostRoom, parts, plan
from depalma.leader.trial import trial
from depalma.model import Dependency, HostFacts, JobSpec, Report
from depalma.orderviews import TrialView
from depalma.policies.basins import Basin, level
from depalma.policies.forecast import start_lines
from depalma.state import commands as c
from depalma.state.job_commands import HoldJobs
from depalma.state.machine import Machine, digest_of

FACTS = HostFacts(2, 2, 8 << 30, 0, "0.1.0", "3.11", "10.0.0.1")


class Lab:
    """Hosts of two slots on which tasks run for as long as is said."""

    def __init__(self, hosts: int = 2, **more: object) -> None:
        self.machine = Machine()
        self.now = 10.0
        self.ends: list[tuple[float, tuple[int, int, int], str]] = []
        self.lasts: dict[int, float] = {}
        self.started: dict[int, float] = {}
        self.known: dict[int, float] = {}  #: what the leader has measured
        for number in range(1, hosts + 1):
            self.do(c.AddHost("", f"h{number}", ("g",) if number == 1 else (), {}, 0, 2, 0, 1.0, **more))  # type: ignore[arg-type]
            self.do(c.HostUp(f"h{number}", f"h{number}-1", FACTS, 1.0))

    def do(self, command: c.AnyCommand) -> object:
        outcome = self.machine.apply(c.encode(command), 1)
        assert isinstance(outcome, c.Applied), outcome
        return outcome.value

    def submit(self, lasts_s: float, count: int = 1, **spec: object) -> int:
        """Submits tasks that run for so long, as nobody but the test knows."""
        spec = {"user": "ann", **spec}
        job = self.do(c.SubmitJob("", JobSpec(kind="command", argv=("x",), count=count, **spec), self.now))  # type: ignore[arg-type]
        assert isinstance(job, int)
        self.lasts[job] = lasts_s
        return job

    @property
    def rooms(self) -> dict[str, HostRoom]:
        return {name: HostRoom(f"{name}-1", 2) for name in self.machine.state.hosts}

    def pass_time(self, until: float) -> None:
        """Lets the dispatcher and the tasks work."""
        while True:
            for command in plan(self.machine.state, self.rooms, {}, self.now, 1, 100):
                self.do(command)
                for host, refs in parts(command):
                    for ref in refs:
                        self.started.setdefault(ref[0], self.now)
                        self.do(c.StartTasks(host, f"{host}-1", ((*ref, self.now),), self.now))
                        self.ends.append((self.now + self.lasts[ref[0]], ref, host))
            self.ends.sort()
            if not self.ends or self.ends[0][0] > until:
                self.now = until
                return
            self.now, ref, host = self.ends.pop(0)
            report = Report(
                *ref, "succeeded", exit_code=0, started_at=self.now - self.lasts[ref[0]], finished_at=self.now
            )
            self.do(c.FinishTasks(host, f"{host}-1", (report,), self.now))

    def trial(self, **spec: object) -> TrialView:
        spec = {"user": "ann", **spec}
        state = self.machine.state
        before = digest_of(state)
        view = trial(state, self.rooms, self.known, JobSpec(kind="command", argv=("x",), **spec), self.now)  # type: ignore[arg-type]
        assert digest_of(state) == before
        state.check_invariants()
        return view

    def begins(self, **spec: object) -> float:
        """Returns how long after now a task of the job then really starts."""
        now, job = self.now, self.submit(1.0, **spec)
        self.pass_time(now + 10_000)
        return self.started[job] - now


def test_level() -> None:
    """Work is done in what is free; what is asked for must be free besides."""

    def of(ends: list[tuple[float, float]], work: float, own: float = 1) -> float:
        basin = Basin(4, own, lambda job: 1.0, ())
        basin.ends, basin.work = [(end, taken, 0) for end, taken in ends], work
        return level(basin, 10.0)

    assert of([], 0) == 10
    assert of([], 40) == 20
    assert of([(15, 4)], 0) == 15
    assert of([(15, 2)], 10) == 15
    assert of([(15, 2)], 30) == 20
    assert of([(15, 3), (30, 1)], 0, own=2) == 15
    assert of([(15, 3), (30, 1)], 0, own=4) == 30
    assert of([(inf, 4)], 0) == inf
    assert of([(15, 1), (inf, 3)], 5) == 20 - 5 + 5
    assert of([], 0, own=5) == inf


def test_nothing_waits_before_it() -> None:
    """By how long tasks of what runs have taken."""
    lab = Lab()
    lab.submit(30.0, 8)
    lab.pass_time(50.0)  # the second four run since 40, until 70
    view = lab.trial()
    assert (view.starting, view.starts_about) == ({}, 70.0)
    assert view.forecast == "nothing that waits comes before it; by how long tasks have taken"
    assert lab.begins() == 20.0


def test_others_wait_before_it() -> None:
    """What waits is worked off in all slots of the hosts that fit."""
    lab = Lab()
    lab.submit(30.0, 24)
    lab.pass_time(50.0)  # 4 ended, 4 run, 16 wait
    view = lab.trial()
    assert view.starts_about == pytest.approx(70 + 4 * 30)
    assert view.forecast == "16 tasks that wait come before it; by how long tasks have taken"
    assert lab.trial(priority=1).starts_about == 70
    assert lab.begins() == pytest.approx(140)


def test_where_nothing_is_known() -> None:
    """Time limits stand in for what nobody has seen yet; without one it is said of which job nothing is known."""
    lab = Lab()
    job = lab.submit(500.0, 4, timeout_s=100.0)
    lab.pass_time(20.0)
    assert lab.trial().starts_about == 110.0
    other = lab.submit(500.0)
    view = lab.trial()
    assert (view.starts_about, view.starts_by) == (None, None)
    assert view.forecast == f"no task of job {other} has ended yet, and there is no time limit"
    assert lab.trial(priority=1).starts_about == 110.0
    assert job != other


def test_only_hosts_that_fit_count() -> None:
    """Neither what runs on others nor what waits for others is before it."""
    lab = Lab()
    lab.submit(30.0, 4, on_host="h1")
    lab.submit(30.0, 100, on_host="h2")
    lab.pass_time(50.0)
    lab.submit(30.0, 4, on_host="h1")
    lab.known = dict(lab.lasts)
    assert lab.trial(group="g").starts_about == pytest.approx(70 + 60)
    assert lab.begins(group="g") == 80


def test_limits_and_quotas_are_basins() -> None:
    """A job waits for them although slots are free; jobs at their limit do not take more of the slots than that."""
    lab = Lab()
    lab.do(c.SetLimit("", "tag", "one", 1, lab.now))
    lab.submit(30.0, 5, tags=("one",))
    lab.pass_time(50.0)  # the second runs until 70, then come three more
    view = lab.trial(tags=("one",))
    assert view.starts_about == pytest.approx(160.0)
    lab.submit(50.0, 30)
    lab.pass_time(120.0)  # three slots for these, the tag keeps one until 160
    about = lab.trial().starts_about
    assert about == pytest.approx(lab.now + lab.begins(), rel=0.1)


def test_wide_tasks_wait_for_a_host() -> None:
    """Two free slots on two hosts are none for a task that needs two."""
    lab = Lab()
    lab.submit(100.0, on_host="h1", timeout_s=100.0)
    lab.submit(60.0, on_host="h2", timeout_s=60.0)
    lab.pass_time(25.0)
    assert lab.trial(cpus=2.0).starts_about == 70.0
    assert lab.begins(cpus=2.0) == 45.0


def test_parts_of_two_gpus_are_none_for_a_task_that_needs_one() -> None:
    """Nor is their sum enough for a larger part; quotas count them as they are."""
    lab = Lab(hosts=1)
    lab.do(c.SetHost("", "h1", lab.now, None, None, 9, 2))
    for lasts_s in (100.0, 60.0):
        lab.submit(lasts_s, gpus=0.6, cpus=0.25, timeout_s=lasts_s)
    lab.pass_time(25.0)
    for gpus, begins in ((0.4, 25.0), (0.5, 70.0), (1, 70.0), (2, 110.0)):
        assert lab.trial(gpus=gpus, cpus=0.25).starts_about == pytest.approx(begins)
    lab.do(c.SetQuota("", "user", "ann", {"gpus": 1.25}, lab.now))
    assert lab.trial(gpus=0.1, cpus=0.25).starts_about == pytest.approx(70.0)


def test_a_job_with_alternatives_starts_when_the_first_of_them_can() -> None:
    """Whichever that is, also where what runs took another of its own."""
    lab = Lab(hosts=1)
    lab.do(c.SetHost("", "h1", lab.now, None, None, None, 1))
    lab.submit(100.0, gpus=1, timeout_s=100.0, alternatives=(Alternative(cpus=1),))
    lab.submit(60.0, gpus=1, timeout_s=60.0, alternatives=(Alternative(cpus=1),))
    lab.pass_time(25.0)  # one has the GPU until 110, the other only a slot, until 70
    assert lab.trial(gpus=1).starts_about == pytest.approx(110.0)
    assert lab.trial(gpus=1, alternatives=(Alternative(),)).starts_about == pytest.approx(70.0)
    assert lab.trial(cpus=9, alternatives=(Alternative(cpus=2),)).starts_about == pytest.approx(110.0)


def test_other_users_have_their_share_first() -> None:
    """Who has used less comes first; who has used more waits until they are even, and no longer."""
    lab = Lab()
    lab.submit(30.0, 8, user="ann")
    lab.pass_time(65.0)  # the last four of ann run until 70
    lab.submit(30.0, 400, user="bob")
    lab.known = dict(lab.lasts)
    assert lab.trial(user="cat").starts_about == 70
    about, now = lab.trial(user="ann").starts_about, lab.now
    assert about == pytest.approx(70 + 55, abs=30)  # ann has used 220 slot seconds
    assert about == pytest.approx(now + lab.begins(user="ann"), abs=30)


def test_it_waits_for_jobs() -> None:
    """And they for others."""
    lab = Lab()
    first = lab.submit(30.0, 12)
    lab.pass_time(50.0)  # 4 ended, 4 run until 70, 4 wait until 70 and end at 100
    view = lab.trial(after=(Dependency(first),))
    assert view.starts_about == pytest.approx(100.0)
    middle = lab.submit(5.0, timeout_s=5.0, after=(Dependency(first),))
    view = lab.trial(after=(Dependency(middle),))
    assert view.starts_about == pytest.approx(105.0)
    link = middle
    for _ in range(40):
        link = lab.submit(5.0, timeout_s=5.0, after=(Dependency(link),))
    assert lab.trial(after=(Dependency(link),)).starts_about is None
    opened = lab.submit(1.0, 0, open=True)
    assert lab.trial(after=(Dependency(opened),)).starts_about is None
    failed = lab.submit(1.0)
    lab.do(c.CancelJobs("", (failed,), lab.now, "ann"))
    view = lab.trial(after=(Dependency(failed),))
    assert (
        view.forecast
        == f"it would wait for job {failed} to succeed, which was cancelled, so it would be cancelled at once"
    )
    assert lab.trial(start_at=500.0).starts_about == 500.0
    assert lab.trial(hold=True).forecast == "it is held until it is released"
    assert lab.trial(group="none").forecast == "no host that is connected fits it"


def test_in_words() -> None:
    """Of a job of which nothing runs yet."""

    def lines(job: int) -> list[str]:
        state = lab.machine.state
        return list(start_lines(state, lab.rooms, lab.known, state.jobs[job], lab.now))

    lab = Lab()
    runs = lab.submit(30.0, 4)
    waits = lab.submit(30.0)
    lab.pass_time(20.0)
    assert lines(runs) == []
    assert lines(waits) == [
        f"nobody can say when it starts: no task of job {runs} has ended yet, and there is no time limit"
    ]
    lab.known = {runs: 30.0}
    assert lines(waits) == [
        "starts about 1970-01-01 00:00:40 UTC: nothing that waits comes before it; by how long tasks have taken"
    ]
    lab.do(HoldJobs("", (waits,), lab.now, ""))
    assert lines(waits) == []


def one(seed: int) -> float:
    """Returns how far off the forecast is with jobs of all kinds before it, by what the dispatcher then really does."""
    chance = random.Random(seed)
    lab = Lab(hosts=chance.randint(1, 4))
    lab.do(c.SetLimit("", "tag", "few", 2, lab.now))
    for _ in range(chance.randint(3, 12)):
        lab.submit(
            chance.uniform(5, 50), chance.randint(4, 30), tags=("few",) if chance.random() < 0.3 else (),
            group="g" if chance.random() < 0.3 else "", max_running=chance.choice((0, 0, 1, 3)),
            timeout_s=60.0, priority=chance.choice((0, 0, 1)), user=chance.choice(("ann", "bob")),
        )  # fmt: skip
    lab.pass_time(lab.now + 100)
    lab.known = dict(lab.lasts)
    spec = {"tags": ("few",) if seed % 3 == 0 else (), "group": "g" if seed % 4 == 0 else ""}
    about = lab.trial(**spec).starts_about
    assert about is not None
    return (about - lab.now + 10) / (lab.begins(**spec) + 10)


def test_it_comes_about_so() -> None:
    """An estimate: right on average, and seldom off by more than a factor of two."""
    off = sorted(one(seed) for seed in range(60))
    assert 0.8 < off[30] < 1.25
    assert sum(0.5 <= each <= 2 for each in off) >= 48


def test_a_graph_of_many_paths_is_looked_at_once() -> None:
    """Each layer waits for all of the layer before it: 4 to the 12th paths, and the leader has one loop."""
    lab = Lab()
    layer = [lab.submit(10.0, count=4)]
    lab.pass_time(lab.now + 5)
    for _ in range(12):
        layer = [lab.submit(1.0, after=tuple(Dependency(job) for job in layer)) for _ in range(4)]
    began_s = time.thread_time()
    view = lab.trial(after=tuple(Dependency(job) for job in layer))
    assert time.thread_time() - began_s < 5
    assert view.starts_about is None  # no task of these has ended yet
    assert view.forecast.startswith("no task of job")
