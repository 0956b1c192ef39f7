"""Gangs in the dispatcher: never in part, never starved by what is behind them, never against the order."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depalma.policies.preempt import preemptions
from depalma.policies.reserve import SLACK_S
from depalma.state import commands as c
from depalma.state.explain import explain
from depalma.state.placement import misfit
from depalma.state.shapes import within

LONG_S = 1000.0


def jobs_of(given_tasks):
    return [ref[0] for _, ref in given_tasks]


def test_all_or_none_over_several_hosts(bench):
    """Five free slots are not enough for six; with one more they all start, neighbours in rank on one host."""
    bench.host("h1", slots=3)
    bench.host("h2", slots=3)
    bench.submit(1)
    assert len(bench.dispatch()) == 1
    gang = bench.submit(6, gang=-1)
    assert bench.dispatch() == []
    bench.finish((1, 0, 1))

    assert len(bench.dispatch()) == 6
    assert gang.gangs[0].hosts in (("h1",) * 3 + ("h2",) * 3, ("h2",) * 3 + ("h1",) * 3)


def test_several_gangs_of_a_job(bench):
    """Each for itself: as many as there is room for."""
    bench.host("h1", slots=5)
    job = bench.submit(6, gang=2, first_index=10)
    assert sorted(ref[1] for _, ref in bench.dispatch()) == [10, 11, 12, 13]
    bench.finish((job.id, 10, 1), (job.id, 11, 1))
    assert sorted(ref[1] for _, ref in bench.dispatch()) == [14, 15]


def test_constraints_and_counted_things(bench):
    """Members go only where the job may run, GPUs are counted for each."""
    bench.host("h1", slots=8, gpus=2, groups=("g",))
    bench.host("h2", slots=8, gpus=1, groups=("g",))
    bench.host("h3", slots=8, gpus=8)
    bench.submit(4, gang=-1, gpus=1, group="g")
    gang = bench.submit(3, gang=-1, gpus=1, group="g")

    assert jobs_of(bench.dispatch()) == [gang.id] * 3
    assert sorted(gang.gangs[0].hosts) == ["h1", "h1", "h2"]


def test_wishes_levels_and_packing_hold_for_gangs(bench):
    """Members are placed as single tasks are."""
    bench.host("h1", slots=4)
    bench.host("h2", slots=4, labels={"disk": "ssd"})
    bench.host("h3", slots=4, priority=5)
    spread, packed = bench.submit(2, gang=-1), bench.submit(2, gang=-1, pack=True)
    wished = bench.submit(2, gang=-1, prefer=("disk=ssd",))
    bench.dispatch()
    assert spread.gangs[0].hosts == ("h3", "h3")
    assert packed.gangs[0].hosts == ("h3", "h3")
    assert wished.gangs[0].hosts == ("h2", "h2")


def test_never_ahead_of_free_slots(bench):
    """Not behind running tasks, however short they are; and nothing behind it is put before it."""
    bench.host("h1", slots=2)
    bench.submit(2)
    assert len(bench.dispatch()) == 2
    bench.submit(2, gang=-1)
    bench.submit(9)
    short = dict.fromkeys(range(1, 4), 0.01)
    assert bench.dispatch(short, ahead=10) == []
    bench.finish((1, 0, 1))
    assert bench.dispatch(short, ahead=10) == []
    bench.finish((1, 1, 1))
    assert jobs_of(bench.dispatch(short, ahead=10))[:2] == [2, 2]


def test_a_gang_that_can_never_start_keeps_nothing(bench):
    """Neither free slots nor the queue of a host."""
    bench.host("h1", slots=2)
    bench.submit(3, gang=-1)
    bench.submit(3)
    assert jobs_of(bench.dispatch({2: 0.01}, ahead=5)) == [2, 2, 2]


def test_the_first_gang_collects_slots_and_the_second_keeps_none(bench):
    """Two gangs that both need more than half do not keep each other waiting."""
    bench.host("h1", slots=4)
    bench.submit(4)
    bench.dispatch()
    bench.submit(3, gang=-1)
    bench.submit(3, gang=-1)
    bench.submit(8)
    for task in range(2):
        bench.finish((1, task, 1))
        assert bench.dispatch() == []
    bench.finish((1, 2, 1))
    assert jobs_of(bench.dispatch()) == [2, 2, 2]
    bench.finish((1, 3, 1), *((2, task, 1) for task in range(2)))
    assert jobs_of(bench.dispatch()) == [3, 3, 3]


@pytest.mark.parametrize("first", [{"on_host": "h1"}, {"group": "g", "cpus": 2}])
def test_what_comes_before_a_gang_leaves_it_nothing_to_keep(bench, first):
    """A gang that is not the first who wants its hosts keeps no slot from anybody."""
    bench.host("h1", slots=2, groups=("g",))
    bench.host("h2", slots=2)
    bench.submit(1, on_host="h2")
    bench.submit(2, on_host="h1")
    bench.dispatch()
    before = bench.submit(1, priority=5, **first)
    bench.submit(3, gang=-1)
    small = bench.submit(5)
    assert bench.dispatch() == [("h2", (small.id, 0, 1))]
    bench.finish((small.id, 0, 1), host="h2")
    bench.cancel(before.id)
    assert bench.dispatch() == []  # now it is the first


def test_backfill_beside_a_gang(bench):
    """What has ended before the gang can start may use its slots; what has not, may not."""
    bench.host("h1", slots=2)
    bench.host("h2", slots=1)
    bench.submit(2, timeout_s=LONG_S, grace_s=0.0, on_host="h1")
    bench.dispatch()
    bench.finish((1, 0, 1))
    gang = bench.submit(3, gang=-1)
    forever, long, short = bench.submit(1), bench.submit(1, timeout_s=LONG_S), bench.submit(9, timeout_s=100.0)
    assert within(100.0 + 5.0) + SLACK_S < LONG_S
    assert jobs_of(bench.dispatch()) == [short.id] * 2
    assert forever.queued == long.queued == 1
    for index, attempt in list(short.running.items()):
        bench.finish((short.id, index, 1), host=attempt.host)
    bench.cancel(short.id)
    bench.finish((1, 1, 1))
    assert jobs_of(bench.dispatch())[:3] == [gang.id] * 3


def test_a_round_is_not_cut_in_a_gang(bench):
    """What no longer fits in a round is first in the next one, not overtaken by what is smaller."""
    bench.host("h1", slots=9)
    bench.submit(2)
    gang = bench.submit(4, gang=-1)
    bench.submit(3)
    assert jobs_of(bench.dispatch(limit=4)) == [1, 1]
    assert jobs_of(bench.dispatch(limit=4)) == [gang.id] * 4
    assert jobs_of(bench.dispatch(limit=4)) == [3, 3, 3]
    bench.finish(*((gang.id, task, 1) for task in range(4)))
    wide = bench.submit(4, gang=-1)
    assert jobs_of(bench.dispatch(limit=2)) == [wide.id] * 4  # one that is larger than a round is a round


def test_limits_count_whole_gangs(bench):
    """A limit that has room for some members has none for the gang; at a limit it keeps nothing."""
    bench.host("h1", slots=8)
    bench.ok(c.SetLimit("", "tag", "db", 5, bench.tick()))
    gangs = bench.submit(9, gang=3, tags=("db",))
    other = bench.submit(9)
    assert jobs_of(bench.dispatch()) == [gangs.id] * 3 + [other.id] * 5


def test_a_starved_priority_gets_its_gang(bench):
    """Ageing counts for gangs, too: slots are kept for one until it has started."""
    bench.host("h1", slots=2)
    bench.submit(100, priority=5)
    gang = bench.submit(2, gang=-1)
    bench.dispatch()
    bench.tick(4000)
    bench.finish((1, 0, 1))
    assert bench.dispatch() == []
    bench.finish((1, 1, 1))
    assert jobs_of(bench.dispatch()) == [gang.id] * 2


def test_shares_hold_with_gangs(bench):
    """A user's gang comes when it is his turn; the slots that it used are his."""
    bench.host("h1", slots=4)
    bench.submit(1, user="ann")
    bench.dispatch()
    bench.tick(50)
    bench.submit(2, user="ann", gang=-1)
    bench.submit(2, user="bob", gang=-1)
    assert jobs_of(bench.dispatch()) == [3, 3]
    assert bench.state.shares.accounts["bob"].slots == 2


def preempted(bench):
    rooms = {name: room_of(host) for name, host in bench.state.hosts.items()}
    return [ref for each in preemptions(bench.state, rooms, ()) for ref in each.refs]


def room_of(host):
    from depalma.dispatcher import HostRoom

    return HostRoom(host.incarnation, host.slots)


def test_a_gang_that_preempts_is_made_room_for_as_a_whole(bench):
    """Nothing is ended for it while that would not be enough."""
    bench.host("h1", slots=2)
    bench.host("h2", slots=2)
    bench.submit(3)
    keeps = bench.submit(1, restartable=False)
    bench.dispatch()
    gang = bench.submit(4, gang=-1, priority=5, preempt=True)
    assert bench.dispatch() == []
    assert preempted(bench) == []
    bench.finish((keeps.id, 0, 1), host=keeps.running[0].host)
    assert bench.dispatch() == []
    assert sorted(preempted(bench)) == [(1, 0, 1), (1, 1, 1), (1, 2, 1)]
    assert gang.queued == 4


@pytest.mark.long
@settings(max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_never_a_part_never_against_the_order_never_for_ever(make_bench, seed):
    """Random hosts, jobs and gangs, with tasks that end in random order, until all has run.

    In each round: a gang is given whole or not at all; no slot is given twice; nothing of a lower priority starts where
    a higher one could have (but for what time limits allow beside a gang, which is off here). In the end all has run.
    """
    rng = Random(seed)
    bench = make_bench()
    slots = {f"h{number}": rng.randint(1, 4) for number in range(rng.randint(1, 4))}
    for name, count in slots.items():
        bench.host(name, slots=count, groups=("g",) if rng.random() < 0.5 else ())
    total = sum(slots.values())
    jobs = []
    for _ in range(rng.randint(2, 9)):
        size = rng.randint(1, total)
        spec = {"count": size, "gang": -1} if rng.random() < 0.5 else {"count": rng.randint(1, 6)}
        group = "g" if rng.random() < 0.3 else ""
        jobs.append(
            bench.submit(priority=rng.choice([0, 0, 0, 5]), group=group, user=rng.choice(["ann", "bob"]), **spec)
        )
    live: dict[tuple[int, int, int], str] = {}
    never = [job for job in jobs if job.shape.gang > _room(bench, job, empty=True) or not _room(bench, job, empty=True)]
    for _ in range(400):
        planned = bench.dispatch(dict.fromkeys(bench.state.jobs, 0.01), ahead=0)
        live.update({ref: host for host, ref in planned})
        for job in jobs:
            if job.shape.gang:
                assert len(job.running) in (0, job.shape.gang) or any(
                    job.state_of(index) == "succeeded" for index in range(job.total)
                )
        assert all(host.used <= host.slots for host in bench.state.hosts.values())
        _judge(bench, jobs, never)
        if not live:
            break
        ref = rng.choice(sorted(live))
        bench.finish(ref, host=live.pop(ref))
    assert [job for job in jobs if not job.is_final] == never


def _room(bench, job, *, empty):
    return sum(
        int((host.slots if empty else host.slots - host.used) / job.shape.weight)
        for host in bench.state.hosts.values()
        if not misfit(job.shape, host, host.slots)
    )


def _judge(bench, jobs, never):
    """Nothing that is first of all could start now: work is never left undone for no reason."""
    waiting = [job for job in jobs if job.queued and job not in never]
    if waiting:
        highest = max(job.spec.priority for job in waiting)
        for job in waiting:
            if job.spec.priority == highest and not job.shape.gang and not any(other.shape.gang for other in waiting):
                assert not _room(bench, job, empty=False), f"{job.id} could start"
        gangs = [job for job in waiting if job.shape.gang and job.spec.priority == highest]
        if len(gangs) == len(waiting) == 1:
            assert _room(bench, gangs[0], empty=False) < gangs[0].shape.gang, f"gang {gangs[0].id} could start"


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_backfill_never_moves_the_start_of_the_first_gang_back(make_bench, seed):
    """All tasks run exactly as long as their time limits allow; the gang starts when it was said that it would."""
    rng = Random(seed)
    bench = make_bench()
    slots = [rng.randint(1, 4) for _ in range(rng.randint(1, 4))]
    for number, count in enumerate(slots):
        bench.host(f"h{number}", slots=count)
    for _ in range(rng.randint(1, sum(slots))):
        bench.submit(1, timeout_s=float(rng.randint(10, 300)), grace_s=0.0)
    ends: dict[tuple[int, int, int], tuple[float, str]] = {}

    def go(now: float) -> None:
        for ref in [ref for ref, (end, _) in ends.items() if end <= now]:
            bench.finish(ref, host=ends.pop(ref)[1])
        for host, ref in bench.dispatch():
            spec = bench.state.jobs[ref[0]].spec
            ends[ref] = (bench.now + spec.timeout_s if spec.timeout_s else bench.now + 10**6, host)

    go(bench.now)
    gang = bench.submit(rng.randint(1, sum(slots)), gang=-1)
    free = sum(slots) - len(ends)
    at = sorted(end for end, _ in ends.values())
    promised = bench.now if gang.total <= free else at[gang.total - free - 1] + SLACK_S
    while not gang.running:
        if rng.random() < 0.9:
            limit_s = rng.choice([0.0, float(rng.randint(1, 400))])
            bench.submit(rng.randint(1, 3), timeout_s=limit_s, grace_s=0.0, priority=rng.choice([0, -1]))
        now = bench.tick(rng.uniform(0.5, 20.0))
        go(now)
        assert gang.running or bench.now < promised + 21.0, explain(bench.state, gang)


@pytest.mark.parametrize("weight", [0.5, 2])
def test_parts_of_slots_and_wide_members(bench, weight):
    """Members may share a slot, or need several."""
    bench.host("h1", slots=2)
    bench.host("h2", slots=3)
    room = 10 if weight == 0.5 else 2
    bench.submit(room + 1, gang=-1, cpus=weight)
    fits = bench.submit(room, gang=-1, cpus=weight)
    assert jobs_of(bench.dispatch()) == [fits.id] * room
