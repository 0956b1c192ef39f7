"""Start deadlines of single tasks: who is cancelled, who is not, and that a replica that was restored agrees."""

from __future__ import annotations

import pytest

from depalma import items
from depalma.model import Payload
from depalma.state import commands as c
from depalma.state import deadlines
from depalma.state import job_commands as jc
from depalma.state.explain import explain
from depalma.state.views import job_view, task_view


def pass_time(bench, seconds: float, limit: int = 1000) -> int:
    """So many seconds after the submission of job 1, it is so late."""
    bench.now = max(bench.now, bench.state.jobs[1].submitted_at + seconds)
    return bench.ok(jc.PassTime(bench.state.jobs[1].submitted_at + seconds, limit))


def words(job) -> list[str]:
    return [job.state_of(index) for index in range(job.first, job.first + job.total)]


def test_what_no_host_was_given_in_time_is_cancelled_the_rest_goes_on(bench):
    bench.host(slots=1)
    job = bench.submit(3, task_start_within_s=50.0)
    bench.dispatch()
    assert pass_time(bench, 49.9) == 0

    assert pass_time(bench, 50.0) == 2

    assert words(job) == ["assigned", "cancelled", "cancelled"]
    assert task_view(bench.state, job, 1).error == "had not started within 50 s"
    assert explain(bench.state, job, 2) == ["cancelled while it was queued", "had not started within 50 s"]
    assert [(e.task, e.detail["reason"]) for e in bench.events() if e.kind == "task.cancelled"] == [
        (1, "had not started within 50 s"),
        (2, "had not started within 50 s"),
    ]
    bench.finish((1, 0, 1))
    assert job.state() == "cancelled"
    assert pass_time(bench, 500.0) == 0


def test_the_clock_of_a_task_begins_when_it_is_added(bench):
    job = bench.submit(1, open=True, task_start_within_s=50.0)
    bench.now = job.submitted_at + 30
    bench.ok(c.AddTasks("", 1, Payload(inline=items.pack([b"a", b"b"])), 2, bench.now))

    assert pass_time(bench, 60) == 1
    assert words(job) == ["cancelled", "queued", "queued"]
    assert pass_time(bench, 79.9) == 0
    assert pass_time(bench, 80) == 2
    assert (job.state(), job.open) == ("queued", True)


def test_a_task_that_has_run_may_wait_for_its_next_attempt(bench):
    bench.host(slots=2)
    job = bench.submit(2, task_start_within_s=50.0, retries=1)
    bench.dispatch()
    bench.finish((1, 0, 1), outcome="failed")
    bench.finish((1, 1, 1), outcome="returned")

    assert pass_time(bench, 60) == 1

    assert words(job) == ["queued", "cancelled"]


@pytest.mark.parametrize("restored", [True, False])
def test_one_that_comes_back_later_without_having_begun_is_late_then(bench, restored):
    """It had been on a host at its deadline; a replica that was restored meanwhile does the same."""
    bench.host(slots=1)
    job = bench.submit(task_start_within_s=50.0)
    bench.dispatch()
    assert pass_time(bench, 60) == 0
    if restored:
        bench.check_snapshot()
        assert pass_time(bench, 61) == 0
    bench.finish((1, 0, 1), outcome="returned")
    assert words(job) == ["queued"]

    assert pass_time(bench, 62) == 1

    assert job.state() == "cancelled"


@pytest.mark.parametrize("options", [{"hold": True}, {"start_at": 9999.0}])
def test_being_held_or_not_to_start_yet_is_waiting_too(bench, options):
    job = bench.submit(2, task_start_within_s=50.0, **options)
    assert pass_time(bench, 60) == 2
    assert job.state() == "cancelled"


def test_waiting_for_others_is_waiting_too(bench):
    source = bench.submit(2, open=True)
    each = bench.submit(2, task_start_within_s=50.0, after=(deadline_after(source, each=True),))
    whole = bench.submit(2, task_start_within_s=50.0, after=(deadline_after(source, each=False),))

    assert pass_time(bench, 60) == 4

    assert (each.state(), whole.state()) == ("cancelled", "cancelled")
    assert job_view(bench.state, whole).reason == "cancelled: it had not started within 50 s"


def deadline_after(job, *, each: bool):
    from depalma.model import Dependency

    return Dependency(job.id, "ok", each)


def test_many_are_cancelled_by_several_commands(bench, monkeypatch):
    monkeypatch.setattr(deadlines, "_AT_ONCE", 2)
    job = bench.submit(5, task_start_within_s=50.0)
    bench.check_snapshot()

    assert [pass_time(bench, 60) for _ in range(2)] == [5, 0]

    assert job.state() == "cancelled"
    other = bench.submit(5, task_start_within_s=50.0)
    assert [bench.ok(jc.PassTime(bench.now + 60, 1)) for _ in range(4)] == [2, 2, 1, 0]
    assert other.state() == "cancelled"
