"""Hold, release, suspend, resume, set, retry: what they change and refuse; a repeated request changes nothing."""

from __future__ import annotations

import pytest

from depalma.state import commands as c
from depalma.state import job_commands as jc
from depalma.state.explain import explain
from depalma.state.views import job_view, task_view, task_views


def hold(bench, *jobs, request=""):
    return bench.ok(jc.HoldJobs(request, jobs, bench.tick(), "ann"))


def release(bench, *jobs, request=""):
    return bench.ok(jc.ReleaseJobs(request, jobs, bench.tick(), "ann"))


def retry(bench, *jobs, request=""):
    return bench.ok(jc.RetryJobs(request, jobs, bench.tick(), "ann"))


def suspend(bench, *jobs, request="", reason=""):
    return bench.ok(jc.SuspendJobs(request, jobs, bench.tick(), "ann", reason))


def resume(bench, *jobs, request=""):
    return bench.ok(jc.ResumeJobs(request, jobs, bench.tick(), "ann"))


def change(bench, *jobs, request="", **changes):
    return bench.ok(jc.SetJobs(request, jobs, bench.tick(), "ann", **changes))


# ---------------------------------------------------------------- hold, release


def test_a_held_job_keeps_what_runs_and_starts_nothing(bench):
    bench.host(slots=1)
    job = bench.submit(3)
    bench.dispatch()

    assert hold(bench, job.id) == (job.id,)

    assert job.state() == "running"
    assert [job.state_of(index) for index in range(3)] == ["assigned", "held", "held"]
    bench.finish((job.id, 0, 1))
    assert bench.plan() == []
    assert bench.assign((job.id, 1, 1)).refused == (((job.id, 1, 1), "held"),)
    assert job.state() == "held"
    assert job_view(bench.state, job).reason == "held until it is released"
    assert release(bench, job.id) == (job.id,)
    assert bench.dispatch() == [("h1", (job.id, 1, 1))]
    assert [kind for kind in bench.kinds() if kind.startswith("job.")] == ["job.submitted", "job.held", "job.released"]


def test_what_comes_back_into_a_held_job_is_held(bench):
    bench.host()
    job = bench.submit()
    bench.dispatch()
    hold(bench, job.id)

    bench.lose()

    assert job.state_of(0) == "held"


def test_release_ends_the_hold_of_a_submission(bench):
    bench.host()
    job = bench.submit(hold=True)
    assert bench.plan() == []

    release(bench, job.id)

    assert bench.dispatch() == [("h1", (job.id, 0, 1))]


def test_only_jobs_that_change_are_answered(bench):
    bench.host()
    over, held, free = bench.submit(), bench.submit(hold=True), bench.submit()
    bench.dispatch()
    bench.finish((over.id, 0, 1))

    assert hold(bench, over.id, held.id, free.id, free.id) == (free.id,)
    assert release(bench, over.id, held.id) == (held.id,)


# ---------------------------------------------------------------- suspend, resume


def test_nothing_of_a_suspended_job_begins_and_all_of_it_says_so(bench):
    bench.host(slots=1)
    job = bench.submit(3, first_index=5)
    bench.dispatch()
    bench.start((job.id, 5, 1))

    assert suspend(bench, job.id, reason="disk full") == (job.id,)

    at = job.suspension.at
    words = f"suspended by ann since 1970-01-01 00:{int(at) // 60:02d}:{int(at) % 60:02d} UTC: disk full"
    assert (job.state(), job_view(bench.state, job).reason) == ("suspended", words)
    assert [view.state for view in task_views(bench.state, job)] == ["suspended"] * 3
    assert [view.reason for view in task_views(bench.state, job, "suspended")] == [words] * 3
    assert task_views(bench.state, job, "running") == task_views(bench.state, job, "queued") == []
    assert explain(bench.state, job) == ["suspended: 1 tasks on hosts, 2 queued", words]
    assert f"stands still: its job is {words}" in explain(bench.state, job, 5)
    assert words in explain(bench.state, job, 6)
    bench.host("h2")
    assert bench.plan() == []
    assert bench.assign((job.id, 6, 1), host="h2").refused == (((job.id, 6, 1), "suspended"),)
    assert resume(bench, job.id) == (job.id,)
    assert [job.state_of(index) for index in (5, 6, 7)] == ["running", "queued", "queued"]
    assert bench.dispatch() == [("h2", (job.id, 6, 1)), ("h2", (job.id, 7, 1))]
    assert [event.kind for event in bench.events() if event.kind.startswith("job.s")] == [
        "job.submitted", "job.suspended",
    ]  # fmt: skip
    assert bench.kinds().count("job.resumed") == 1


def test_what_comes_back_into_a_suspended_job_waits_there(bench):
    """Its host may be lost, or it had not begun: neither runs it before it is resumed."""
    bench.host()
    bench.host("h2")
    job = bench.submit(2)
    bench.dispatch(hosts=["h1"])
    bench.start((job.id, 0, 1))
    suspend(bench, job.id)

    bench.finish((job.id, 1, 1), outcome="returned")
    bench.lose()

    assert [job.state_of(index) for index in (0, 1)] == ["suspended", "suspended"]
    assert (job.state(), job.queued, bench.plan()) == ("suspended", 2, [])
    resume(bench, job.id)
    assert bench.dispatch(hosts=["h2"]) == [("h2", (job.id, 0, 2)), ("h2", (job.id, 1, 2))]


def test_a_suspended_job_that_is_cancelled_is_not_suspended_any_more(bench):
    bench.host(slots=1)
    job = bench.submit(2)
    bench.dispatch()
    bench.start((job.id, 0, 1))
    suspend(bench, job.id)

    bench.cancel(job.id)

    assert (job.state(), job.suspension) == ("running", None)
    assert [job.state_of(index) for index in (0, 1)] == ["running", "cancelled"]
    bench.finish((job.id, 0, 1), outcome="cancelled")
    assert job.state() == "cancelled"
    assert suspend(bench, job.id) == ()


def test_a_job_that_ends_while_it_is_suspended_runs_again_when_it_is_retried(bench):
    bench.host()
    job = bench.submit(restartable=False)
    bench.dispatch()
    suspend(bench, job.id)
    bench.lose()
    assert (job.state(), job.suspension) == ("lost", None)
    bench.up(life=2)

    retry(bench, job.id)

    assert bench.dispatch() == [("h1", (job.id, 0, 2))]


def test_suspended_and_held_needs_both_lifted(bench):
    bench.host()
    job = bench.submit(hold=True)
    suspend(bench, job.id)

    assert explain(bench.state, job)[2] == "held until it is released, too"
    resume(bench, job.id)
    assert (job.state(), bench.plan()) == ("held", [])
    suspend(bench, job.id)
    release(bench, job.id)
    assert (job.state(), bench.plan()) == ("suspended", [])
    resume(bench, job.id)
    assert bench.dispatch() == [("h1", (job.id, 0, 1))]


def test_the_same_request_suspends_once(bench):
    job = bench.submit()
    assert suspend(bench, job.id, request="r") == (job.id,)
    assert suspend(bench, job.id) == ()
    resume(bench, job.id)

    assert suspend(bench, job.id, request="r") == (job.id,)

    assert job.suspension is None
    assert bench.refused(jc.SuspendJobs("", (job.id,), 5.0, "ann", "x" * 4097)).message.startswith("reason: ")


# ---------------------------------------------------------------- all of these


@pytest.mark.parametrize("kind", [jc.HoldJobs, jc.ReleaseJobs, jc.SuspendJobs, jc.ResumeJobs, jc.RetryJobs])
def test_all_or_none(bench, kind):
    job = bench.submit(hold=kind is jc.ReleaseJobs)

    refusal = bench.refused(kind("r", (job.id, 77), bench.tick()))

    assert (refusal.code, refusal.message) == ("unknown_job", "there is no job 77")
    assert bench.refused(kind("r", (job.id,), bench.tick(), "x" * 201)).message.startswith("by: ")


def test_the_same_request_holds_once(bench):
    job = bench.submit()
    assert hold(bench, job.id, request="r") == (job.id,)
    release(bench, job.id)

    assert hold(bench, job.id, request="r") == (job.id,)

    assert not job.held


# ---------------------------------------------------------------- set


def test_a_new_priority_counts_at_once(bench):
    bench.host(slots=1)
    first, second = bench.submit(), bench.submit()

    assert change(bench, second.id, priority=5, request="r") == (second.id,)

    assert bench.dispatch() == [("h1", (second.id, 0, 1))]
    assert first.spec.priority == 0
    assert job_view(bench.state, second).priority == 5
    assert change(bench, second.id, priority=5, request="r") == (second.id,)
    assert bench.events()[-2].kind == "job.set"
    assert bench.events()[-2].detail == {"by": "ann", "priority": 5}


def test_name_and_tags_are_changed_and_the_rest_stays(bench):
    job = bench.submit(name="a", tags=("x", "y"), priority=3)

    change(bench, job.id, name="b", tags=())

    assert (job.spec.name, job.spec.tags, job.spec.priority, job.spec.argv) == ("b", (), 3, ("true",))


def test_what_is_on_hosts_counts_under_the_new_tags(bench):
    bench.ok(c.SetLimit("", "tag", "db", 1, bench.tick()))
    bench.host(slots=4)
    job = bench.submit(2, tags=("db",))
    assert len(bench.dispatch()) == 1

    change(bench, job.id, tags=("x",))
    assert len(bench.dispatch()) == 1
    change(bench, job.id, tags=("db",))

    bench.submit(1, tags=("db",))
    assert bench.dispatch() == []
    assert bench.state.limits.tasks == {("tag", "db"): 2}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "set: 'nothing' given; allowed: at least one of priority, name, tags"),
        ({"priority": 10**7}, "priority: 10000000 given; allowed: -1000000 to 1000000"),
        ({"name": "a\0"}, "name: 'a\\x00' given"),
        ({"tags": ("",)}, "tags: [''] given"),
    ],
)
def test_bad_changes_are_refused(bench, changes, said):
    job = bench.submit()

    assert said in bench.refused(jc.SetJobs("", (job.id,), bench.tick(), **changes)).message


def test_a_job_that_is_over_is_left_alone(bench):
    job = bench.submit()
    bench.cancel(job.id)

    assert change(bench, job.id, name="b") == ()
    assert job.spec.name == ""


# ---------------------------------------------------------------- retry


def ended(bench, *outcomes, **spec):
    """Returns a job whose tasks ended so."""
    bench.host(slots=len(outcomes))
    job = bench.submit(len(outcomes), **spec)
    bench.dispatch()
    for index, outcome in enumerate(outcomes):
        bench.finish((job.id, index, 1), outcome=outcome, exit_code=0 if outcome == "succeeded" else 3, error="boom")
    return job


def test_the_failed_tasks_run_again_and_no_others(bench):
    job = ended(bench, "succeeded", "failed", "timed_out")
    assert (job.state(), job.exit_code, job.first_bad) == ("failed", 3, 1)

    assert retry(bench, job.id) == (job.id,)

    assert not job.is_final
    assert [job.state_of(index) for index in range(3)] == ["succeeded", "queued", "queued"]
    assert job.counts().queued == 2
    assert bench.dispatch() == [("h1", (job.id, 1, 2)), ("h1", (job.id, 2, 2))]
    bench.finish((job.id, 1, 2), (job.id, 2, 2), exit_code=0)
    assert (job.state(), job.exit_code, job.first_bad) == ("succeeded", 0, -1)
    kinds = [kind for kind in bench.kinds() if kind.startswith("job.")]
    assert kinds == ["job.submitted", "job.finished", "job.retried", "job.finished"]


def test_the_attempts_before_are_remembered(bench):
    job = ended(bench, "failed")

    retry(bench, job.id)

    view = task_view(bench.state, job, 0)
    assert (view.state, view.attempt) == ("queued", 1)
    assert [(one.number, one.host, one.state, one.reason) for one in view.attempts] == [(1, "h1", "failed", "boom")]
    assert "attempt 1 on h1: failed: boom; queued again" in explain(bench.state, job, 0)


def test_lost_tasks_are_retried(bench):
    bench.host()
    job = bench.submit(restartable=False)
    bench.dispatch()
    bench.lose()
    assert job.state() == "lost"

    retry(bench, job.id)

    bench.up(life=2)
    assert bench.dispatch() == [("h1", (job.id, 0, 2))]


def test_readers_keep_their_places(bench):
    """The order of completion is only ever appended to; what counts no more says so."""
    job = ended(bench, "failed", "succeeded", "failed")
    retry(bench, job.id)
    bench.dispatch()
    bench.finish((job.id, 2, 2))

    order = job.finished_order
    assert list(order) == [0, 1, 2, 2]
    assert [order.counts_at(place) for place in range(4)] == [False, True, False, True]
    bench.check_snapshot()
    restored = bench.twin.state.jobs[job.id]
    assert [restored.finished_order.counts_at(place) for place in range(4)] == [False, True, False, True]
    assert restored.outcome(0) is None
    assert restored.counts() == job.counts()


def test_a_retried_job_can_be_cancelled(bench):
    job = ended(bench, "failed", "succeeded", "failed")
    retry(bench, job.id)

    bench.cancel(job.id)

    assert job.state() == "cancelled"
    assert [job.state_of(index) for index in range(3)] == ["cancelled", "succeeded", "cancelled"]


def test_a_job_that_lives_is_retried_too(bench):
    bench.host(slots=2)
    job = bench.submit(2)
    bench.dispatch()
    bench.finish((job.id, 0, 1), outcome="failed")

    assert retry(bench, job.id, request="r") == (job.id,)
    assert retry(bench, job.id, request="r") == (job.id,)

    assert bench.dispatch() == [("h1", (job.id, 0, 2))]


def test_nothing_failed_nothing_changes(bench):
    job = ended(bench, "succeeded")

    assert retry(bench, job.id) == ()
    assert job.is_final


def test_a_cancelled_job_is_refused_by_name(bench):
    job = ended(bench, "failed", "failed")
    other = bench.submit()
    bench.cancel(other.id)

    refusal = bench.refused(jc.RetryJobs("", (job.id, other.id), bench.tick()))

    assert refusal.code == "job_cancelled"
    assert "job 2 was cancelled" in refusal.message
    assert job.is_final


def test_a_forgotten_job_is_unknown(bench):
    job = ended(bench, "failed")
    bench.ok(c.ForgetJobs((job.id,), bench.tick()))

    assert bench.refused(jc.RetryJobs("", (job.id,), bench.tick())).code == "unknown_job"


def test_one_that_is_retried_and_cancelled_while_it_holds_off_is_restored_as_cancelled(bench):
    """Its first end is still in the order of completion; the second is one of the range that was cancelled."""
    bench.host()
    job = bench.submit(1, backoff_s=60.0, retries=1)
    for attempt in (1, 2):
        bench.dispatch()
        bench.finish((job.id, 0, attempt), outcome="failed")
        bench.ok(jc.PassTime(bench.tick() + 1000.0, 10))
    retry(bench, job.id)
    bench.dispatch()
    bench.finish((job.id, 0, 3), outcome="failed")
    assert job.state() in ("blocked", "failed")
    bench.cancel(job.id)

    bench.check_snapshot()


def test_a_replica_that_was_restored_stores_what_follows_a_retry_alike(bench):
    """A job that had ended has given back what it knew of its records; one from a snapshot knows it."""
    bench.host()
    job = bench.submit(2, retries=1, retry_exit_codes=(7,))
    bench.assign((job.id, 0, 1), (job.id, 1, 1))
    bench.finish((job.id, 0, 1), outcome="failed", exit_code=7)
    bench.finish((job.id, 1, 1), outcome="failed", exit_code=1)
    bench.assign((job.id, 0, 2))
    bench.finish((job.id, 0, 2), exit_code=0)
    retry(bench, job.id)
    bench.check_snapshot()

    bench.assign((job.id, 1, 2))
    bench.finish((job.id, 1, 2), exit_code=0)
    bench.check_snapshot()
