"""The dispatcher: order, constraints, spreading, queueing ahead; and that nothing overtakes."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depalma.dispatcher import HostRoom, plan
from depalma.model import Load
from depalma.state import commands as c
from depalma.state.placement import misfit


def jobs_of(given):
    return [ref[0] for _, ref in given]


def hosts_of(given):
    return [host for host, _ in given]


def test_nothing_to_do(bench):
    """No hosts, no jobs, no limit: no plan."""
    assert bench.plan() == []
    bench.host()
    assert bench.plan() == []
    bench.submit()
    assert bench.plan(limit=0) == []


def test_strict_priority_then_age(bench):
    """Also among tasks of other shapes."""
    bench.host(slots=4, groups=("g",))
    bench.submit(1)
    bench.submit(1, priority=5, group="g")
    bench.submit(1)
    bench.submit(1, priority=5)
    bench.submit(1, priority=-1)

    assert jobs_of(bench.dispatch()) == [2, 4, 1, 3]


def test_tasks_go_in_order_of_index(bench):
    """Those that came back first."""
    bench.host(slots=3)
    bench.submit(6, retries=1, first_index=10)
    assert [ref for _, ref in bench.dispatch()] == [(1, 10, 1), (1, 11, 1), (1, 12, 1)]
    bench.finish((1, 11, 1), outcome="failed")
    bench.finish((1, 10, 1), (1, 12, 1))

    assert [ref for _, ref in bench.dispatch()] == [(1, 11, 2), (1, 13, 1), (1, 14, 1)]


def test_an_assignment_carries_what_the_guard_needs(bench):
    """Term, incarnation, time and a reason."""
    bench.host("h1", slots=3, priority=2)
    bench.submit(2)
    (command,) = bench.plan()

    assert command == c.AssignTasks(
        1,
        "h1",
        "h1-1",
        ((1, 0, 1), (1, 1, 1)),
        bench.now,
        "3 of 3 slots were free; least full of 1 host with room, priority level 2",
    )


def test_hosts_fill_evenly(bench):
    """The least full next, by share of its slots."""
    bench.host("h1", slots=2)
    bench.host("h2", slots=4)
    bench.submit(3)
    assert sorted(hosts_of(bench.dispatch())) == ["h1", "h2", "h2"]

    bench.submit(3)
    assert sorted(hosts_of(bench.dispatch())) == ["h1", "h2", "h2"]
    bench.submit(1)
    assert bench.dispatch() == []


def test_higher_levels_fill_first(bench):
    """The host's priority level goes before evenness."""
    bench.host("h1", slots=2)
    bench.host("h2", slots=2, priority=5)
    bench.submit(3)

    assert hosts_of(bench.dispatch()) == ["h1", "h2", "h2"]
    assert bench.state.hosts["h2"].used == 2


def test_measured_load_breaks_ties(bench):
    """Of two hosts that are equally full, the one that does less gets the task."""
    for name in ("h1", "h2", "h3"):
        bench.host(name)
    bench.submit(1)
    loads = {"h1": Load(cpu_percent=90.0), "h2": Load(cpu_percent=20.0), "h3": Load(cpu_percent=50.0)}

    assert hosts_of(bench.dispatch(loads=loads)) == ["h2"]


def test_groups_and_named_hosts(bench):
    """Hard: better wait than run elsewhere."""
    bench.host("h1", slots=8, groups=("a",))
    bench.host("h2", slots=8, groups=("a", "b"))
    bench.submit(2, group="b")
    bench.submit(2, on_host="h1")
    bench.submit(2, on_host="h1", group="b")
    bench.submit(1, group="c")

    assert sorted(bench.dispatch()) == [("h1", (2, 0, 1)), ("h1", (2, 1, 1)), ("h2", (1, 0, 1)), ("h2", (1, 1, 1))]


@pytest.mark.parametrize("why", ["not connected", "other incarnation", "suspect", "lost", "unknown", "no slots"])
def test_hosts_that_get_nothing(bench, why):
    """Only those that are connected now, up, and the same as in the state."""
    bench.host()
    bench.submit()
    room = HostRoom("h1-1", 2)
    hosts = {"h1": room}
    if why == "not connected":
        hosts = {}
    elif why == "other incarnation":
        hosts = {"h1": HostRoom("h1-2", 2)}
    elif why == "suspect":
        bench.ok(c.HostSuspect("h1", "h1-1", "", bench.tick()))
    elif why == "lost":
        bench.lose()
    elif why == "unknown":
        hosts = {"h9": room}
    else:
        hosts = {"h1": HostRoom("h1-1", 0)}

    assert plan(bench.state, hosts, {}, 1.0, 1, 10) == []


def test_wide_tasks_take_several_slots(bench):
    """And wait when a host is too small."""
    bench.host("h1", slots=4)
    bench.submit(3, cpus=1.5)
    bench.submit(1, cpus=5)

    assert jobs_of(bench.dispatch()) == [1, 1]
    assert bench.state.hosts["h1"].used == 3


def test_a_wide_task_is_not_starved_by_small_ones(bench):
    """While it waits, one host is drained for it; the others go on."""
    bench.host("h1", slots=2)
    bench.host("h2", slots=2)
    bench.submit(4)
    assert len(bench.dispatch()) == 4
    wide = bench.submit(1, cpus=2, priority=1)
    bench.submit(50)
    running = [(host, ref) for host in ("h1", "h2") for ref in bench.state.hosts[host].attempts]

    for _ in range(10):
        host, ref = running.pop(0)
        bench.finish(ref, host=host)
        running += bench.dispatch()
        if wide.state() == "running":
            break
    assert wide.state() == "running"
    assert _ <= 3


def test_a_wide_task_that_fits_nowhere_blocks_nobody(bench):
    """No host is drained for what it could never take."""
    bench.host(slots=2)
    bench.submit(1, cpus=3, priority=9)
    bench.submit(2)

    assert jobs_of(bench.dispatch()) == [2, 2]


def test_a_job_limits_its_own_tasks(bench):
    """max_running counts what is on hosts, those placed in the same round included."""
    bench.host("h1", slots=4)
    bench.host("h2", slots=4)
    bench.submit(9, max_running=3)
    bench.submit(9)
    assert sorted(jobs_of(bench.dispatch())) == [1, 1, 1, 2, 2, 2, 2, 2]

    bench.finish((1, 0, 1), host=bench.state.jobs[1].running[0].host)
    assert jobs_of(bench.dispatch()) == [1]


def test_a_round_is_limited(bench):
    """The next one goes on."""
    bench.host(slots=8)
    bench.submit(8)

    assert [len(bench.dispatch(limit=3)) for _ in range(4)] == [3, 3, 2, 0]


class TestAhead:
    """Tasks that wait on a host whose slots are taken."""

    def test_only_known_short_tasks(self, bench):
        """0.25 s of work a slot, and not more than the host takes."""
        for mean_s, count in ((None, 0), (10.0, 0), (0.3, 0), (0.1, 5), (0.05, 10), (0.001, 20), (0.0, 20)):
            host = bench.host(f"host{mean_s}", slots=2)
            job = bench.submit(100, on_host=host.name)
            means = {} if mean_s is None else {job.id: mean_s}

            assert len(bench.dispatch(means, ahead=20)) == 2 + count, mean_s
            bench.cancel(job.id)

    def test_only_where_the_agent_takes_it(self, bench):
        """`ahead` 0 means none."""
        bench.host(slots=2)
        bench.submit(9)

        assert len(bench.dispatch({1: 0.001}, ahead=0)) == 2

    def test_what_waits_already_counts(self, bench):
        """The bound is of all that is there, not of one round."""
        bench.host(slots=1)
        bench.submit(99)

        assert len(bench.dispatch({1: 0.01}, ahead=5)) == 6
        assert bench.dispatch({1: 0.01}, ahead=5) == []
        bench.finish((1, 0, 1))
        assert len(bench.dispatch({1: 0.01}, ahead=5)) == 1

    def test_free_slots_everywhere_first(self, bench):
        """Two commands for a host then, each with its reason."""
        bench.host("h1", slots=1)
        bench.host("h2", slots=1)
        bench.submit(4)
        planned = bench.plan({1: 0.01}, ahead=5)

        assert [(each.host, each.tasks) for each in planned] == [
            ("h1", ((1, 0, 1),)),
            ("h1", ((1, 2, 1),)),
            ("h2", ((1, 1, 1),)),
            ("h2", ((1, 3, 1),)),
        ]
        assert planned[0].reason.startswith("1 of 1 slots were free")
        assert planned[1].reason.startswith("queued ahead: short tasks, all 1 slots taken")

    def test_nothing_overtakes_a_job_that_must_wait_for_a_slot(self, bench):
        """Short tasks behind a job of unknown length are not queued ahead of it, so it gets the next slot."""
        bench.host(slots=1)
        short = bench.submit(50)
        bench.dispatch({1: 0.01}, ahead=3)
        assert short.counts().running == 4
        urgent = bench.submit(1, priority=1)
        assert bench.dispatch({1: 0.01}, ahead=3) == []

        for index in range(4):
            bench.finish((1, index, 1))
            bench.dispatch({1: 0.01}, ahead=3)
        assert urgent.state() == "running"
        assert short.counts().running == 0

    def test_one_job_s_limit_holds_those_behind_it(self, bench):
        """A job of shorter tasks may not fill the host while an older one waits for its turn there."""
        bench.host(slots=1)
        bench.submit(50)
        bench.submit(50)

        assert jobs_of(bench.dispatch({1: 0.1, 2: 0.001}, ahead=100)) == [1, 1, 1]

    def test_nothing_waits_behind_a_long_task(self, bench):
        """A slot that a task of unknown or long duration holds serves no queue."""
        bench.host(slots=2)
        bench.submit(1, priority=1)
        bench.submit(50)

        assert jobs_of(bench.dispatch({2: 0.1}, ahead=9)) == [1, 2, 2, 2]
        bench.finish((2, 0, 1), (2, 1, 1), (2, 2, 1))
        bench.submit(1, priority=1)
        assert jobs_of(bench.dispatch({1: 9.0, 2: 0.1}, ahead=9)) == [3]
        bench.finish((1, 0, 1))
        assert jobs_of(bench.dispatch({2: 0.1}, ahead=9)) == [2, 2, 2]

    def test_other_hosts_stay_open(self, bench):
        """Only hosts that the waiting job could use are closed."""
        bench.host("h1", slots=1)
        bench.host("h2", slots=1)
        bench.submit(5, on_host="h1")
        bench.submit(5, on_host="h2")

        given = bench.dispatch({2: 0.01}, ahead=3)
        assert sorted(jobs_of(given)) == [1, 2, 2, 2, 2]


SPECS = st.fixed_dictionaries(
    {
        "count": st.integers(1, 4),
        "priority": st.integers(-1, 2),
        "group": st.sampled_from(["", "", "g", "f"]),
        "on_host": st.sampled_from(["", "", "", "h1"]),
        "max_running": st.sampled_from([0, 0, 1, 2]),
        "cpus": st.sampled_from([1.0, 1.0, 1.0, 2.0]),
    }
)


@settings(max_examples=150, derandomize=True, database=None)
@given(specs=st.lists(SPECS, max_size=12), slots=st.lists(st.integers(1, 3), min_size=1, max_size=3), data=st.data())
def test_no_lower_one_starts_while_a_higher_could(make_bench, specs, slots, data):
    """After any round: what was placed is a legal, orderly choice, and no free slot is left that a task could use."""
    bench = make_bench()
    for number, count in enumerate(slots):
        bench.host(f"h{number}", slots=count, groups=data.draw(st.sampled_from([(), ("g",), ("g", "f")])))
    for spec in specs:
        bench.submit(**spec)
    for _ in range(3):
        given = bench.dispatch()
        check_round(bench, given)
        live = [(host.name, ref) for host in bench.state.hosts.values() for ref in host.attempts]
        for host, ref in live[: data.draw(st.integers(0, 3))]:
            bench.finish(ref, host=host)


def check_round(bench, given) -> None:
    jobs, hosts = bench.state.jobs, bench.state.hosts
    for host in hosts.values():
        assert host.used <= host.slots
    last = {}
    for host, ref in given:
        job = jobs[ref[0]]
        assert misfit(job.shape, hosts[host], hosts[host].slots) == ""
        last[job.id] = max(last.get(job.id, -1), ref[1])
    for waiting in jobs.values():
        if not waiting.wants_host:
            continue
        for host in hosts.values():
            if misfit(waiting.shape, host, host.slots):
                continue
            free = host.slots - host.used
            if waiting.shape.weight == 1 and not any(wide_before(other, waiting, host) for other in jobs.values()):
                assert free == 0, f"job {waiting.id} waits, yet {host.name} has {free} free"
            assert all(not placed_later(jobs[ref[0]], waiting) for name, ref in given if name == host.name) or (
                waiting.shape.weight > 1
            )


def wide_before(other, job, host) -> bool:
    """Whether the host may be kept free for a wide task that stands before the job."""
    return (
        other.wants_host and other.shape.weight > 1 and before(other, job) and not misfit(other.shape, host, host.slots)
    )


def before(one, two) -> bool:
    return (-one.spec.priority, one.id) < (-two.spec.priority, two.id)


def placed_later(placed, waiting) -> bool:
    """Whether a task of `placed` took a slot that `waiting`, which stands before it, could have used."""
    return before(waiting, placed)


def test_cost_does_not_grow_with_the_queue(make_bench):
    """A ratio in one run: a round with 20,000 other jobs and a million tasks queued against one without."""

    def seconds(bench) -> float:
        rooms = {h.name: HostRoom(h.incarnation, 50) for h in bench.state.hosts.values()}
        best = 1e9
        for _ in range(15):
            begin = time.process_time()
            planned = plan(bench.state, rooms, {}, 1.0, 1, 200)
            best = min(best, time.process_time() - begin)
            assert sum(len(each.tasks) for each in planned) == 200
        return best

    def cluster():
        bench = make_bench()
        for number in range(4):
            bench.host(f"h{number}", slots=50)
        return bench

    small, large = cluster(), cluster()
    for bench in (small, large):
        bench.submit(100, priority=1)
        bench.submit(200)
    large.machine.apply(c.encode(c.SubmitJob("", c.JobSpec(kind="command", argv=("x",), count=1_000_000), 5.0)), 1)
    rng = random.Random(1)
    for _ in range(20_000):
        spec = c.JobSpec(kind="command", argv=("x",), priority=rng.choice([0, -1, -2]))
        large.machine.apply(c.encode(c.SubmitJob("", spec, 5.0)), 1)

    assert seconds(large) < 3 * seconds(small)
