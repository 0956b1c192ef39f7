"""Hosts that are busy with something else get less, and never nothing."""

from __future__ import annotations

from collections import Counter

import pytest

from depalma.dispatcher import HostRoom, plan
from depalma.model import GpuLoad, Load
from depalma.policies.busy import allowed, busy_lines, foreign_share, is_gpu_busy, least
from depalma.state import commands as c


@pytest.mark.parametrize(
    ("percent", "neighbours", "share"), [(0, 0, 0.0), (75, 0, 0.75), (75, 50, 0.25), (10, 50, 0.0), (250, 0, 1.0)]
)
def test_what_is_not_ours(percent, neighbours, share):
    """As measured, less what tasks of other agents on the machine use."""
    assert foreign_share(Load(foreign_cpu_percent=percent), neighbours) == share


@pytest.mark.parametrize(
    ("slots", "share", "least_share", "expected"),
    [
        (4, 0.0, 0.0, 4), (4, 0.15, 0.0, 4), (4, 0.5, 0.0, 2), (4, 1.0, 0.0, 1), (1, 1.0, 0.0, 1),
        (4, 1.0, 1.0, 4), (4, 1.0, 0.5, 2), (100, 0.9, 0.0, 10),
    ],
)  # fmt: skip
def test_how_many_slots_are_left(slots, share, least_share, expected):
    """In proportion, only compared with the others, and always one."""
    assert allowed(slots, share, least_share) == expected
    assert least([]) == 0.0


def planned(bench, foreign: dict[str, float]) -> Counter[str]:
    rooms = {
        host.name: HostRoom(host.incarnation, host.slots, 9, foreign=foreign.get(host.name, 0.0))
        for host in bench.state.hosts.values()
    }
    given = Counter()
    for command in plan(bench.state, rooms, {}, bench.now, 1, 1000):
        given[command.host] += len(command.tasks)
    return given


def test_a_busy_host_gets_less(bench):
    """The rest of its slots stays free, and the reason says so."""
    for name in ("h1", "h2", "h3"):
        bench.host(name, slots=4)
    bench.submit(100)
    assert planned(bench, {"h1": 0.8, "h2": 0.5}) == {"h1": 1, "h2": 2, "h3": 4}
    assert planned(bench, {"h1": 0.9, "h2": 0.9, "h3": 0.9}) == {"h1": 4, "h2": 4, "h3": 4}
    rooms = {"h1": HostRoom("h1-1", 4, foreign=0.8), "h2": HostRoom("h2-1", 4)}
    reasons = {command.host: command.reason for command in plan(bench.state, rooms, {}, bench.now, 1, 9)}
    assert reasons["h1"].endswith("3 slots left to what else runs there")
    assert list(busy_lines(rooms)) == ["h1: something else uses 80% of its CPUs, so 1 of 4 slots"]


def test_idle_hosts_come_first(bench):
    """One task goes where nothing else runs."""
    bench.host("h1", slots=4)
    bench.host("h2", slots=4)
    bench.submit(3)
    assert planned(bench, {"h1": 0.6}) == {"h1": 1, "h2": 2}


def test_a_wide_task_is_not_kept_out_for_ever(bench):
    """It may have a busy host that has nothing else of ours."""
    bench.host("h1", slots=4, groups=("g",))
    bench.host("h2", slots=4)
    bench.submit(2, cpus=4, group="g")
    assert planned(bench, {"h1": 1.0}) == {"h1": 1}


@pytest.mark.parametrize(
    ("busy_percent", "used", "total", "busy"),
    [(0, 0, 0, False), (24, 100, 1000, False), (25, 0, 0, True), (0, 250, 1000, True), (0, 500, 0, False)],
)
def test_when_a_gpu_is_in_use(busy_percent, used, total, busy):
    """By its processors or its memory; a desktop's part is not enough."""
    assert is_gpu_busy(GpuLoad("A", busy_percent, used, total)) is busy


def test_a_gpu_that_something_else_uses_is_given_to_nobody(bench):
    """Tasks get the others, by number; the log keeps to what the plan said, and says when it cannot."""
    bench.host("h1", slots=4, gpus=3)
    job = bench.submit(3, gpus=1)
    rooms = {"h1": HostRoom("h1-1", 4, busy_gpus=(0,))}
    (command,) = plan(bench.state, rooms, {}, bench.now, 1, 9)
    assert bench.ok(command).refused == ()
    assert [attempt.gpus for attempt in job.running.values()] == [(1,), (2,)]
    assert plan(bench.state, rooms, {}, bench.now, 1, 9) == []
    late = c.AssignTasks(1, "h1", "h1-1", ((job.id, 2, 1),), bench.tick(), "", (0,))
    assert [word for _, word in bench.ok(late).refused] == ["no_room"]
    assert list(busy_lines(rooms)) == ["h1: something else uses GPU 0"]
    assert len(plan(bench.state, {"h1": HostRoom("h1-1", 4, busy_gpus=(1, 2))}, {}, bench.now, 1, 9)) == 1


def test_a_gang_avoids_gpus_that_something_else_uses(bench):
    """Its members are counted without them, and get others."""
    bench.host("h1", slots=4, gpus=2)
    bench.host("h2", slots=4, gpus=2)
    job = bench.submit(3, gpus=1, gang=-1)
    rooms = {"h1": HostRoom("h1-1", 4, busy_gpus=(0,)), "h2": HostRoom("h2-1", 4, busy_gpus=(1,))}
    assert plan(bench.state, rooms, {}, bench.now, 1, 9) == []
    rooms["h2"] = HostRoom("h2-1", 4)
    (command,) = plan(bench.state, rooms, {}, bench.now, 1, 9)
    assert bench.ok(command).refused == ()
    assert sorted((attempt.host, *attempt.gpus) for attempt in job.running.values()) == [
        ("h1", 1), ("h2", 0), ("h2", 1)
    ]  # fmt: skip


def test_a_wide_task_on_a_busy_host_leaves_no_slot_of_another_empty(bench):
    """It takes more slots than were counted as free; the round went on only as long as the difference was not used."""
    bench.host("h1", slots=3)
    bench.host("h2", slots=2)
    bench.submit(1, cpus=3, priority=5)
    bench.submit(2)
    rooms = {"h1": HostRoom("h1-1", 3, foreign=0.9), "h2": HostRoom("h2-1", 2)}

    commands = plan(bench.state, rooms, {}, bench.now, 1, 100)

    assert [(command.host, len(command.tasks)) for command in commands] == [("h1", 1), ("h2", 2)]


def test_a_gpu_that_is_not_given_to_us_is_none_of_ours(bench):
    """The machine has more GPUs than its host was said to have: that somebody uses another one takes nothing away."""
    bench.host("h1", slots=4, gpus=1)
    bench.submit(1, gpus=1)
    assert len(plan(bench.state, {"h1": HostRoom("h1-1", 4, busy_gpus=(1,))}, {}, bench.now, 1, 9)) == 1
    assert plan(bench.state, {"h1": HostRoom("h1-1", 4, busy_gpus=(0,))}, {}, bench.now, 1, 9) == []
