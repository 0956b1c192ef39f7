"""Whose turn it is: priorities, shares, ageing, limits; and that it holds over fail-over."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from depalma.dispatcher import HostRoom, plan
from depalma.model import MAX_TASKS
from depalma.state import commands as c
from depalma.state.explain import explain
from depalma.state.shares import Shares


def users_of(bench, given):
    return [bench.state.jobs[ref[0]].spec.user for _, ref in given]


class TestShares:
    """Users of one priority."""

    def test_users_alternate_from_the_beginning(self, bench):
        """A thousand tasks of one do not keep the first of another waiting."""
        bench.host("h1", slots=6)
        bench.submit(1000, user="ann")
        bench.submit(2, user="bob")
        bench.submit(2, user="eve")
        assert users_of(bench, bench.dispatch()) == ["ann", "bob", "eve", "ann", "bob", "eve"]

    def test_weights(self, bench):
        """Twice the weight, twice the slots."""
        bench.ok(c.SetShare("", "bob", 2.0, bench.tick()))
        bench.host("h1", slots=30)
        bench.submit(100, user="ann")
        bench.submit(100, user="bob")
        assert Counter(users_of(bench, bench.dispatch())) == {"ann": 10, "bob": 20}

    def test_long_tasks_count_while_they_run(self, bench):
        """Who has held slots for an hour waits for who has held none, though nothing of his has ended."""
        bench.host("h1", slots=4)
        bench.submit(100, user="ann")
        bench.dispatch()
        bench.tick(3600)
        bench.submit(100, user="bob")
        bench.finish((1, 0, 1), (1, 1, 1))
        assert users_of(bench, bench.dispatch({1: 3600.0, 2: 3600.0})) == ["bob", "bob"]

    def test_usage_is_forgotten(self, bench):
        """After some half-lives nobody is behind."""
        bench.ok(c.SetOrder("", bench.tick(), 60.0, 0.0))
        bench.host("h1", slots=2)
        bench.submit(2, user="ann")
        bench.dispatch()
        bench.tick(100)
        bench.finish((1, 0, 1), (1, 1, 1))
        ann = bench.state.shares.account("ann")
        used = bench.state.shares.usage_at(ann, bench.now)
        assert used == pytest.approx(2 * 100, rel=0.02)
        assert bench.state.shares.usage_at(ann, bench.now + 600) == pytest.approx(used / 1024, rel=0.05)

    def test_a_user_s_jobs_are_first_come_first_served(self, bench):
        """Whatever they ask for."""
        bench.host("h1", slots=3, groups=("g",))
        for group in ("g", "", "g", "", "g"):
            bench.submit(1, user="ann", group=group)
        assert [ref[0] for _, ref in bench.dispatch()] == [1, 2, 3]

    def test_priority_comes_first(self, bench):
        """However much its user has had."""
        bench.host("h1", slots=2)
        bench.submit(9, user="bob")
        bench.submit(9, user="ann", priority=1)
        for _ in range(4):
            given = bench.dispatch()
            assert users_of(bench, given) == ["ann"] * len(given)
            bench.tick(100)
            bench.finish(*[ref for _, ref in given])

    def test_the_arithmetic_is_exact_enough(self):
        """Usage halves each half-life; beginning the units anew changes nothing that is seen."""
        shares = Shares()
        shares.rebase(1e9, 3600.0)
        ann = shares.account("ann")
        ann.accrued_at, ann.slots = 1e9, 4
        shares.accrue(ann, 1e9 + 100)
        ann.slots = 0
        before = shares.usage_at(ann, 1e9 + 7300)
        assert before == pytest.approx(400 / 4, rel=0.05)
        shares.rebase(1e9 + 7300)
        assert shares.usage_at(ann, 1e9 + 7300) == pytest.approx(before, rel=1e-12)
        ann.slots = 1
        for day in range(1, 200):
            shares.accrue(ann, 1e9 + day * 86_400)
        assert 0 < ann.usage < 1e200
        assert shares.usage_at(ann, ann.accrued_at) < 86_400 * 1.1

    def test_users_of_long_ago_are_forgotten(self, bench):
        """With their last job, once they have used nothing that still counts; others stay."""
        bench.host("h1", slots=2)
        for user in ("ann", "bob"):
            bench.submit(1, user=user)
        bench.dispatch()
        bench.tick(100)
        bench.finish((1, 0, 1), (2, 0, 1))
        bench.ok(c.ForgetJobs((1,), bench.tick()))
        assert set(bench.state.shares.accounts) == {"ann", "bob"}
        bench.tick(30 * 86_400)
        bench.ok(c.ForgetJobs((2,), bench.tick()))
        assert set(bench.state.shares.accounts) == {"ann"}
        bench.submit(1, user="bob")
        assert set(bench.state.shares.accounts) == {"ann", "bob"}

    def test_users_who_wait_cost_nothing(self, bench):
        """A round looks at those who get a turn, not at all who have jobs."""
        bench.host("h1", slots=2)
        for number in range(50):
            bench.submit(1, user=f"u{number}")
        looked = Counter()
        account = type(bench.state.shares).key_at

        def counted(shares, account_, at):
            looked[account_.name] += 1
            return account(shares, account_, at)

        type(bench.state.shares).key_at = counted
        try:
            assert len(bench.plan()) == 1
        finally:
            type(bench.state.shares).key_at = account
        assert sum(looked.values()) <= 4


def test_cost_does_not_grow_with_the_users(make_bench):
    """A ratio in one run: a round among 5,000 users with jobs against one among 50."""

    def cluster(users: int):
        bench = make_bench()
        bench.host("h1", slots=50)
        for number in range(users * 2):
            spec = c.JobSpec(kind="command", argv=("x",), user=f"u{number % users}")
            bench.machine.apply(c.encode(c.SubmitJob("", spec, 5.0)), 1)
        return bench

    def seconds(bench) -> float:
        rooms = {"h1": HostRoom("h1-1", 50)}
        best = 1e9
        for _ in range(15):
            begin = time.process_time()
            planned = plan(bench.state, rooms, {}, 1.0, 1, 40)
            best = min(best, time.process_time() - begin)
            assert sum(len(each.tasks) for each in planned) == 40
        return best

    assert seconds(cluster(5_000)) < 3 * seconds(cluster(50))


class TestAgeing:
    """A priority that gets nothing for long."""

    def test_it_gets_one_task(self, bench):
        """And is then last again."""
        bench.host("h1", slots=1)
        bench.submit(9, priority=5)
        bench.submit(9, priority=-5)
        bench.dispatch()
        bench.tick(3700)
        bench.finish((1, 0, 1))
        assert [ref[0] for _, ref in bench.dispatch()] == [2]
        bench.finish((2, 0, 1))
        assert [ref[0] for _, ref in bench.dispatch()] == [1]

    def test_the_clock_survives_a_fail_over(self, bench):
        """It is in the snapshot; a leader that begins does not begin the wait anew."""
        bench.host("h1", slots=1)
        bench.submit(9, priority=5)
        bench.submit(9, priority=-5)
        bench.dispatch()
        bench.tick(3700)
        bench.finish((1, 0, 1))
        bench.machine.restore(list(bench.machine.snapshot()))
        assert [ref[0] for _, ref in bench.dispatch()] == [2]

    def test_it_can_be_switched_off(self, bench):
        """Then it is strict for ever."""
        bench.ok(c.SetOrder("", bench.tick(), None, 0.0))
        bench.host("h1", slots=1)
        bench.submit(9, priority=5)
        bench.submit(9, priority=-5)
        bench.tick(1e6)
        assert [ref[0] for _, ref in bench.dispatch()] == [1]


class TestLimits:
    """Semaphores of the whole cluster."""

    def test_of_a_tag(self, bench):
        """Over jobs, users and hosts; what is not tagged goes on."""
        bench.ok(c.SetLimit("", "tag", "db", 3, bench.tick()))
        bench.host("h1", slots=4)
        bench.host("h2", slots=4)
        bench.submit(2, tags=("db",), user="ann")
        bench.submit(9, tags=("x", "db"), user="bob")
        bench.submit(9, user="eve")
        given = Counter(ref[0] for _, ref in bench.dispatch())
        assert given[1] + given[2] == 3
        assert given[3] == 5
        assert "limit of tag db: 3 at once, 3 are on hosts" in explain(bench.state, bench.state.jobs[2])

    def test_a_job_brings_its_own(self, bench):
        """All that bring one, or have the tag, are counted; the lower limit holds for each."""
        bench.host("h1", slots=9)
        bench.submit(1, tags=("db",))
        bench.submit(9, limits={"db": 2})
        bench.submit(9, limits={"db": 4})
        assert Counter(ref[0] for _, ref in bench.dispatch()) == {1: 1, 2: 1, 3: 2}

    def test_of_users(self, bench):
        """One's own before everybody's."""
        bench.ok(c.SetLimit("", "user", "*", 2, bench.tick()))
        bench.ok(c.SetLimit("", "user", "bob", 4, bench.tick()))
        bench.host("h1", slots=20)
        for user in ("ann", "bob", "eve"):
            bench.submit(9, user=user)
        assert Counter(users_of(bench, bench.dispatch())) == {"ann": 2, "bob": 4, "eve": 2}
        assert "limit of each user (*): 2 at once, 2 are on hosts" in explain(bench.state, bench.state.jobs[1])
        assert "limit of user bob: 4 at once, 4 are on hosts" in explain(bench.state, bench.state.jobs[2])

    def test_of_a_group(self, bench):
        """What asks for it."""
        bench.ok(c.SetLimit("", "group", "g", 1, bench.tick()))
        bench.host("h1", slots=4, groups=("g",))
        bench.submit(3, group="g")
        bench.submit(2)
        assert Counter(ref[0] for _, ref in bench.dispatch()) == {1: 1, 2: 2}

    def test_a_job_at_its_limit_keeps_nothing(self, bench):
        """Hosts that it could use are open for others, also for several slots."""
        bench.ok(c.SetLimit("", "tag", "db", 1, bench.tick()))
        bench.host("h1", slots=4)
        bench.submit(9, cpus=2, tags=("db",), priority=5)
        bench.submit(9)
        assert Counter(ref[0] for _, ref in bench.dispatch()) == {1: 1, 2: 2}

    def test_it_is_held_by_the_log(self, bench):
        """An order that two leaders both think right is refused where it is applied, also after a restore."""
        bench.ok(c.SetLimit("", "tag", "db", 1, bench.tick()))
        bench.host("h1", slots=4)
        bench.submit(1, tags=("db",))
        bench.submit(1, tags=("db",))
        both = c.AssignTasks(1, "h1", "h1-1", ((1, 0, 1), (2, 0, 1)), bench.tick())
        outcome = bench.ok(both)
        assert (outcome.accepted, outcome.refused) == (((1, 0, 1),), (((2, 0, 1), "job_limit"),))
        bench.check_snapshot()
        assert bench.twin.state.limits.tasks == {("tag", "db"): 1}
        assert bench.assign((2, 0, 1)).refused == (((2, 0, 1), "job_limit"),)
        bench.finish((1, 0, 1))
        assert bench.assign((2, 0, 1)).accepted == ((2, 0, 1),)

    def test_set_and_removed_while_jobs_wait(self, bench):
        """What is there stays, what waits obeys."""
        bench.host("h1", slots=3)
        bench.submit(9, tags=("db",))
        bench.dispatch()
        bench.ok(c.SetLimit("", "tag", "db", 2, bench.tick()))
        bench.finish((1, 0, 1))
        assert bench.dispatch() == []
        bench.ok(c.SetLimit("", "tag", "db", None, bench.tick()))
        assert len(bench.dispatch()) == 1

    @pytest.mark.parametrize(
        ("kind", "name", "limit", "words"),
        [
            ("host", "x", 1, "kind: 'host' given; allowed: tag, user, group"),
            ("tag", "", 1, "name: '' given; allowed: 1 to 200 printable"),
            ("tag", "x", -1, f"limit: -1 given; allowed: 0 to {MAX_TASKS}"),
            ("tag", "x", None, "there is no limit of tag x"),
        ],
    )
    def test_refusals(self, bench, kind, name, limit, words):
        """By field, value and what is allowed."""
        assert words in bench.refused(c.SetLimit("", kind, name, limit, bench.now)).message

    def test_repeated_requests_change_nothing(self, bench):
        """As with every command that carries an id."""
        bench.ok(c.SetLimit("r1", "tag", "x", 1, bench.now))
        bench.ok(c.SetLimit("r1", "tag", "x", 9, bench.now))
        bench.ok(c.SetShare("r1", "ann", 2.0, bench.now))
        bench.ok(c.SetShare("r1", "ann", 9.0, bench.now))
        bench.ok(c.SetOrder("r1", bench.now, 600.0, 5.0))
        bench.ok(c.SetOrder("r1", bench.now, 900.0, 9.0))
        state = bench.state
        assert (state.limits.tags, state.shares.account("ann").weight) == ({"x": 1}, 2.0)
        assert (state.shares.half_life_s, state.age_s) == (600.0, 5.0)
        assert bench.refused(c.SetShare("", "ann", 0.0, bench.now)).message.startswith("weight: 0.0 given")
        assert bench.refused(c.SetOrder("", bench.now, 1.0)).message.startswith("half_life_s: 1.0 given")
        assert bench.refused(c.SetOrder("", bench.now, None, 0.5)).message.startswith("age_s: 0.5 given")


def test_a_user_at_his_limit_keeps_no_host_from_others(bench):
    """Not even for a task of several slots, when all slots are taken and his job comes first."""
    bench.host("h1", slots=2, groups=("g",))
    bench.host("h2", slots=1)
    bench.host("h3", slots=1)
    bench.ok(c.SetLimit("", "user", "ann", 1, bench.tick()))
    bench.submit(1, user="ann", on_host="h2")
    bench.dispatch()
    before = bench.submit(2, user="bob", group="g", priority=5)
    bench.submit(1, user="ann", group="g", priority=1, cpus=2)
    short = bench.submit(1, user="cay", group="g")

    planned = bench.plan({before.id: 0.01, short.id: 0.01}, ahead=10, hosts=["h1", "h3"])

    assert [(command.host, [ref[0] for ref in command.tasks]) for command in planned] == [
        ("h1", [before.id, before.id]),
        ("h1", [short.id]),
    ]


def test_a_clock_that_was_ahead_does_not_make_usage_infinite(bench):
    """Units begin anew where the clock was furthest; it found a half-life of a minute and a day too many."""
    bench.host()
    bench.ok(c.SetOrder("", bench.tick(), 60.0))
    bench.submit(1, user="ann")
    bench.assign((1, 0, 1))
    now = bench.now
    bench.now += 30 * 86_400.0
    bench.finish((1, 0, 1))
    bench.ok(c.SetOrder("", bench.tick(), 61.0))
    bench.now = now
    bench.ok(c.SetOrder("", bench.tick(), 60.0))

    assert bench.state.shares.accounts["ann"].usage < 1e12
