"""What a retry by hand means for the retries that a job has."""

from __future__ import annotations

from depalma.state import job_commands as jc
from depalma.state.explain import explain


def retry(bench, *jobs):
    return bench.ok(jc.RetryJobs("", jobs, bench.tick(), "ann"))


def ended_twice(bench, outcome, **spec):
    """Returns a job whose only task has done so."""
    bench.host(slots=1)
    job = bench.submit(**spec)
    for number in (1, 2):
        bench.dispatch()
        bench.finish((job.id, 0, number), outcome=outcome)
    return job


def test_a_retried_task_has_all_its_retries_again(bench):
    job = ended_twice(bench, "failed", retries=1)
    assert job.is_final

    retry(bench, job.id)
    bench.dispatch()
    bench.finish((job.id, 0, 3), outcome="failed")

    assert job.state_of(0) == "queued"
    bench.dispatch()
    bench.finish((job.id, 0, 4), outcome="failed")
    assert job.state() == "failed"


def test_a_retried_task_has_all_its_retries_after_timeouts_again(bench):
    job = ended_twice(bench, "timed_out", timeout_retries=1)
    assert job.state() == "timed_out"

    retry(bench, job.id)
    bench.dispatch()
    bench.finish((job.id, 0, 3), outcome="timed_out")

    assert job.state_of(0) == "queued"


def test_timeouts_before_a_retry_are_no_further_retries_after_failures(bench):
    job = ended_twice(bench, "timed_out", timeout_retries=1)

    retry(bench, job.id)
    bench.dispatch()
    bench.finish((job.id, 0, 3), outcome="failed")

    assert job.state() == "failed"


def test_a_retried_task_has_all_its_retries_after_lost_hosts_again(bench):
    bench.host(slots=1)
    job = bench.submit(lost_retries=1)
    for life in (1, 2):
        bench.dispatch()
        bench.lose(life=life)
        bench.up(life=life + 1)
    assert job.state() == "lost"

    retry(bench, job.id)
    bench.dispatch()
    bench.lose(life=3)

    assert job.state_of(0) == "queued"


def test_retries_after_timeouts_are_not_told_as_retries_after_failures(bench):
    bench.host(slots=1)
    job = bench.submit(retries=2, timeout_retries=3)
    for number, outcome in enumerate(("timed_out", "timed_out", "timed_out", "failed"), 1):
        assert not any("retries are used" in line for line in explain(bench.state, job, 0))
        bench.dispatch()
        bench.finish((job.id, 0, number), outcome=outcome)

    assert "1 of 2 retries are used" in explain(bench.state, job, 0)
