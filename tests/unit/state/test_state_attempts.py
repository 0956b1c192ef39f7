"""Attempts: at most one lives, each ends once, stale reports change nothing, retries are counted."""

from __future__ import annotations

import pytest

from depalma.model import Payload, Report
from depalma.state import commands as c
from depalma.state import job_commands as jc
from depalma.state.explain import explain
from depalma.state.restoring import blobs_of
from depalma.state.stories import KEEP_TAILS
from depalma.tails import OutputTail, not_kept


def test_an_attempt_from_assignment_to_result(bench):
    """The whole life of a task in the good case."""
    bench.host("h1")
    job = bench.submit(2)

    given = bench.assign((1, 0, 1))
    assert given.accepted == ((1, 0, 1),)
    assert given.fence == bench.state.version
    assert job.state_of(0) == "assigned"
    assert bench.state.hosts["h1"].used == 1
    bench.start((1, 0, 1))
    assert job.state_of(0) == "running"
    assert job.running[0].started_at == bench.now - 1
    report = Report(1, 0, 1, "succeeded", 0, result=Payload(inline=b"v"), started_at=5.0, finished_at=6.0,
                    code_index=3, code_digest="d")  # fmt: skip
    done = bench.ok(c.FinishTasks("h1", "h1-1", (report,), bench.tick()))
    assert done.recorded == ((1, 0, 1),)
    record = job.outcome(0)
    assert (record.state, record.attempt, record.host, record.exit_code) == ("succeeded", 1, "h1", 0)
    assert (record.started_at, record.finished_at) == (5.0, 6.0)
    assert (record.result, record.code_index, record.code_digest) == (Payload(inline=b"v"), 3, "d")
    assert bench.state.hosts["h1"].attempts == {}
    assert bench.state.hosts["h1"].used == 0
    assert job.outcome(1) is None
    assert job.outcome(5) is None


def test_times_that_are_not_told_come_from_the_log(bench):
    """Short tasks are never reported as started; the end is then the command's time."""
    bench.host()
    job = bench.submit(2)
    bench.assign((1, 0, 1), (1, 1, 1))
    bench.start((1, 1, 1))
    started = bench.now - 1

    bench.finish((1, 0, 1), (1, 1, 1))
    assert (job.outcome(0).started_at, job.outcome(0).finished_at) == (None, bench.now)
    assert job.outcome(1).started_at == started
    assert job.started_at == started
    assert job.finished_at == bench.now


@pytest.mark.parametrize(
    ("ref", "reason"),
    [
        ((9, 0, 1), "unknown_job"),
        ((1, 2, 1), "unknown_task"),
        ((1, -1, 1), "unknown_task"),
        ((1, 0, 2), "stale_attempt"),
        ((1, 0, 0), "stale_attempt"),
        ((2, 0, 1), "held"),
        ((3, 0, 1), "cancelled"),
        ((4, 0, 1), "constraint"),
        ((5, 0, 1), "constraint"),
        ((6, 0, 1), "constraint"),
        ((7, 1, 1), "job_limit"),
        ((7, 0, 1), "job_limit"),
        ((8, 0, 1), "code_lag"),
    ],
)
def test_each_task_of_a_batch_is_guarded(bench, ref, reason):
    """The others of the batch are accepted."""
    bench.host("h1", groups=("g",))
    bench.submit(2)
    bench.submit(hold=True)
    bench.submit()
    bench.cancel(3)
    bench.submit(group="other")
    bench.submit(on_host="h2")
    bench.submit(cpus=3)
    bench.submit(3, max_running=1)
    bench.assign((7, 2, 1))
    bench.ok(c.AddCode("", "pkg", "module", "a" * 64, 1, "ann", bench.tick()))
    bench.submit()

    outcome = bench.assign(ref, (1, 1, 1))
    assert outcome.refused == ((ref, reason),)
    assert outcome.accepted == ((1, 1, 1),)


def test_the_same_task_twice_in_a_batch(bench):
    """One attempt comes of it."""
    bench.host()
    bench.submit()

    assert bench.assign((1, 0, 1), (1, 0, 1)).refused == (((1, 0, 1), "not_queued"),)
    assert bench.assign((1, 0, 2)).refused == (((1, 0, 2), "not_queued"),)


@pytest.mark.parametrize(("host", "life", "reason"), [("h9", 1, "unknown_host"), ("h1", 2, "stale_incarnation")])
def test_an_assignment_to_a_host_that_is_not_that_one(bench, host, life, reason):
    """All of it is refused."""
    bench.host()
    bench.submit()

    assert bench.assign((1, 0, 1), host=host, life=life).refused == (((1, 0, 1), reason),)


def test_an_assignment_to_a_silent_host_is_refused(bench):
    """The plan was made before."""
    bench.host()
    bench.submit()
    bench.ok(c.HostSuspect("h1", "h1-1", "quiet", bench.tick()))

    assert bench.assign((1, 0, 1)).refused == (((1, 0, 1), "host_not_up"),)


def test_an_older_leader_assigns_nothing(bench):
    """Once one of a newer term has."""
    bench.host()
    bench.submit(2)
    bench.assign((1, 0, 1), term=4)

    refusal = bench.refused(c.AssignTasks(3, "h1", "h1-1", ((1, 1, 1),), bench.tick()))
    assert refusal.code == "stale_term"
    assert bench.assign((1, 1, 1), term=4).accepted


def test_a_late_report_of_a_lost_host_is_stale(bench):
    """A report for attempt 1 changes nothing once attempt 2 runs elsewhere."""
    bench.host("h1")
    bench.host("h2")
    job = bench.submit()
    bench.assign((1, 0, 1))
    bench.lose("h1")
    bench.assign((1, 0, 2), host="h2")

    for ref in ((1, 0, 1), (1, 0, 2)):
        outcome = bench.finish(ref, host="h1")
        assert outcome.stale == (ref,)
        assert outcome.recorded == ()
    assert bench.start((1, 0, 1), host="h1").stale == ((1, 0, 1),)
    assert job.state_of(0) == "assigned"
    assert bench.finish((1, 0, 2), host="h2").recorded == ((1, 0, 2),)


def test_a_report_is_recorded_once(bench):
    """Agents send again until they know."""
    bench.host()
    job = bench.submit()
    bench.assign((1, 0, 1))
    bench.finish((1, 0, 1))

    assert bench.finish((1, 0, 1), outcome="failed").stale == ((1, 0, 1),)
    assert job.state() == "succeeded"
    assert bench.finish((1, 0, 1), (1, 0, 1)).stale == ((1, 0, 1), (1, 0, 1))


def test_a_start_told_twice(bench):
    """The first time counts; both are known."""
    bench.host()
    job = bench.submit()
    bench.assign((1, 0, 1))
    assert bench.start((1, 0, 1)).recorded == ((1, 0, 1),)
    first = job.running[0].started_at

    assert bench.start((1, 0, 1)).recorded == ((1, 0, 1),)
    assert job.running[0].started_at == first
    assert bench.kinds().count("task.started") == 1


def test_reports_for_an_unknown_host_are_refused(bench):
    """Start and finish."""
    assert bench.refused(c.StartTasks("h9", "x", (), 1.0)).code == "unknown_host"
    assert bench.refused(c.FinishTasks("h9", "x", (), 1.0)).code == "unknown_host"


@pytest.mark.parametrize("outcome", ["failed", "timed_out"])
def test_retries_are_counted(bench, outcome):
    """`retries` more attempts, then it is final; a lost host and a returned task do not count."""
    bench.host("h1")
    job = bench.submit(retries=2)
    bench.assign((1, 0, 1))
    bench.finish((1, 0, 1), outcome=outcome, error="one")
    bench.assign((1, 0, 2))
    bench.finish((1, 0, 2), outcome="returned")
    bench.assign((1, 0, 3))
    bench.up("h1", life=2)
    bench.assign((1, 0, 4), life=2)
    bench.finish((1, 0, 4), outcome=outcome, error="two", life=2)
    assert job.state_of(0) == "queued"
    assert job.last_attempt(0) == 4
    bench.assign((1, 0, 5), life=2)
    bench.finish((1, 0, 5), outcome=outcome, error="three", life=2)

    assert job.state() == job.state_of(0) == outcome
    assert [past.state for past in job.stories[0].attempts] == [outcome, "returned", "lost", outcome]
    assert job.outcome(0).error == "three"
    assert job.last_attempt(0) == 5


def test_a_requeued_task_goes_first(bench):
    """Order is by index; a hole that was never handed out is found too."""
    bench.host()
    job = bench.submit(6, retries=1)
    bench.assign((1, 0, 1), (1, 1, 1), (1, 4, 1))
    bench.finish((1, 1, 1), outcome="failed")
    assert list(job.queued_positions()) == [1, 2, 3, 5]

    bench.finish((1, 4, 1), outcome="failed")
    assert list(job.queued_positions()) == [1, 2, 3, 4, 5]
    bench.assign((1, 2, 1), (1, 3, 1))
    assert list(job.queued_positions()) == [1, 4, 5]
    bench.assign((1, 1, 2), (1, 4, 2), (1, 5, 1))
    assert list(job.queued_positions()) == []


def test_a_story_is_bounded(bench):
    """A task that is given back for ever does not fill the state."""
    bench.host()
    job = bench.submit()
    for number in range(1, 41):
        bench.assign((1, 0, number))
        bench.finish((1, 0, number), outcome="returned", error="x" * 5000)

    story = job.stories[0]
    assert story.last == 40
    assert len(story.attempts) == 20
    assert len(story.attempts[0].reason) == 1000


def test_a_long_error_keeps_its_end(bench):
    """The last lines of a traceback tell most."""
    bench.host()
    job = bench.submit()
    bench.assign((1, 0, 1))
    bench.finish((1, 0, 1), outcome="failed", error="x" * 50_000 + "the end")

    assert len(job.outcome(0).error) < 17_000
    assert job.outcome(0).error.endswith("the end")


def test_an_outcome_of_a_newer_agent_is_a_failure(bench):
    """The attempt is over in any case; to refuse the report would keep the task for ever."""
    bench.host()
    job = bench.submit()
    bench.assign((1, 0, 1))
    bench.finish((1, 0, 1), outcome="evaporated")

    assert job.state() == "failed"


def test_a_task_that_may_not_run_again_is_lost(bench):
    """With its host, whether or not it was known to have started."""
    bench.host()
    job = bench.submit(3, restartable=False)
    bench.assign((1, 0, 1), (1, 1, 1))
    bench.start((1, 0, 1))
    bench.lose()

    assert [job.state_of(i) for i in range(3)] == ["lost", "lost", "queued"]
    assert job.outcome(0).error == "host h1 was lost: silent"
    assert bench.kinds().count("task.lost") == 2
    assert job.first_bad == 0


@pytest.mark.parametrize(
    ("endings", "state", "code"),
    [
        (["succeeded:0", "succeeded:0"], "succeeded", 0),
        (["succeeded:0", "failed:3"], "failed", 3),
        (["failed:4", "failed:3"], "failed", 4),
        (["failed:", "succeeded:0"], "failed", None),
        (["timed_out:", "succeeded:0"], "timed_out", None),
        (["timed_out:143", "failed:2"], "failed", 143),
        (["cancelled:", "succeeded:0"], "cancelled", None),
        (["cancelled:", "failed:7"], "failed", 7),
    ],
)
def test_the_state_and_exit_code_of_a_job(bench, endings, state, code):
    """The worst task decides; the exit code is the first in order of completion that is not 0."""
    bench.host()
    job = bench.submit(len(endings))
    bench.assign(*((1, i, 1) for i in range(len(endings))))
    assert job.exit_code is None
    for index, ending in enumerate(endings):
        outcome, exit_code = ending.split(":")
        bench.finish((1, index, 1), outcome=outcome, exit_code=int(exit_code) if exit_code else None)

    assert job.state() == state
    assert job.exit_code == code


def test_a_signal_is_an_exit_code_too(bench):
    """As shells have it."""
    bench.host()
    job = bench.submit()
    bench.assign((1, 0, 1))
    bench.finish((1, 0, 1), outcome="failed", signal=9)

    assert job.exit_code == 137


def test_function_jobs_have_no_exit_code(bench):
    """They have results."""
    bench.host()
    job = bench.submit(kind="function", argv=(), function="pkg:f")
    bench.assign((1, 0, 1))
    bench.finish((1, 0, 1))

    assert job.exit_code is None


@pytest.mark.parametrize(
    ("outcome", "state"),
    [("failed", "cancelled"), ("timed_out", "cancelled"), ("returned", "cancelled"), ("succeeded", "succeeded")],
)
def test_no_retry_in_a_cancelled_job(bench, outcome, state):
    """What would be queued again ends as cancelled; what succeeded before the kill came has succeeded."""
    bench.host()
    job = bench.submit(retries=3)
    bench.assign((1, 0, 1))
    bench.cancel(1)
    bench.finish((1, 0, 1), outcome=outcome)

    assert job.state_of(0) == state
    assert job.state() == "cancelled"


def test_slots_are_counted_by_weight(bench):
    """A task takes as many slots as it asks for CPUs, parts of one included."""
    host = bench.host(slots=4)
    bench.submit(cpus=2.5)
    bench.submit(cpus=0.25)
    bench.assign((1, 0, 1), (2, 0, 1))
    assert host.used == 2.75

    bench.finish((1, 0, 1))
    assert host.used == 0.25


def test_results_that_are_equal_are_one_object(bench):
    """A million Nones cost one."""
    bench.host()
    job = bench.submit(3)
    bench.assign((1, 0, 1), (1, 1, 1), (1, 2, 1))
    for index in range(3):
        bench.finish((1, index, 1), result=Payload(inline=b"N."))

    assert job.outcome(0).result is job.outcome(2).result


def test_the_end_of_output_is_named_as_long_as_its_attempt_matters(bench):
    """That of a task's last attempt and of some before it; nothing of a job that is forgotten."""
    bench.host()
    job = bench.submit(retries=KEEP_TAILS + 1)
    tails = [OutputTail(digest=f"{number:064}", item=number) for number in range(KEEP_TAILS + 2)]
    for number, tail in enumerate(tails, 1):
        bench.assign((1, 0, number))
        bench.finish((1, 0, number), outcome="failed", exit_code=1, tail=tail)

    assert job.state() == "failed"
    assert job.end_of(0, KEEP_TAILS + 2) == ("failed", tails[-1])
    assert [job.end_of(0, number)[1] for number in range(2, KEEP_TAILS + 2)] == tails[1:-1]
    assert job.end_of(0, 1)[1].lost.startswith("only that of the last attempt")
    assert job.end_of(0, 99) == ("", None)
    assert blobs_of(bench.state) == {tail.digest for tail in tails[1:]}

    bench.ok(jc.RetryJobs("", (1,), bench.tick()))
    assert job.end_of(0, KEEP_TAILS + 2) == ("failed", tails[-1])
    bench.assign((1, 0, KEEP_TAILS + 3))
    bench.finish((1, 0, KEEP_TAILS + 3))
    assert job.end_of(0, KEEP_TAILS + 3) == ("succeeded", None)
    bench.ok(c.ForgetJobs((1,), bench.tick()))
    assert blobs_of(bench.state) == set()


def test_why_the_end_of_output_is_not_kept_is_told(bench):
    """The outcome stands all the same."""
    bench.host()
    job = bench.submit()
    bench.assign((1, 0, 1))
    bench.finish((1, 0, 1), tail=not_kept("no majority of masters took it"))

    assert job.state_of(0) == "succeeded"
    assert "output not kept by the masters: no majority of masters took it" in explain(bench.state, job, 0)
