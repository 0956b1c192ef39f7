"""Preemption: which tasks have to make room, for whom, and for whom not."""

from __future__ import annotations

from depalma.dispatcher import HostRoom
from depalma.policies import preempt
from depalma.policies.preempt import MOST, ending_lines, preemptions
from depalma.state import commands as c
from depalma.state.explain import explain


def wanted(bench, ending=()):
    """What has to end now, by host; nothing may be left that a round could place."""
    assert bench.plan() == []
    rooms = {host.name: HostRoom(host.incarnation, host.slots) for host in bench.state.hosts.values()}
    return {(each.host, each.refs, each.reason) for each in preemptions(bench.state, rooms, set(ending))}


def test_only_who_asks_preempts(bench):
    """However high its priority."""
    bench.host("h1", slots=1)
    bench.submit(1)
    bench.dispatch()
    bench.submit(1, priority=9)
    assert wanted(bench) == set()
    bench.submit(1, priority=10, preempt=True)
    assert wanted(bench) == {("h1", ((1, 0, 1),), "preempted by job 3 of priority 10")}


def test_only_lower_priorities_that_may_run_again(bench):
    """Equals stay, and what may not be restarted."""
    bench.host("h1", slots=3)
    bench.submit(1, priority=5)
    bench.submit(1, restartable=False)
    bench.submit(1)
    bench.dispatch()
    bench.submit(3, priority=5, preempt=True)
    assert wanted(bench) == {("h1", ((3, 0, 1),), "preempted by job 4 of priority 5")}


def test_what_is_ending_is_not_asked_for_again(bench):
    """Its room is what the job waits for; when it is there the job has it, and the task is queued again."""
    bench.host("h1", slots=1)
    bench.submit(1, priority=-1, retries=0)
    bench.dispatch()
    bench.start((1, 0, 1))
    bench.submit(1, preempt=True)
    ((_, refs, reason),) = wanted(bench)
    assert wanted(bench, refs) == set()
    bench.finish(*refs, outcome="moved", error=reason)
    assert [ref for _, ref in bench.dispatch()] == [(2, 0, 1)]
    assert "attempt 1 on h1: moved: preempted by job 2 of priority 0; queued again" in explain(
        bench.state, bench.state.jobs[1], 0
    )
    bench.finish((2, 0, 1))
    assert [ref for _, ref in bench.dispatch()] == [(1, 0, 2)]


def test_the_least_is_lost(bench):
    """The lowest priority first, of equals what began last, and no more than is needed."""
    bench.host("h1", slots=2)
    bench.host("h2", slots=2)
    bench.submit(1, on_host="h1", priority=1)
    bench.dispatch()
    bench.submit(2, on_host="h2", priority=2)
    bench.dispatch()
    bench.submit(1, on_host="h1", priority=1)
    bench.dispatch()
    bench.submit(1, priority=5, preempt=True)
    assert wanted(bench) == {("h1", ((3, 0, 1),), "preempted by job 4 of priority 5")}
    bench.cancel(4)
    bench.submit(1, priority=5, cpus=2, preempt=True)
    assert wanted(bench) == {("h1", ((1, 0, 1), (3, 0, 1)), "preempted by job 5 of priority 5")}


def test_what_does_not_help_stays(bench):
    """For a GPU nobody has to end who has none."""
    bench.host("h1", slots=2, gpus=1)
    bench.submit(1, gpus=1)
    bench.dispatch()
    bench.submit(1)
    bench.dispatch()
    bench.submit(1, priority=1, gpus=1, preempt=True)
    assert wanted(bench) == {("h1", ((1, 0, 1),), "preempted by job 3 of priority 1")}


def test_nothing_is_ended_for_somebody_else(bench):
    """A job that comes first and does not preempt would take the room; one that fits no host would not."""
    bench.host("h1", slots=1)
    bench.submit(1)
    bench.dispatch()
    first = bench.submit(1, priority=9)
    bench.submit(1, priority=5, preempt=True)
    assert wanted(bench) == set()
    bench.cancel(first.id)
    bench.submit(1, priority=9, gpus=4)
    assert len(wanted(bench)) == 1


def test_limits_hold(bench):
    """A job at a limit makes no room that it could not use."""
    bench.ok(c.SetLimit("", "user", "ann", 1, bench.tick()))
    bench.host("h1", slots=3)
    bench.submit(3)
    bench.dispatch()
    bench.submit(9, priority=1, user="ann", preempt=True)
    assert len(wanted(bench)) == 1
    bench.submit(9, priority=2, max_running=1, preempt=True)
    assert sum(len(refs) for _, refs, _ in wanted(bench)) == 2


def test_it_is_bounded(bench):
    """A million waiting tasks are not looked at."""
    bench.host("h1", slots=40)
    bench.submit(40)
    bench.dispatch()
    bench.submit(1_000_000, priority=1, preempt=True)
    assert sum(len(refs) for _, refs, _ in wanted(bench)) == MOST


def test_what_is_under_way_is_said_of_both_sides(bench):
    """For whom a task was told to end, and which tasks make room for a job that waits."""
    bench.host("h1", slots=2)
    bench.host("h2", slots=2)
    victims = bench.submit(4, grace_s=30.0)
    bench.dispatch()
    other = bench.submit(1, priority=5)
    job = bench.submit(1, priority=6, preempt=True)
    ((host, (ref,), reason),) = wanted(bench)

    def lines(job, index=None):
        return list(ending_lines(bench.state, job, index, lambda name, told: reason if told == ref else ""))

    said = [f"room is made for it; told to end: task 1.{ref[1]} on {host}"]
    assert (lines(job), lines(job, 0)) == (said, said)
    assert lines(victims, ref[1]) == ["told to end within 30 s: preempted by job 3 of priority 6"]
    assert [lines(victims, index) for index in range(4) if index != ref[1]] == [[], [], []]
    assert (lines(victims), lines(other)) == ([], [])


def test_what_is_left_to_something_else_is_no_room(bench):
    """Slots and GPUs that the dispatcher does not give out, as something else uses them: room is made elsewhere."""
    bench.host("h1", slots=4, gpus=1)
    bench.host("h2", slots=1, gpus=1)
    bench.submit(1, on_host="h1")
    bench.submit(1, on_host="h2", gpus=1, priority=-1)
    bench.dispatch()
    bench.submit(1, priority=9, preempt=True)
    busy = {"h1": HostRoom("h1-1", 4, foreign=1.0), "h2": HostRoom("h2-1", 1)}
    (made,) = preemptions(bench.state, busy, set())
    assert (made.host, made.refs) == ("h2", ((2, 0, 1),))
    bench.cancel(3)

    bench.submit(1, priority=9, preempt=True, gpus=1)
    busy = {"h1": HostRoom("h1-1", 4, busy_gpus=(0,)), "h2": HostRoom("h2-1", 1)}
    (made,) = preemptions(bench.state, busy, set())
    assert (made.host, made.refs) == ("h2", ((2, 0, 1),))


def test_a_wide_task_may_have_a_busy_host(bench):
    """Once it has nothing else of ours; so all of it has to end."""
    bench.host("h1", slots=4)
    bench.host("h2", slots=1)
    bench.submit(2, on_host="h1")
    bench.dispatch()
    bench.submit(1, priority=9, preempt=True, cpus=3)
    busy = {"h1": HostRoom("h1-1", 4, foreign=1.0), "h2": HostRoom("h2-1", 1)}
    (made,) = preemptions(bench.state, busy, set())
    assert made.refs == ((1, 0, 1), (1, 1, 1))


def test_what_it_costs_is_reckoned_once_a_host(bench, monkeypatch):
    """And again where room was made, not everywhere for each task: that stopped the leader for most of a second."""
    for number in range(8):
        bench.host(f"h{number}", slots=4)
    bench.submit(32)
    bench.dispatch()
    bench.submit(12, priority=9, preempt=True)
    asked = []
    reckon = preempt._Room.victims
    monkeypatch.setattr(preempt._Room, "victims", lambda room, *of: asked.append(room) or reckon(room, *of))
    assert len(wanted(bench)) == 12
    assert len(asked) < 8 + 12
