"""Where tasks may go and where they are put: labels, counted things, GPUs, wishes, packing, and kept hosts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depalma.policies.reserve import SLACK_S
from depalma.state import commands as c
from depalma.state.constraints import broken, holds, rule_of
from depalma.state.explain import explain
from depalma.state.shapes import within

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("disk=ssd", {"disk": "ssd"}, True),
        ("disk = ssd", {"disk": "ssd"}, True),
        ("disk=ssd", {"disk": "hdd"}, False),
        ("disk=ssd", {}, False),
        ("disk=", {"disk": ""}, True),
        ("disk!=ssd", {"disk": "hdd"}, True),
        ("disk!=ssd", {}, True),
        ("disk!=ssd", {"disk": "ssd"}, False),
        ("disk in ssd, nvme", {"disk": "nvme"}, True),
        ("disk in ssd,nvme", {"disk": "hdd"}, False),
        ("disk in ssd,nvme", {}, False),
        ("disk", {"disk": ""}, True),
        ("disk exists", {"disk": "x"}, True),
        ("disk", {}, False),
        ("ram_gb>64", {"ram_gb": "128"}, True),
        ("ram_gb>64", {"ram_gb": "64"}, False),
        ("ram_gb < 64.5", {"ram_gb": "64"}, True),
        ("ram_gb>64", {"ram_gb": "much"}, False),
        ("ram_gb>64", {}, False),
    ],
)
def test_rules(text, labels, expected):
    """Each operator, with the label right, wrong and missing."""
    assert holds(rule_of(text), labels) is expected
    assert (broken((text,), labels) == "") is expected


@pytest.mark.parametrize("text", ["", "=x", "a>b", "a>nan", "a in ", "a in b,,c", "a b", "a==b", "!a"])
def test_what_is_no_rule(text, bench):
    """Refused with the field, the value and what is allowed."""
    with pytest.raises(ValueError):
        rule_of(text)
    spec = c.JobSpec(kind="command", argv=("x",), labels=(text,))
    assert bench.refused(c.SubmitJob("", spec, bench.now)).message.startswith(f"labels: {text!r} given; allowed: KEY=")


def test_labels_are_hard_and_explained(bench):
    """A task waits rather than run where a rule does not hold; the reason names the rule and the host's label."""
    bench.host("h1", labels={"disk": "hdd"})
    bench.host("h2", labels={"disk": "ssd", "ram_gb": "64"})
    bench.host("h3")
    job = bench.submit(1, labels=("disk=ssd", "ram_gb>100"))
    assert bench.dispatch() == []
    assert {
        "h1: its label is disk=hdd, the job wants disk=ssd",
        "h2: its label is ram_gb=64, the job wants ram_gb>100",
        "h3: has no label disk, the job wants disk=ssd",
    } <= set(explain(bench.state, job))

    bench.ok(c.SetHost("", "h2", bench.tick(), labels={"ram_gb": "128"}))
    assert bench.dispatch() == [("h2", (job.id, 0, 1))]


def test_memory_is_shared_out(bench):
    """Tasks that need memory are placed beside each other only as far as the host has it."""
    bench.host("h1", slots=8)
    job = bench.submit(5, memory_bytes=3 * GIB)

    assert len(bench.dispatch()) == 2
    assert f"h1: fits, but {6 * GIB} of {8 * GIB} bytes of memory are taken, a task needs {3 * GIB}" in explain(
        bench.state, job
    )
    bench.finish((1, 0, 1))
    assert len(bench.dispatch()) == 1
    assert bench.state.hosts["h1"].taken == {"memory_bytes": 6 * GIB}


def test_resources_are_counted_on_each_host(bench):
    """So many licences a host, whoever asks; what has none of them gets none of such tasks."""
    bench.host("h1", slots=8, resources={"licence": 2})
    bench.host("h2", slots=8)
    first = bench.submit(2, resources={"licence": 1})
    second = bench.submit(2, resources={"licence": 2}, priority=-1)
    third = bench.submit(1, resources={"licence": 3})

    assert bench.dispatch() == [("h1", (first.id, 0, 1)), ("h1", (first.id, 1, 1))]
    assert "h1: has 2 licence, a task needs 3" in explain(bench.state, third)
    assert "h2: has 0 licence, a task needs 2" in explain(bench.state, second)
    bench.finish((first.id, 0, 1))
    assert bench.dispatch() == []
    bench.cancel(third.id)
    bench.ok(c.SetHost("", "h1", bench.tick(), resources={"licence": 3}))
    assert bench.dispatch() == [("h1", (second.id, 0, 1))]
    bench.ok(c.SetHost("", "h1", bench.tick(), resources={"licence": 0}))
    assert bench.state.hosts["h1"].resources == {}


@pytest.mark.parametrize("resources", [{"gpus": 1}, {"a b": 1}, {"x": -1}, {f"r{n}": 1 for n in range(101)}])
def test_bad_resources(bench, resources):
    """Of a job and of a host alike."""
    bench.host()
    spec = c.JobSpec(kind="command", argv=("x",), resources=resources)
    for command in (
        c.SubmitJob("", spec, bench.now),
        c.AddHost("", "h2", (), {}, 0, 1, 0, bench.now, resources=resources),
        c.SetHost("", "h1", bench.now, resources=resources),
    ):
        assert bench.refused(command).message.startswith("resources")


def test_a_gpu_has_one_task(bench):
    """Each gets numbers of its own, the lowest that are free; a rival leader's order for more is refused."""
    bench.host("h1", slots=8, gpus=4)
    bench.submit(2, gpus=1)
    bench.submit(2, gpus=2)
    bench.dispatch()
    host = bench.state.hosts["h1"]
    given = {ref[:2]: attempt.gpus for ref, attempt in host.attempts.items()}
    assert given == {(1, 0): (0,), (1, 1): (1,), (2, 0): (2, 3)}

    assert bench.assign((2, 1, 1)).refused == (((2, 1, 1), "no_room"),)
    bench.finish((1, 0, 1))
    bench.finish((2, 0, 1))
    bench.dispatch()
    assert host.attempts[2, 1, 1].gpus == (0, 2)


def test_gpus_come_back_with_a_lost_host(bench):
    """And a snapshot in between gives the same numbers away, and no others."""
    bench.host("h1", slots=2, gpus=2)
    bench.submit(2, gpus=1)
    bench.dispatch()
    bench.check_snapshot()
    bench.lose("h1")
    assert bench.state.hosts["h1"].taken == {}
    bench.up("h1", life=2)
    bench.dispatch()
    assert sorted(attempt.gpus for attempt in bench.state.hosts["h1"].attempts.values()) == [(0,), (1,)]


def test_preferred_hosts_come_first_and_others_do(bench):
    """Before the host's level; the reason says which wishes were met."""
    bench.host("h1", slots=1, priority=5)
    bench.host("h2", slots=1, labels={"disk": "ssd"})
    bench.host("h3", slots=1, labels={"disk": "ssd", "net": "fast"})
    bench.submit(3, prefer=("disk=ssd", "net=fast"))
    planned = {command.host: (command.tasks, command.reason) for command in bench.plan()}

    assert {host: tasks for host, (tasks, _) in planned.items()} == {
        "h3": ((1, 0, 1),), "h2": ((1, 1, 1),), "h1": ((1, 2, 1),),
    }  # fmt: skip
    assert "as preferred: disk=ssd, net=fast; priority level 0" in planned["h3"][1]
    assert "nothing of what was preferred; priority level 5" in planned["h1"][1]


def test_packing_fills_one_host_after_the_other(bench):
    """And leaves whole hosts free for what needs one."""
    bench.host("h1", slots=4)
    bench.host("h2", slots=4)
    bench.submit(1, on_host="h2")
    bench.submit(4, pack=True)

    assert sorted(host for host, _ in bench.dispatch()) == ["h1", "h2", "h2", "h2", "h2"]


@pytest.mark.parametrize(("limit_s", "expected"), [(1.0, 1.0), (1.1, 2.0), (60.0, 64.0), (64.0, 64.0), (0.3, 0.5)])
def test_limits_are_rounded_up(limit_s, expected):
    """There are few different ones, and none is shorter than it was said to be."""
    assert within(limit_s) == expected


def test_parts_of_a_cpu_share_a_slot(bench):
    """As many as there is room for, to the last part; beside whole ones, and counted exactly."""
    bench.host("h1", slots=2)
    bench.submit(9, cpus=0.25)
    bench.submit(1)
    bench.submit(9, cpus=0.1, priority=-1)
    assert len(bench.dispatch()) == 8
    assert "h1: fits, but 2 of 2 slots are taken, a task needs 0.25" in explain(bench.state, bench.state.jobs[1])
    bench.finish(*[(1, task, 1) for task in range(5)])
    bench.cancel(1)
    assert [ref[0] for _, ref in bench.dispatch()] == [2, 3, 3]
    assert bench.state.hosts["h1"].used == 0.75 + 1 + 2 * 7 / 64
    bench.cancel(2, 3)
    bench.finish(*bench.state.hosts["h1"].attempts, outcome="cancelled")
    assert bench.state.hosts["h1"].used == 0


class TestKept:
    """A host that is kept for a task that needs much, and who may use it until then."""

    def test_what_leaves_enough_may_run_beside(self, bench):
        """A GPU that is taken keeps nobody off the slots that the waiting task does not need."""
        bench.host("h1", slots=4, gpus=2)
        bench.submit(1, gpus=1)
        waiting = bench.submit(1, gpus=2)
        bench.submit(9)
        bench.submit(1, gpus=1)

        given = bench.dispatch()
        assert [ref[0] for _, ref in given] == [1, 3, 3, 3]
        bench.finish((1, 0, 1))
        assert [ref[0] for _, ref in bench.dispatch()] == [waiting.id]

    def test_small_ones_do_not_starve_what_needs_two(self, bench):
        """However many of them come."""
        bench.host("h1", slots=8, gpus=2)
        bench.submit(2, gpus=1)
        bench.dispatch()
        waiting = bench.submit(1, gpus=2)
        bench.submit(20, gpus=1)
        bench.finish((1, 0, 1))
        assert bench.dispatch() == []
        bench.finish((1, 1, 1))
        assert bench.dispatch()[0][1][0] == waiting.id

    def test_parts_of_a_slot_do_not_starve_what_needs_a_whole_one(self, bench):
        """However many of them come."""
        bench.host("h1", slots=1)
        bench.submit(4, cpus=0.25)
        bench.dispatch()
        whole = bench.submit(1)
        bench.submit(99, cpus=0.25)
        for task in range(4):
            assert whole.running == {}
            bench.finish((1, task, 1))
            given = [ref[0] for _, ref in bench.dispatch()]
        assert given == [whole.id]

    def test_what_ends_before_may_run_before(self, bench):
        """A time limit that is over when the waiting task can start at the latest, and no other."""
        bench.host("h1", slots=2)
        bench.submit(1, timeout_s=1000, grace_s=0)
        bench.dispatch()
        waiting = bench.submit(1, cpus=2)
        long = bench.submit(1, timeout_s=1100, grace_s=0)
        short = bench.submit(1, timeout_s=400, grace_s=0)
        endless = bench.submit(1)

        assert [ref[0] for _, ref in bench.dispatch()] == [short.id]
        assert waiting.running == long.running == endless.running == {}

    def test_nobody_knows_when_an_endless_task_ends(self, bench):
        """So nothing may run before; a short limit is no excuse."""
        bench.host("h1", slots=2)
        bench.submit(1)
        bench.dispatch()
        bench.submit(1, cpus=2)
        bench.submit(1, timeout_s=1, grace_s=0)
        assert bench.dispatch() == []


SMALL = st.fixed_dictionaries({"timeout_s": st.integers(1, 300), "cpus": st.sampled_from([1.0, 1.0, 2.0])})


@pytest.mark.long
@settings(max_examples=40, derandomize=True, database=None)
@given(first=st.lists(SMALL, min_size=3, max_size=6), others=st.lists(SMALL, max_size=12), slots=st.integers(3, 5))
def test_backfill_never_delays_the_head(make_bench, first, others, slots):
    """When all run as long as they may, the task that needs the whole host starts exactly when it would alone."""

    def start_of_wide(small) -> float:
        bench = make_bench()
        bench.host("h1", slots=slots)
        for spec in first:
            bench.submit(1, grace_s=0, **spec)
        bench.dispatch()
        wide = bench.submit(1, cpus=slots, priority=1)
        begin = bench.now
        for spec in small:
            bench.submit(1, grace_s=0, **spec)
        bench.now = begin  # also the one that has none of them goes on from here
        while not wide.running:
            bench.now = round(bench.now + 1)
            attempts = bench.state.hosts["h1"].attempts
            over = [
                ref for ref, attempt in attempts.items()
                if bench.now - attempt.assigned_at >= bench.state.jobs[ref[0]].spec.timeout_s + SLACK_S
            ]  # fmt: skip
            for ref in over:
                now = bench.now
                bench.finish(ref)
                bench.now = now
            now = bench.now
            bench.dispatch()
            bench.now = now
            assert bench.now < begin + 2000
        return bench.now

    assert start_of_wide(others) <= start_of_wide([])
