"""Visits of running tasks: which task is meant, what is refused, and what is recorded."""

from __future__ import annotations

import pytest

from depalma.state import commands as c
from depalma.state import job_commands as jc
from depalma.state.machine import digest_of


def visit(bench, job, task=None, argv=(), request="", by="ann"):
    return bench.do(jc.VisitTask(request, job, task, argv, bench.tick(), by))


def refused(bench, job, task=None, argv=(), by="ann"):
    """Returns code and words of a refusal, which changes nothing."""
    bench.tick()
    before = digest_of(bench.state, version=False)
    outcome = visit(bench, job, task, argv, by=by)
    assert isinstance(outcome, c.Rejected), outcome
    assert digest_of(bench.state, version=False) == before
    return outcome.code, outcome.message


def test_who_was_where_with_what_is_an_event_and_nothing_else_changes(bench):
    bench.host()
    job = bench.submit(1)
    bench.assign((1, 0, 1))

    assert visit(bench, 1, argv=("sh", "-c", "ls"), request="r").value == (1, 0, 1)
    assert visit(bench, 1, argv=("sh", "-c", "ls"), request="r").value == (1, 0, 1)

    assert [kind for kind in bench.kinds() if kind.startswith("task.")] == ["task.assigned", "task.visited"]
    event = bench.events()[-1]
    assert (event.job, event.task, event.host) == (1, 0, "h1")
    assert event.detail == {"attempt": 1, "by": "ann", "command": "sh -c ls", "tty": False}
    assert job.state() == "running"


def test_the_one_that_runs_is_meant_if_no_task_is_named(bench):
    bench.host()
    bench.submit(3)
    assert refused(bench, 1) == ("not_running", "no task of job 1, which is queued, runs now")
    bench.assign((1, 1, 1))
    assert visit(bench, 1).value == (1, 1, 1)
    bench.assign((1, 2, 1))
    assert refused(bench, 1) == ("which_task", "2 tasks of job 1 run: name one of 1.1, 1.2")
    bench.start((1, 2, 1))
    assert visit(bench, 1).value == (1, 2, 1), "the other one has not begun"
    assert visit(bench, 1, 1).value == (1, 1, 1)


def test_many_are_not_all_named(bench):
    bench.host(slots=20)
    bench.submit(14)
    bench.assign(*((1, index, 1) for index in range(14)))
    assert refused(bench, 1)[1].endswith("name one of 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9 and 4 more")


def test_a_task_that_does_not_run_is_refused_with_its_state(bench):
    bench.host()
    bench.submit(2)
    bench.assign((1, 0, 1))
    assert refused(bench, 9) == ("unknown_job", "there is no job 9")
    assert refused(bench, 1, 7) == ("unknown_task", "job 1 has no task 7; it has 0 to 1")
    assert refused(bench, 1, 1) == ("not_running", "task 1.1 is queued; it can be entered only while it runs")
    bench.ok(jc.SuspendJobs("", (1,), bench.tick()))
    assert refused(bench, 1, 0)[1] == "task 1.0 is suspended, and so would be what enters it; resume it first"
    bench.ok(jc.ResumeJobs("", (1,), bench.tick()))
    bench.ok(c.CancelJobs("", (1,), bench.tick()))
    assert refused(bench, 1, 0) == ("not_running", "task 1.0 is being cancelled; it can be entered only while it runs")
    bench.finish((1, 0, 1), outcome="cancelled")
    assert refused(bench, 1, 0) == ("not_running", "task 1.0 is cancelled; it can be entered only while it runs")


def test_a_job_of_one_task_says_what_keeps_it_from_running(bench):
    bench.submit(1, hold=True)
    assert refused(bench, 1) == ("not_running", "task 1.0 is held; it can be entered only while it runs")


@pytest.mark.parametrize(
    ("argv", "by", "said"),
    [
        (("", "x"), "ann", "argv: ['', 'x'] given; allowed: the program's name first, or nothing for a shell"),
        (("x" * 70_000,), "ann", "argv: 'its words' given; allowed: at most 65536 characters together, no NUL"),
        (("a\0b",), "ann", "argv: 'its words' given; allowed: at most 65536 characters together, no NUL"),
        (("a",), "b" * 201, "allowed: at most 200 characters"),
    ],
)
def test_bad_words(bench, argv, by, said):
    bench.host()
    bench.submit(1)
    bench.assign((1, 0, 1))
    code, message = refused(bench, 1, 0, argv, by)
    assert code == "bad_field"
    assert said in message
