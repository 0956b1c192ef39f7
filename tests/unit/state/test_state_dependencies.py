"""Jobs and tasks that wait for others: when they start, when they never will, and what that costs."""

from __future__ import annotations

import time

import pytest

from depalma.model import Dependency, JobSpec
from depalma.state import commands as c
from depalma.state import job_commands as jc
from depalma.state.explain import explain
from depalma.state.graphs import find_cycle
from depalma.state.views import job_view, task_view, task_views

ENDS = ("succeeded", "failed", "timed_out", "lost", "cancelled")


def after(job, when="ok", *, each=False):
    return (Dependency(job, when, each),)


def end(bench, job, outcome, index=0):
    """Lets a task of a job end so; a lost one takes its host along."""
    host = f"x{job.id}-{index}"
    bench.host(host)
    bench.assign((job.id, index, 1), host=host)
    if outcome != "lost":
        bench.finish((job.id, index, 1), host=host, outcome=outcome)
    bench.lose(host)


def graph(bench, *specs, request=""):
    made = tuple(JobSpec(**{"kind": "command", "argv": ("true",), **spec}) for spec in specs)
    return jc.SubmitGraph(request, made, bench.tick())


# ---------------------------------------------------------------- whole jobs


@pytest.mark.parametrize("outcome", ENDS)
@pytest.mark.parametrize("when", ["ok", "fail", "any"])
def test_a_job_starts_after_the_end_it_asked_for_or_never(bench, when, outcome):
    first = bench.submit(restartable=False)
    second = bench.submit(2, after=after(first.id, when))
    assert (second.state(), second.state_of(0)) == ("blocked", "blocked")
    bench.host()
    assert [ref for _, ref in bench.dispatch()] == [(1, 0, 1)]
    assert bench.assign((second.id, 0, 1)).refused == (((second.id, 0, 1), "blocked"),)

    if outcome == "lost":
        bench.lose()
    else:
        bench.finish((first.id, 0, 1), outcome=outcome)

    meets = {"ok": outcome == "succeeded", "fail": outcome in ("failed", "timed_out", "lost"), "any": True}[when]
    assert second.state() == ("queued" if meets else "cancelled")
    if meets:
        bench.up(life=2)
        assert [ref for _, ref in bench.dispatch()] == [(2, 0, 1), (2, 1, 1)]
        return
    hoped = {"ok": "succeed", "fail": "fail"}[when]
    said = {"timed_out": "timed out", "lost": "was lost", "cancelled": "was cancelled"}.get(outcome, outcome)
    assert second.is_final
    assert job_view(bench.state, second).reason == f"cancelled: it waited for job 1 to {hoped}; it {said}"
    assert explain(bench.state, second, 1) == [
        "cancelled while it was queued",
        f"the job was cancelled: it waited for job 1 to {hoped}; it {said}",
    ]
    assert bench.events()[-2].detail["reason"] == f"waited for job 1 to {hoped}; it {said}"


def test_what_has_ended_before_counts_at_once(bench):
    first = bench.submit()
    end(bench, first, "succeeded")

    assert bench.submit(after=after(first.id)).state() == "queued"
    assert bench.submit(after=after(first.id, "fail")).state() == "cancelled"


def test_all_of_several_jobs_are_waited_for(bench):
    jobs = [bench.submit() for _ in range(5)]
    last = bench.submit(after=tuple(Dependency(job.id, "any") for job in jobs))
    assert explain(bench.state, last) == [
        "blocked: 0 tasks on hosts, 1 queued",
        "waits for job 1 to end, job 2 to end, job 3 to end and 2 more",
    ]

    for job in jobs:
        assert last.state() == "blocked"
        end(bench, job, "succeeded")

    assert last.state() == "queued"
    assert [one.job for one in last.unmet] == []


def test_a_chain_is_cancelled_to_its_end_however_long(bench):
    """Longer than the interpreter's stack is deep; and the one that hoped for a failure starts."""
    jobs = [bench.submit()]
    for _ in range(1500):
        jobs.append(bench.state.jobs[bench.machine.apply(c.encode(c.SubmitJob(
            "", JobSpec(kind="command", argv=("true",), after=after(jobs[-1].id)), bench.now)), 1).value])  # fmt: skip
    any_end = bench.machine.apply(
        c.encode(c.SubmitJob("", JobSpec(kind="command", argv=("x",), after=after(jobs[-1].id, "any")), bench.now)), 1
    ).value
    bench.check_snapshot()

    bench.cancel(jobs[0].id)

    assert {job.state() for job in jobs} == {"cancelled"}
    assert jobs[-1].cancel_reason == "waited for job 1500 to succeed; it was cancelled"
    assert bench.state.jobs[any_end].state() == "queued"


def test_a_blocked_job_can_be_cancelled_held_and_released(bench):
    first = bench.submit()
    second, third = bench.submit(after=after(first.id)), bench.submit(after=after(first.id))
    bench.ok(jc.HoldJobs("", (second.id,), bench.tick()))
    assert second.state() == "held"

    bench.cancel(third.id)
    end(bench, first, "succeeded")

    assert third.state() == "cancelled"
    assert third.cancel_reason == ""
    assert second.state() == "held"
    bench.ok(jc.ReleaseJobs("", (second.id,), bench.tick()))
    assert second.state() == "queued"


def test_an_open_job_waits_with_what_is_added_to_it(bench):
    first = bench.submit()
    second = bench.submit(0, open=True, after=after(first.id, "any"))
    bench.ok(c.CloseJob("", second.id, bench.tick()))

    assert second.state() == "blocked"
    end(bench, first, "failed")
    assert second.state() == "succeeded"


def test_a_retried_job_is_waited_for_again(bench):
    first = bench.submit()
    end(bench, first, "failed")
    bench.ok(jc.RetryJobs("", (first.id,), bench.tick()))

    second = bench.submit(after=after(first.id))

    assert second.state() == "blocked"
    bench.host("h2")
    bench.assign((1, 0, 2), host="h2")
    bench.finish((1, 0, 2), host="h2")
    assert second.state() == "queued"


def test_a_job_that_waits_keeps_its_place_after_a_restore(bench):
    first = bench.submit()
    second = bench.submit(after=after(first.id))
    bench.check_snapshot()
    twin = bench.twin.state

    assert twin.jobs[second.id].state() == "blocked"
    end(bench, first, "succeeded")  # applied to both
    assert twin.jobs[second.id].state() == "queued"


# ---------------------------------------------------------------- tasks of equal index


def test_tasks_start_one_by_one(bench):
    first = bench.submit(3)
    second = bench.submit(3, after=after(first.id, each=True))
    assert second.state() == "blocked"
    assert job_view(bench.state, second).reason == "waits for each task of equal index of job 1 to succeed"

    end(bench, first, "succeeded", 2)
    end(bench, first, "failed", 0)

    assert [second.state_of(index) for index in range(3)] == ["cancelled", "blocked", "queued"]
    assert second.state() == "queued"
    assert task_view(bench.state, second, 0).reason == "waited for task 1.0 to succeed; it failed"
    assert explain(bench.state, second, 0) == [
        "cancelled while it was queued", "waited for task 1.0 to succeed; it failed",
    ]  # fmt: skip
    assert "1 tasks: waits for each task of equal index of job 1 to succeed" in explain(bench.state, second)
    assert [view.index for view in task_views(bench.state, second, "blocked")] == [1]
    assert [view.index for view in task_views(bench.state, second, "queued")] == [2]
    assert [(e.kind, e.task) for e in bench.events() if e.kind == "task.cancelled"] == [("task.cancelled", 0)]
    bench.host(slots=9)
    assert [ref for _, ref in bench.dispatch()] == [(1, 1, 1), (2, 2, 1)]
    bench.finish((1, 1, 1), (2, 2, 1))
    assert [ref for _, ref in bench.dispatch()] == [(2, 1, 1)]
    bench.finish((2, 1, 1))
    assert second.state() == "cancelled"
    assert second.counts().succeeded == 2


def test_indices_without_a_counterpart_never_start(bench):
    """They wait until it is certain: an open job may still get them."""
    first = bench.submit(1, open=True)
    second = bench.submit(3, first_index=1, after=after(first.id, "any", each=True))
    assert second.blocked == 3

    bench.cancel(first.id)

    assert second.state() == "cancelled"
    assert task_view(bench.state, second, 3).reason == "waited for task 1.3; there is none"


def test_several_jobs_task_by_task(bench):
    a, b = bench.submit(2), bench.submit(2)
    both = bench.submit(2, after=(*after(a.id, each=True), *after(b.id, "any", each=True)))

    end(bench, a, "succeeded", 0)
    end(bench, b, "failed", 1)
    assert both.blocked == 2
    end(bench, b, "failed", 0)
    end(bench, a, "failed", 1)

    assert [both.state_of(index) for index in (0, 1)] == ["queued", "cancelled"]


def test_cancelling_takes_blocked_tasks_along(bench):
    first = bench.submit(4)
    second = bench.submit(4, after=after(first.id, each=True))
    end(bench, first, "succeeded", 1)

    bench.cancel(second.id)

    assert second.state() == "cancelled"
    assert second.counts().cancelled == 4
    end(bench, first, "succeeded", 0)
    assert second.counts().cancelled == 4


def test_a_requeued_task_is_not_blocked_again(bench):
    first = bench.submit()
    second = bench.submit(retries=1, after=after(first.id, each=True))
    end(bench, first, "succeeded")
    bench.host("h2")
    bench.assign((2, 0, 1), host="h2")
    bench.finish((2, 0, 1), host="h2", outcome="failed")

    assert second.state_of(0) == "queued"


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"after": after(7)}, "after: there is no job 7 (or it is no longer kept)"),
        ({"after": after(-1)}, "after: there is no job -1"),
        ({"after": after(2)}, "after: there is no job 2"),
        ({"after": (*after(1), *after(1, "any"))}, "after: [1, 1] given; allowed: each job once"),
        ({"after": after(1, each=True), "open": True}, "after.each: True given; allowed: not in an open job"),
        (
            {"after": tuple(Dependency(n) for n in range(1001))},
            "after: '1001 dependencies' given; allowed: at most 1000",
        ),
    ],
)
def test_bad_dependencies(bench, spec, said):
    bench.submit()

    made = JobSpec(kind="command", argv=("true",), **spec)

    assert said in bench.refused(c.SubmitJob("", made, bench.tick())).message


# ---------------------------------------------------------------- graphs


def test_a_graph_is_one_command(bench):
    ids = bench.ok(
        graph(
            bench,
            {"name": "report", "after": (*after(-2), *after(-3, "any"))},
            {"name": "train", "after": after(-3)},
            {"name": "prepare"},
            request="r",
        )
    )

    assert ids == (1, 2, 3)
    report, train, prepare = (bench.state.jobs[job] for job in ids)
    assert [job.state() for job in (report, train, prepare)] == ["blocked", "blocked", "queued"]
    assert [one.job for one in report.spec.after] == [2, 3]
    end(bench, prepare, "succeeded")
    assert [job.state() for job in (report, train)] == ["blocked", "queued"]
    end(bench, train, "succeeded")
    assert report.state() == "queued"
    assert bench.ok(graph(bench, {}, request="r")) == (1, 2, 3)


def test_jobs_without_tasks_end_in_their_turn(bench):
    bench.ok(graph(bench, {"count": 0, "after": after(-2)}, {"count": 0}, {"after": after(-1)}))

    assert [bench.state.jobs[job].state() for job in (1, 2, 3)] == ["succeeded", "succeeded", "queued"]


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ([], "jobs: '0 jobs' given; allowed: 1 to 10000"),
        ([{"name": "a", "after": after(-1)}], "after: a cycle: a after a; allowed"),
        (
            [{"name": "a", "after": after(-3)}, {}, {"name": "c", "after": after(-2)}, {"after": after(-1)}],
            "",
        ),
        (
            [{"name": "a", "after": after(-3)}, {"after": after(-1)}, {"name": "c", "after": after(-2)}],
            "after: a cycle: a after c after jobs.1 after a; allowed",
        ),
        ([{}, {"name": "b", "after": after(-3)}], "b: after.job: -3 given; allowed: -1 to -2"),
        ([{}, {"name": "b", "after": after(4)}], "b: after: there is no job 4"),
        ([{}, {"cpus": 0}], "jobs.1: cpus: 0.0 given"),
        ([{"code_index": 9}], "jobs.0: code_index: 9 given"),
    ],
)
def test_bad_graphs_leave_nothing(bench, specs, said):
    if not said:
        assert bench.ok(graph(bench, *specs))
        return
    assert said in bench.refused(graph(bench, *specs)).message
    assert bench.state.jobs == {}


def test_cycles_are_found():
    assert find_cycle([[1], [2], [0]]) == [0, 1, 2, 0]
    assert find_cycle([[1, 2], [2], []]) == []
    assert find_cycle([[], [3], [], [1, 0]]) == [1, 3, 1]
    assert find_cycle([[n + 1] for n in range(5000)] + [[]]) == []


# ---------------------------------------------------------------- what it costs


def cost_s(make_bench, waiting: int) -> float:
    """Returns how long it takes to end a job on which nobody waits, while `waiting` jobs wait for another."""
    bench = make_bench()
    bench.host(slots=64)
    apply = bench.machine.apply
    first = bench.submit()
    for _ in range(waiting):
        spec = JobSpec(kind="command", argv=("true",), after=after(first.id))
        apply(c.encode(c.SubmitJob("", spec, bench.now)), 1)
    jobs = [apply(c.encode(c.SubmitJob("", JobSpec(kind="command", argv=("x",)), bench.now)), 1).value
            for _ in range(300)]  # fmt: skip
    refs = tuple((job, 0, 1) for job in jobs)
    assert len(apply(c.encode(c.AssignTasks(1, "h1", "h1-1", refs, bench.now)), 1).value.accepted) == 300
    best = float("inf")
    commands = [c.encode(c.FinishTasks("h1", "h1-1", (c.Report(*ref, "succeeded"),), bench.now)) for ref in refs]
    for start in range(0, 300, 50):
        began = time.process_time()
        for data in commands[start : start + 50]:
            apply(data, 1)
        best = min(best, time.process_time() - began)
    return best


def test_jobs_that_wait_cost_the_others_nothing(make_bench):
    """A ratio in one run: 200 times as many waiting jobs, and at most a few times the cost (it was 1.0)."""
    assert cost_s(make_bench, 20_000) < 5 * cost_s(make_bench, 100)
