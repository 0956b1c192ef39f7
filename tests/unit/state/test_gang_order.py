"""Gangs beside all else that a round keeps hosts for, and who is at a limit keeps none: over many lanes and hosts."""

from __future__ import annotations

import pytest

from depalma.state import commands as c


def jobs_of(given_tasks):
    return [ref[0] for _, ref in given_tasks]


def quota(bench, kind, name, most):
    bench.ok(c.SetQuota("", kind, name, most, bench.tick()))


@pytest.mark.parametrize("holder", [("user", "ann"), ("tag", "t"), ("group", "g")])
@pytest.mark.parametrize("set_one", [True, False])
def test_what_is_at_a_quota_keeps_no_host_from_a_gang(bench, holder, set_one):
    """Its hosts are all taken, so nothing was tried there: it is asked for its quota before it counts as waiting."""
    bench.host("h1", slots=1, groups=("g",))
    bench.host("h2", slots=1, groups=("g",))
    first = bench.submit(on_host="h1", priority=9)
    bench.submit(on_host="h1", priority=5, user="ann", tags=("t",), group="g")
    bench.submit(2, gang=-1, priority=3)
    small = bench.submit(priority=1)
    if set_one:
        quota(bench, *holder, {"slots": 0.5})

    # Else a task stands before the gang at one of its two hosts, so the gang keeps neither.
    assert jobs_of(bench.dispatch()) == ([first.id] if set_one else [first.id, small.id])


def test_a_gang_at_a_limit_keeps_nothing_from_what_waits_ahead(bench):
    bench.host("h1", slots=2)
    bench.submit(2)
    bench.dispatch()
    bench.ok(c.SetLimit("", "user", "ann", 1, bench.tick()))
    bench.submit(2, gang=-1, priority=5, user="ann")
    short = bench.submit(3)
    assert jobs_of(bench.dispatch({1: 0.01, short.id: 0.01}, ahead=10)) == [short.id] * 3


def test_a_gang_that_waits_keeps_others_from_waiting_ahead(bench):
    bench.host("h1", slots=2)
    bench.submit(2)
    bench.dispatch()
    bench.submit(2, gang=-1, priority=5, user="ann")
    short = bench.submit(3)
    assert bench.dispatch({1: 0.01, short.id: 0.01}, ahead=10) == []


def test_parts_of_slots_that_a_gang_takes_count_as_such(bench):
    """Behind it a task of a whole slot waits: other parts of that slot are not given away before it."""
    bench.host("h1", slots=1)
    gang = bench.submit(3, gang=-1, cpus=0.25, priority=9)
    bench.submit(priority=5)
    bench.submit(cpus=0.25)
    assert jobs_of(bench.dispatch()) == [gang.id] * 3


def test_what_a_gang_takes_is_not_given_to_others(bench):
    """It fills hosts, and what is left is known at once: to tasks, and to the next gang."""
    bench.host("h1", slots=2)
    bench.host("h2", slots=3)
    one = bench.submit(4, gang=-1, priority=9)
    bench.submit(2, gang=-1, priority=5)
    bench.submit(3, priority=1)
    assert jobs_of(bench.dispatch()) == [one.id] * 4
    bench.finish((one.id, 0, 1), host=one.gangs[0].hosts[0])
    assert jobs_of(bench.dispatch()) == [2, 2]


def test_what_is_kept_for_a_gang_is_kept_for_nothing_else(bench):
    """A task behind it that waits for something counted there does not take over the host."""
    bench.host("h1", slots=4, gpus=1)
    taken = bench.submit(gpus=1)
    assert jobs_of(bench.dispatch()) == [taken.id]
    bench.submit(4, gang=-1, priority=5)
    bench.submit(gpus=1, priority=3)
    bench.submit(2, priority=1)
    assert bench.dispatch() == []


def test_full_hosts_count_for_whether_a_gang_can_start(bench):
    """One that can waits for them and keeps the free ones; one for which there are not enough keeps nothing."""
    bench.host("h1", slots=2)
    bench.host("h2", slots=1)
    bench.submit(2, on_host="h1")
    assert len(bench.dispatch()) == 2
    bench.submit(4, gang=-1, priority=9)
    gang = bench.submit(3, gang=-1, priority=5)
    bench.submit()
    assert bench.dispatch() == []
    bench.finish((1, 0, 1), (1, 1, 1))
    assert jobs_of(bench.dispatch()) == [gang.id] * 3


@pytest.mark.parametrize(("before", "keeps"), [({"on_host": "h2"}, False), ({"cpus": 2}, True), ({}, True)])
def test_a_gang_keeps_no_host_that_something_before_it_waits_for(bench, before, keeps):
    """A wide task waits only for hosts with so many slots."""
    bench.host("h1", slots=2)
    bench.host("h2", slots=1, groups=("g",))
    bench.submit(3)
    assert len(bench.dispatch()) == 3
    bench.host("h3", slots=1, groups=("g",))
    if before:
        bench.submit(priority=5, **before)
    bench.submit(2, gang=-1, priority=3, group="g")
    small = bench.submit(priority=1)
    assert jobs_of(bench.dispatch()) == ([] if keeps else [small.id])
