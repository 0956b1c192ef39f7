"""What is tried again, when, and what never started in time."""

from __future__ import annotations

import pytest

from depalma.model import Dependency
from depalma.state import commands as c
from depalma.state import job_commands as jc
from depalma.state.explain import explain
from depalma.state.views import job_view, task_view


def fail(bench, job, number, outcome="failed", **report):
    """Runs the next attempt of a job of one task; it ends so."""
    assert [ref for _, ref in bench.dispatch()] == [(job.id, 0, number)]
    bench.finish((job.id, 0, number), outcome=outcome, **report)


def pass_time(bench, at, limit=1000):
    return bench.ok(jc.PassTime(at, limit))


# ---------------------------------------------------------------- back-off


def test_each_pause_is_twice_as_long(bench):
    bench.host(slots=1)
    job = bench.submit(retries=3, backoff_s=10.0)

    for number, pause in ((1, 10), (2, 20), (3, 40)):
        fail(bench, job, number)
        until = bench.now + pause
        assert (job.state(), job.delayed, bench.state.due.next_at()) == ("blocked", {0: until}, until)
        assert bench.plan() == []
        assert pass_time(bench, until - 0.1) == 0
        bench.check_snapshot()
        assert pass_time(bench, until) == 1
        assert pass_time(bench, until) == 0
    fail(bench, job, 4)

    assert job.state() == "failed"
    assert bench.state.due.next_at() is None


def test_a_pause_is_an_hour_at_most(bench):
    bench.host(slots=1)
    job = bench.submit(retries=100, backoff_s=3000.0)
    for number in range(1, 70):
        fail(bench, job, number)
        assert job.delayed[0] - bench.now == (3000 if number == 1 else 3600)
        pass_time(bench, bench.now + 3600)


def test_a_task_that_was_taken_out_of_turn_waits_as_well(bench):
    """Those before it in the queue were never handed out: it is not among those that came back."""
    bench.host(slots=4)
    job = bench.submit(3, retries=1, backoff_s=10.0)
    bench.assign((1, 2, 1))
    bench.finish((1, 2, 1), outcome="failed")
    assert [job.state_of(index) for index in range(3)] == ["queued", "queued", "blocked"]

    assert pass_time(bench, bench.now + 10) == 1

    assert [ref for _, ref in bench.dispatch()] == [(1, 0, 1), (1, 1, 1), (1, 2, 2)]


def test_explain_says_when(bench):
    bench.host(slots=1)
    job = bench.submit(retries=1, backoff_s=10.0)
    fail(bench, job, 1)

    assert job_view(bench.state, job).reason == "1 failed tasks are tried again, the first at 1970-01-01 00:16:54 UTC"
    assert explain(bench.state, job)[0] == "blocked: 0 tasks on hosts, 1 queued"
    assert task_view(bench.state, job, 0).state == "blocked"


def test_others_of_the_job_go_on_meanwhile(bench):
    bench.host(slots=1)
    job = bench.submit(2, retries=1, backoff_s=10.0)
    bench.dispatch()
    bench.finish((1, 0, 1), outcome="failed")

    assert [ref for _, ref in bench.dispatch()] == [(1, 1, 1)]
    assert "1 failed tasks are tried again, the first at" in explain(bench.state, job)[1]


def test_what_waits_for_its_time_can_be_cancelled_and_held(bench):
    bench.host(slots=1)
    job = bench.submit(retries=1, backoff_s=10.0)
    fail(bench, job, 1)
    bench.ok(jc.HoldJobs("", (1,), bench.tick()))
    assert job.state_of(0) == "held"
    pass_time(bench, bench.now + 100)
    assert job.state_of(0) == "held"
    bench.ok(jc.ReleaseJobs("", (1,), bench.tick()))
    assert job.state_of(0) == "queued"

    other = bench.submit(retries=1, backoff_s=10.0, priority=1)
    fail(bench, other, 1)
    bench.cancel(other.id)
    assert other.state() == "cancelled"
    assert pass_time(bench, bench.now + 100) == 0


def test_lost_hosts_and_moves_wait_for_nothing(bench):
    bench.host(slots=1)
    job = bench.submit(retries=1, backoff_s=10.0)
    bench.dispatch()
    bench.lose()
    assert job.state() == "queued"


def test_no_more_than_the_limit_at_once(bench):
    bench.host("h1", slots=5)
    bench.submit(5, retries=1, backoff_s=10.0)
    bench.dispatch()
    bench.finish(*[(1, index, 1) for index in range(5)], outcome="failed")

    assert [pass_time(bench, bench.now + 100, 2) for _ in range(4)] == [2, 2, 1, 0]


def test_a_retried_task_pauses_from_the_beginning(bench):
    bench.host(slots=1)
    job = bench.submit(retries=1, backoff_s=10.0)
    fail(bench, job, 1)
    pass_time(bench, bench.now + 10)
    fail(bench, job, 2)
    bench.ok(jc.RetryJobs("", (1,), bench.tick()))
    fail(bench, job, 3)

    assert job.delayed[0] - bench.now == 10


# ---------------------------------------------------------------- reasons


def test_timeouts_may_count_apart(bench):
    bench.host(slots=1)
    job = bench.submit(retries=1, timeout_retries=2)
    for number, outcome in enumerate(("timed_out", "failed", "timed_out"), 1):
        fail(bench, job, number, outcome)
        assert job.state() == "queued"
    fail(bench, job, 4, "timed_out")

    assert job.state() == "timed_out"


def test_or_together(bench):
    bench.host(slots=1)
    job = bench.submit(retries=1)
    fail(bench, job, 1, "timed_out")
    fail(bench, job, 2)

    assert job.state() == "failed"


def test_a_signal_is_tried_again_by_the_code_that_is_shown_for_it(bench):
    """128 and the signal: what `run` exits with, and what a shell says."""
    bench.host()
    job = bench.submit(retries=5, retry_exit_codes=(137,))
    bench.assign((1, 0, 1))
    bench.finish((1, 0, 1), outcome="failed", signal=9)
    assert job.state() == "queued"
    bench.assign((1, 0, 2))
    bench.finish((1, 0, 2), outcome="failed", signal=15)
    assert job.state() == "failed"


def test_only_some_exit_codes_are_worth_another_attempt(bench):
    bench.host(slots=1)
    job = bench.submit(retries=5, retry_exit_codes=(75, 3))
    fail(bench, job, 1, exit_code=75)
    fail(bench, job, 2, exit_code=3)
    fail(bench, job, 3, "timed_out")
    fail(bench, job, 4, exit_code=1)

    assert (job.state(), job.exit_code) == ("failed", 1)


@pytest.mark.parametrize("allowed", [0, 2])
def test_hosts_may_be_lost_so_often(bench, allowed):
    job = bench.submit(lost_retries=allowed)
    for number in range(1, allowed + 2):
        assert job.state() == "queued"
        bench.host(f"h{number}")
        bench.dispatch()
        bench.lose(f"h{number}")

    assert job.state() == "lost"
    assert bench.kinds()[-2:] == ["task.lost", "job.finished"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"backoff_s": -1.0}, "backoff_s: -1.0 given; allowed: 0 to 86400"),
        ({"backoff_s": float("nan")}, "backoff_s: nan given"),
        ({"timeout_retries": -2}, "timeout_retries: -2 given; allowed: -1 to 1000"),
        ({"lost_retries": 1001}, "lost_retries: 1001 given"),
        ({"start_at": float("inf")}, "start_at: inf given"),
        ({"start_within_s": -3.0}, "start_within_s: -3.0 given"),
        ({"retry_exit_codes": (0,)}, "retry_exit_codes: [0] given; allowed: at most 256 codes from 1 to 255"),
    ],
)
def test_bad_values(bench, spec, said):
    made = c.JobSpec(kind="command", argv=("true",), **spec)

    assert said in bench.refused(c.SubmitJob("", made, bench.tick())).message


# ---------------------------------------------------------------- start deadline


def test_a_job_that_has_not_started_in_time_is_cancelled(bench):
    job, other = bench.submit(3, start_within_s=60.0), bench.submit(after=(Dependency(1, "any"),))
    until = job.submitted_at + 60

    assert pass_time(bench, until - 1) == 0
    bench.check_snapshot()
    assert pass_time(bench, until) == 1

    assert job.state() == "cancelled"
    assert job_view(bench.state, job).reason == "cancelled: it had not started 60 s after its submission"
    assert other.state() == "queued"
    assert [e.detail["reason"] for e in bench.events() if e.kind == "job.cancelled"] == [
        "had not started 60 s after its submission"
    ]


@pytest.mark.parametrize("lost", [False, True])
def test_a_job_that_was_given_to_a_host_is_not(bench, lost):
    """Also when the host was lost before it said that the task runs: it was started as far as anybody knows."""
    bench.host(slots=1)
    job = bench.submit(2, start_within_s=60.0)
    bench.dispatch()
    if lost:
        bench.lose()
        bench.check_snapshot()

    assert pass_time(bench, bench.now + 100) == 0
    assert not job.cancelled
    bench.check_snapshot()
    assert pass_time(bench, bench.now + 200) == 0


def test_held_and_blocked_time_counts(bench):
    first = bench.submit(hold=True)
    bench.submit(hold=True, start_within_s=60.0)
    bench.submit(after=(Dependency(first.id),), start_within_s=60.0)

    assert pass_time(bench, bench.now + 60) == 2
    assert [bench.state.jobs[job].state() for job in (1, 2, 3)] == ["held", "cancelled", "cancelled"]


# ---------------------------------------------------------------- a time to start


def test_nothing_of_a_job_starts_before_its_time(bench):
    bench.host(slots=4)
    job = bench.submit(2, start_at=5000.0)
    assert (job.state(), job.state_of(1)) == ("blocked", "blocked")
    assert job_view(bench.state, job).reason == "starts at 1970-01-01 01:23:20 UTC, not before"
    assert bench.plan() == []
    assert bench.assign((1, 0, 1)).refused == (((1, 0, 1), "blocked"),)
    bench.check_snapshot()
    assert pass_time(bench, 4999.9) == 0

    assert pass_time(bench, 5000.0) == 1

    assert len(bench.dispatch()) == 2
    assert pass_time(bench, 6000.0) == 0
    bench.check_snapshot()


def test_a_time_that_is_over_is_no_obstacle(bench):
    assert bench.submit(start_at=1.0).state() == "queued"


def test_it_may_be_cancelled_before_and_others_may_wait_for_it(bench):
    job = bench.submit(start_at=5000.0)
    other = bench.submit(after=(Dependency(job.id, "any"),), start_at=4000.0)
    bench.cancel(job.id)
    assert job.state() == "cancelled"
    assert other.state() == "blocked"

    assert pass_time(bench, 9000.0) == 1

    assert other.state() == "queued"


def test_a_job_without_tasks_ends_in_its_time(bench):
    job = bench.submit(0, start_at=5000.0)
    assert not job.is_final
    pass_time(bench, 5000.0)
    assert job.state() == "succeeded"
