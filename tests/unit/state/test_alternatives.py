"""Jobs with alternatives: each task runs in the first way that has room now, and counts as what it took."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depalma.accounting import grouped
from depalma.alternatives import Alternative, spec_as
from depalma.dispatcher import HostRoom
from depalma.jobarchive import record as records
from depalma.jobarchive.usage import host_uses, job_use
from depalma.model import JobSpec
from depalma.policies.preempt import preemptions
from depalma.policies.reserve import SLACK_S
from depalma.state import commands as c
from depalma.state.explain import explain
from depalma.state.job_commands import SetJobs
from depalma.state.placement import misfit, tasks_beside
from depalma.state.views import task_view
from depalma.state.why import needs_line
from tests.unit.state.test_state_archived import archived, result_of


def ways_of(job):
    return [attempt.alternative for _, attempt in sorted(job.running.items())]


def test_the_first_that_fits_somewhere(bench):
    """In order of preference, over all hosts; what ends gives back exactly what it had."""
    gpu, wide = bench.host("h1", slots=4, gpus=1), bench.host("h2", slots=8)
    job = bench.submit(5, gpus=1, cpus=2, alternatives=(Alternative(cpus=4),))
    assert sorted(bench.dispatch()) == [
        ("h1", (1, 0, 1)), ("h2", (1, 1, 1)), ("h2", (1, 2, 1)),
    ]  # fmt: skip
    assert ways_of(job) == [0, 1, 1]
    assert (gpu.used, gpu.taken, wide.used, wide.taken) == (2, {"gpus": 100, 0: 100}, 8, {})
    assert bench.state.shares.accounts[""].slots == 10
    view = task_view(bench.state, job, 1)
    assert (view.alternative, view.gpus) == (1, ())
    assert "; as alternative 1; " in view.reason
    bench.finish((1, 1, 1), host="h2")
    bench.finish((1, 0, 1))
    assert (gpu.used, gpu.taken, wide.used) == (0, {}, 4)
    assert task_view(bench.state, job, 1).alternative == 1
    assert len(bench.dispatch()) == 2
    assert ways_of(job) == [1, 0, 1]


def test_what_is_not_named_is_not_inherited():
    """An alternative is all that a task needs then."""
    spec = JobSpec(
        kind="command", argv=("x",), cpus=4, gpus=2, memory_bytes=9, resources={"a": 1},
        alternatives=(Alternative(cpus=16), Alternative(gpus=0.5)),
    )  # fmt: skip
    first, second = (spec_as(spec, number) for number in (1, 2))
    assert (first.cpus, first.gpus, first.memory_bytes, first.resources, first.alternatives) == (16, 0, 0, None, ())
    assert (second.cpus, second.gpus) == (1, 0.5)
    assert spec_as(spec, 0) is spec


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"alternatives": (Alternative(), Alternative(cpus=0))},
            "alternatives.1.cpus: 0.0 given; allowed: above 0",
        ),
        ({"alternatives": (Alternative(gpus=1.5),)}, "alternatives.0.gpus: 1.5 given; allowed: a whole number"),
        ({"alternatives": (Alternative(memory_bytes=-1),)}, "alternatives.0.memory_bytes: -1 given; allowed: 0 to"),
        ({"alternatives": (Alternative(resources={"gpus": 1}),)}, "alternatives.0.resources: 'gpus' given; allowed: "),
        ({"alternatives": (Alternative(),) * 9}, "alternatives: '9 alternatives' given; allowed: at most 8"),
        (
            {"alternatives": (Alternative(),), "gang": -1},
            "alternatives: '1 alternatives' given; allowed: none in a gang",
        ),
    ],
)
def test_refused(bench, fields, words):
    """By the alternative's place and its field."""
    spec = JobSpec(kind="command", argv=("x",), **fields)
    assert bench.refused(c.SubmitJob("", spec, bench.now)).message.startswith(words)


def test_explained_way_by_way(bench):
    """Why each does not start on each host; what runs says as what."""
    bench.host("h1", slots=4, gpus=1)
    job = bench.submit(3, gpus=1, alternatives=(Alternative(cpus=3),))
    bench.dispatch()
    full = "h1: fits, but 1 of 1 GPU are taken, a task needs 1"
    assert f"{full}; alternative 1: fits, but 4 of 4 slots are taken, a task needs 3" in explain(bench.state, job)
    assert needs_line(job) == "needs: (1 slot, 1 GPU) or (3 slots)"
    assert "runs as its job says first: 1 slot, 1 GPU" in explain(bench.state, job, 0)
    assert "runs as alternative 1: 3 slots" in explain(bench.state, job, 1)
    assert "h1: has 4 slots, a task needs 9; alternative 1: has 0 tape, a task needs 1" in explain(
        bench.state, bench.submit(1, cpus=9, alternatives=(Alternative(resources={"tape": 1}),))
    )


def test_quotas_count_what_was_taken(bench):
    """A way that a quota does not let through is passed over; tags and restarts count the same."""
    bench.host("h1", slots=9, gpus=9)
    bench.ok(c.SetQuota("", "tag", "t", {"gpus": 1, "slots": 7}, bench.tick()))
    job = bench.submit(5, gpus=0.5, tags=("t",), alternatives=(Alternative(cpus=2),))
    assert len(bench.dispatch()) == 4
    assert ways_of(job) == [0, 0, 1, 1]
    assert bench.state.quotas.used["tag", "t"] == {"gpus": 100, "slots": 6}
    assert "quota of tag t: at most 7 slots at once, 6 are in use, a task needs 1" not in explain(bench.state, job)
    bench.check_snapshot()
    bench.ok(SetJobs("", (job.id,), bench.tick(), tags=("u",)))
    assert bench.state.quotas.used == {("user", ""): {"gpus": 100, "slots": 6}, ("tag", "u"): {"gpus": 100, "slots": 6}}


def test_a_way_that_is_not_there_is_refused(bench):
    """Also one of a job without alternatives."""
    bench.host("h1", slots=9)
    bench.submit(1, alternatives=(Alternative(),))
    bench.submit(1)
    for ref, way in (((1, 0, 1), 2), ((1, 0, 1), -1), ((2, 0, 1), 1)):
        command = c.AssignTasks(1, "h1", "h1-1", (ref,), bench.tick(), "", alternative=way)
        assert bench.ok(command).refused == ((ref, "unknown_alternative"),)


def test_room_is_made_for_the_way_that_costs_least(bench):
    """And none if there is room for any."""
    bench.host("h1", slots=2, gpus=1)
    bench.host("h2", slots=2)
    bench.submit(1, gpus=1, cpus=2, priority=1)
    bench.submit(1, cpus=2)
    bench.dispatch()
    rooms = {host.name: HostRoom(host.incarnation, host.slots) for host in bench.state.hosts.values()}
    job = bench.submit(1, gpus=1, priority=5, preempt=True, alternatives=(Alternative(cpus=2),))
    assert [each.refs for each in preemptions(bench.state, rooms, ())] == [((2, 0, 1),)]
    bench.finish((2, 0, 1), host="h2")
    assert list(preemptions(bench.state, rooms, ())) == []
    bench.dispatch()
    assert ways_of(job) == [1]


def test_a_quota_of_one_user_keeps_nothing_from_others(bench):
    """Who may have no GPU and finds no slots waits; who may have one goes on, also with a job like his."""
    bench.host("h1", slots=4)
    bench.host("h2", slots=1, gpus=1)
    bench.submit(1, cpus=3)
    bench.dispatch()
    bench.ok(c.SetQuota("", "user", "ann", {"gpus": 0}, bench.tick()))
    waits, goes = (
        bench.submit(1, user=user, gpus=1, priority=1, alternatives=(Alternative(cpus=2),)) for user in ("ann", "bob")
    )
    bench.dispatch()
    assert (ways_of(waits), ways_of(goes)) == ([], [0])


def test_accounting_counts_each_attempt_as_what_it_had(bench):
    """Those that were tried again, too; told alike from the archive, and by host."""
    bench.host("h1", slots=8, gpus=1)
    job = bench.submit(2, gpus=1, retries=1, alternatives=(Alternative(cpus=4, memory_bytes=1000),))
    times = {"started_at": 2000.0, "finished_at": 2010.0}
    bench.dispatch()
    assert ways_of(job) == [0, 1]
    bench.finish((1, 1, 1), outcome="failed", **times)
    bench.dispatch()
    bench.finish((1, 0, 1), **times)
    bench.finish((1, 1, 2), started_at=2020.0, finished_at=2025.0)
    use = job_use(job, result_of(host_uses(job, bench.now)), bench.now)
    assert (use.attempt_s, use.slot_s, use.gpu_s, use.memory_byte_s) == (25.0, 10 + 15 * 4, 10.0, 15_000.0)
    assert records.use(archived(job)) == use
    (host,) = grouped([use], "host")
    assert (host.key, host.slot_s, host.gpu_s, host.memory_byte_s) == ("h1", 70.0, 10.0, 15_000.0)


def test_users_take_turns(bench):
    """By what each task took, whatever it might have taken."""
    bench.host("h1", slots=12, gpus=2)
    jobs = [bench.submit(9, user=user, gpus=1, cpus=3, alternatives=(Alternative(cpus=1),)) for user in ("ann", "bob")]
    assert len(bench.dispatch()) == 8
    assert sorted(len(job.running) for job in jobs) == [4, 4]
    assert sorted(ways_of(jobs[0])) == sorted(ways_of(jobs[1])) == [0, 1, 1, 1]


WAYS = st.builds(
    Alternative,
    cpus=st.sampled_from([0.5, 1, 2, 4]),
    gpus=st.sampled_from([0, 0, 0.5, 1]),
    resources=st.sampled_from([None, None, {"tape": 1}]),
)


@settings(max_examples=40)
@given(data=st.data())
def test_nothing_runs_as_less_than_what_was_to_be_had(make_bench, data):
    """After a round no way has room anywhere that comes before one that was taken in it; if tasks wait, none has."""
    bench = make_bench()
    for number in (1, 2):
        gpus, tapes = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
        bench.host(f"h{number}", slots=data.draw(st.integers(1, 6)), gpus=gpus, resources={"tape": tapes})
    for _ in range(data.draw(st.integers(1, 6))):
        first, *others = data.draw(st.lists(WAYS, min_size=1, max_size=3))
        job = bench.submit(
            data.draw(st.integers(1, 6)), cpus=first.cpus, gpus=first.gpus, resources=first.resources,
            alternatives=tuple(others),
        )  # fmt: skip
        alone = bench.state.ready.jobs == 1  # nothing is kept for others
        given = [ref for _, ref in bench.dispatch() if ref[0] == job.id]
        taken = max((job.running[index].alternative for _, index, _ in given), default=0)
        for way in job.shape.ways[: len(job.shape.ways) if job.queued else taken] if alone else ():
            for host in bench.state.hosts.values():
                fits = not misfit(way, host, host.slots)
                assert not (fits and tasks_beside(way, host, host.slots, host.used, host.taken)), (way, host.name)
        for host in bench.state.hosts.values():
            live = sorted(host.attempts)
            for ref in data.draw(st.lists(st.sampled_from(live), max_size=3, unique=True)) if live else ():
                bench.finish(ref, host=host.name)
        bench.check_snapshot()


@settings(max_examples=25)
@given(data=st.data())
def test_the_first_is_never_delayed(make_bench, data):
    """What runs when it becomes first ends by its time limit: by the first moment at which one of its ways has room
    then, it has started, whatever comes."""
    bench = make_bench()
    bench.host("h1", slots=4, gpus=1)
    bench.host("h2", slots=data.draw(st.integers(2, 6)))
    ends = {}
    for _ in range(data.draw(st.integers(1, 8))):
        limit_s = data.draw(st.sampled_from([64, 128, 256, 512]))
        one = data.draw(WAYS)
        bench.submit(1, cpus=one.cpus, gpus=one.gpus, timeout_s=limit_s, grace_s=0)
        ends |= {ref: (host, bench.now + limit_s) for host, ref in bench.dispatch()}
    first = bench.submit(
        1, gpus=1, cpus=2, priority=1, alternatives=(Alternative(cpus=data.draw(st.sampled_from([2, 4]))),)
    )
    by = max((at for _, at in ends.values()), default=bench.now)
    while not first.running:
        for _ in range(data.draw(st.integers(0, 3))):
            one = data.draw(WAYS)
            limit_s = data.draw(st.sampled_from([0, 8, 64, 512]))
            bench.submit(1, cpus=one.cpus, gpus=one.gpus, timeout_s=limit_s, grace_s=0)
        for host, ref in bench.dispatch():
            ends[ref] = host, bench.now + (bench.state.jobs[ref[0]].spec.timeout_s or 10_000)
        if first.running:
            break
        assert bench.now <= by + SLACK_S
        bench.tick(16)
        for ref in [ref for ref, (_, at) in ends.items() if at <= bench.now]:
            host, _ = ends.pop(ref)
            bench.finish(ref, host=host)
