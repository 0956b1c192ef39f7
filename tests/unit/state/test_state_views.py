"""What programs and people see of the state, and the answers to "why"."""

from __future__ import annotations

import msgspec
import pytest

from depalma.model import Dependency, Load, Payload
from depalma.state import commands as c
from depalma.state import explain as explain_module
from depalma.state.explain import explain
from depalma.state.views import host_view, job_view, task_view, task_views


def test_a_job_as_programs_see_it(bench):
    """The fields of the contract."""
    bench.host()
    job = bench.submit(3, name="words", user="ann", priority=2, tags=("t",), group="", argv=("wc", "-l", "{}"))
    bench.assign((1, 0, 1))
    view = job_view(bench.state, job)

    assert (view.id, view.name, view.user, view.state, view.priority) == (1, "words", "ann", "running", 2)
    assert view.command == "wc -l {}"
    assert msgspec.to_builtins(view.tasks) == {
        "total": 3, "queued": 2, "running": 1, "succeeded": 0, "failed": 0, "cancelled": 0, "lost": 0,
    }  # fmt: skip
    assert (view.exit_code, view.reason, view.open) == (None, "", False)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"hold": True}, "held until it is released"),
        ({"group": "gpu"}, "no host is in group gpu"),
        ({"on_host": "h9"}, "no host h9 is known"),
        ({"count": 0, "open": True}, "open: waits for more tasks"),
        ({}, ""),
    ],
)
def test_why_a_job_waits_in_one_line(bench, spec, reason):
    """The reason of the job's view."""
    bench.host()
    job = bench.submit(**({"count": 1} | spec))

    assert job_view(bench.state, job).reason == reason


def test_why_a_job_failed_in_one_line(bench):
    """The first task that did."""
    bench.host()
    for error, exit_code, signal in (
        ("Traceback\n  x\nValueError: no", 1, None),
        ("", 3, None),
        ("", None, 9),
        ("", None, None),
    ):
        job = bench.submit(2)
        bench.assign((job.id, 0, 1), (job.id, 1, 1))
        bench.finish((job.id, 0, 1))
        bench.finish((job.id, 1, 1), outcome="failed", error=error, exit_code=exit_code, signal=signal)
    reasons = [job_view(bench.state, job).reason for job in bench.state.jobs.values()]

    assert reasons == [
        "task 1.1 failed: ValueError: no",
        "task 2.1 failed: exit code 3",
        "task 3.1 failed: signal 9",
        "task 4.1 failed",
    ]


def test_a_cancelled_job_says_by_whom(bench):
    """And whether it is over."""
    bench.host()
    job = bench.submit()
    bench.assign((1, 0, 1))
    bench.cancel(1)
    assert job_view(bench.state, job).reason == "cancelled by ann, still on hosts: 1"

    bench.finish((1, 0, 1), outcome="cancelled")
    assert job_view(bench.state, job).reason == "cancelled by ann"


def test_a_limit_of_its_own(bench):
    """Named when it holds tasks back."""
    bench.host()
    job = bench.submit(3, max_running=1)
    bench.assign((1, 0, 1))

    assert job_view(bench.state, job).reason == "1 of its tasks run, its own limit"


def test_a_task_with_its_attempts(bench):
    """Queued again, running, final: always with what was before."""
    bench.host()
    job = bench.submit(2, retries=1, first_index=5)
    bench.assign((1, 5, 1))
    bench.finish((1, 5, 1), outcome="failed", error="Boom")
    view = task_view(bench.state, job, 5)
    assert (view.id, view.state, view.attempt, view.host) == ("1.5", "queued", 1, "")
    assert view.reason == "queued again: Boom"
    bench.assign((1, 5, 2))
    bench.start((1, 5, 2))
    view = task_view(bench.state, job, 5)
    assert (view.state, view.attempt, view.host, view.reason) == ("running", 2, "h1", "because")
    bench.finish((1, 5, 2), outcome="failed", exit_code=3, error="Bang", code_digest="d")
    view = task_view(bench.state, job, 5)

    assert (view.state, view.exit_code, view.error, view.code_digest) == ("failed", 3, "Bang", "d")
    assert [(a.number, a.host, a.state, a.reason) for a in view.attempts] == [
        (1, "h1", "failed", "Boom"),
        (2, "h1", "failed", "Bang"),
    ]
    assert view.reason == "because"
    for index in (4, 7, -1):
        with pytest.raises(IndexError):
            task_view(bench.state, job, index)


def test_a_task_cancelled_in_the_queue(bench):
    """It never had a host."""
    job = bench.submit()
    bench.cancel(1)
    view = task_view(bench.state, job, 0)

    assert (view.state, view.attempt, view.host) == ("cancelled", 0, "")
    assert view.attempts == ()
    assert view.reason == "cancelled while it was queued"


def test_pages_of_tasks(bench):
    """By index, after an index, by state."""
    bench.host()
    job = bench.submit(10, first_index=100)
    bench.assign((1, 102, 1), (1, 105, 1))

    def indices(*arguments):
        return [view.index for view in task_views(bench.state, job, *arguments)]

    assert indices() == list(range(100, 110))
    assert indices(None, 104, 3) == [105, 106, 107]
    assert indices("assigned") == [102, 105]
    assert indices("queued", 103, 2) == [104, 106]
    assert indices("held") == indices("blocked") == indices("succeeded") == []
    assert indices(None, -1, 0) == []
    held = bench.submit(2, hold=True)
    assert [v.state for v in task_views(bench.state, held, "held")] == ["held", "held"]
    assert task_views(bench.state, held, "queued") == []


def test_a_host_as_programs_see_it(bench):
    """With what only the leader knows, as it was given."""
    host = bench.host(groups=("g",), priority=3)
    bench.submit()
    bench.assign((1, 0, 1))
    load = Load(cpu_percent=12.0)
    view = host_view(bench.state, host, load, 0.4)

    assert (view.name, view.state, view.groups, view.priority, view.slots, view.running) == (
        "h1", "up", ("g",), 3, 2, 1,
    )  # fmt: skip
    assert (view.cpus, view.load, view.last_seen_s, view.address) == (2, load, 0.4, "10.0.0.11")


def test_views_become_json(bench):
    """All of them, in all states."""
    bench.host()
    bench.submit(3, retries=1)
    bench.assign((1, 0, 1), (1, 1, 1))
    bench.finish((1, 0, 1), outcome="failed")
    job = bench.state.jobs[1]

    assert msgspec.json.encode(job_view(bench.state, job))
    assert msgspec.json.encode(task_views(bench.state, job))
    assert msgspec.json.encode(bench.events())


def test_explain_names_every_host(bench):
    """What it needs, host by host why not."""
    bench.host("h1", slots=2, groups=("g",))
    bench.host("h2", slots=4)
    bench.host("h3", slots=1, groups=("g",))
    bench.host("h4", slots=4, groups=("g",))
    bench.ok(c.AddHost("", "h5", ("g",), {}, 9, 4, 0, bench.tick()))
    bench.host("h6", slots=2, groups=("g",))
    bench.lose("h4")
    bench.submit()
    bench.assign((1, 0, 1))
    job = bench.submit(2, group="g", cpus=2)

    assert explain(bench.state, job) == [
        "queued: 0 tasks on hosts, 2 queued",
        "first in the queue",
        "h5: down: its agent has not connected yet",
        "h1: fits, but 1 of 2 slots are taken, a task needs 2",
        "h2: not in group g",
        "h3: has 1 slots, a task needs 2",
        "h4: lost: silent",
        "h6: fits, 2 of 2 slots are free",
    ]
    assert explain(bench.state, job, 1)[0] == "first in the queue"


def test_explain_speaks_of_code_memory_and_the_wanted_host(bench):
    """The same check that the dispatcher makes."""
    bench.host("h1")
    on_host = bench.submit(on_host="h2")
    memory = bench.submit(memory_bytes=1 << 40)
    bench.ok(c.AddCode("", "pkg", "module", "a" * 64, 1, "ann", bench.tick()))
    code = bench.submit()

    assert "h1: the job wants host h2" in explain(bench.state, on_host)
    assert any("bytes of memory" in line for line in explain(bench.state, memory))
    assert "h1: has code index 0, the job needs 1" in explain(bench.state, code)
    assert "jobs with queued tasks before it: 2 (2 of the same user)" in explain(bench.state, code)
    assert bench.plan() == []


def test_explain_without_hosts_and_with_very_many(bench, monkeypatch):
    """Both are said."""
    monkeypatch.setattr(explain_module, "_MAX_HOSTS", 2)
    job = bench.submit()
    assert "there are no hosts" in explain(bench.state, job)

    for number in range(4):
        bench.host(f"h{number}")
    assert explain(bench.state, job)[-1] == "… 4 hosts in all, 4 of them fit"


def test_explain_tells_the_whole_story_of_a_task(bench):
    """Where and why it ran, what went wrong, what happens next."""
    bench.host()
    job = bench.submit(2, retries=2)
    bench.assign((1, 0, 1))
    assert explain(bench.state, job, 0) == ["attempt 1 was given to h1", "placed there: because"]
    bench.start((1, 0, 1))
    bench.finish((1, 0, 1), outcome="failed", error="x\nBoom")
    assert explain(bench.state, job, 0)[:3] == [
        "attempt 1 on h1: failed: Boom; queued again",
        "1 of 2 retries are used",
        "first in the queue",
    ]
    bench.assign((1, 0, 2))
    bench.start((1, 0, 2))
    assert explain(bench.state, job, 0)[1:] == ["attempt 2 runs on h1", "placed there: because"]
    bench.cancel(1)
    assert explain(bench.state, job, 0)[-1] == "the job was cancelled by ann"
    assert explain(bench.state, job, 1) == ["cancelled while it was queued", "the job was cancelled by ann"]
    bench.finish((1, 0, 2), outcome="cancelled", signal=15)

    assert explain(bench.state, job, 0)[1:] == ["attempt 2 on h1: cancelled, signal 15", "placed there: because"]
    assert explain(bench.state, job)[0].startswith("cancelled: 0 of 2 tasks succeeded")
    with pytest.raises(IndexError):
        explain(bench.state, job, 2)


def test_explain_a_job_that_failed(bench):
    """With the first task that did."""
    bench.host()
    job = bench.submit()
    bench.assign((1, 0, 1))
    bench.finish((1, 0, 1), outcome="failed", exit_code=2)

    assert explain(bench.state, job) == [
        "failed: 0 of 1 tasks succeeded, 1 failed, 0 cancelled, 0 lost",
        "task 1.0: attempt 1 on h1: failed, exit code 2",
        "task 1.0: placed there: because",
    ]


def test_explain_an_open_and_a_cancelled_job(bench):
    """What it waits for, and that it was cancelled while tasks still live."""
    bench.host()
    job = bench.submit(0, open=True)
    assert explain(bench.state, job) == ["queued: 0 tasks on hosts, 0 queued", "open: waits for more tasks"]
    job = bench.submit(2)
    bench.assign((2, 0, 1))
    bench.cancel(2)
    assert explain(bench.state, job) == [
        "running: 1 tasks on hosts, 0 queued, 1 cancelled",
        "the job was cancelled by ann",
    ]

    bench.finish((2, 0, 1), outcome="cancelled")
    assert explain(bench.state, job)[1:] == ["the job was cancelled by ann"]


def test_explain_names_the_own_limit_and_the_hold(bench):
    """Neither is a matter of hosts."""
    bench.host()
    limited, held = bench.submit(3, max_running=1), bench.submit(1, hold=True)
    bench.assign((1, 0, 1))

    assert explain(bench.state, limited)[1] == "1 of its tasks run, its own limit"
    assert explain(bench.state, held, 0)[0] == "held until it is released"


def test_a_story_that_is_too_long_says_so(bench):
    """The oldest attempts are only counted."""
    bench.host()
    job = bench.submit()
    for number in range(1, 26):
        bench.assign((1, 0, number))
        bench.finish((1, 0, number), outcome="returned")

    assert explain(bench.state, job, 0)[:2] == [
        "5 earlier attempts are no longer kept",
        "attempt 6 on h1: returned; queued again",
    ]


def test_function_jobs_are_named_by_their_function(bench):
    """Or by their name, when a pickle has none."""
    views = [
        job_view(bench.state, bench.submit(1, kind="function", argv=(), **spec)).command
        for spec in (
            {"function": "pkg:f"},
            {"function_pickle": Payload(inline=b"x"), "name": "count"},
            {"function_pickle": Payload(inline=b"x")},
        )
    ]

    assert views == ["pkg:f", "count", "function"]


def test_a_job_that_succeeded_has_no_reason(bench):
    """Nothing to say."""
    bench.host()
    job = bench.submit()
    bench.assign((1, 0, 1))
    bench.finish((1, 0, 1))

    assert job_view(bench.state, job).reason == ""


def test_of_a_job_of_one_task_all_is_explained(bench):
    """Where it runs and why, what was before, and how it ended: nobody has to ask for its task."""
    bench.host()
    job = bench.submit(retries=1)
    bench.assign((1, 0, 1))
    assert explain(bench.state, job) == [
        "running: 1 tasks on hosts, 0 queued",
        "attempt 1 was given to h1",
        "placed there: because",
    ]
    bench.finish((1, 0, 1), outcome="failed", error="Boom")
    assert explain(bench.state, job)[:2] == [
        "queued: 0 tasks on hosts, 1 queued",
        "attempt 1 on h1: failed: Boom; queued again",
    ]
    bench.assign((1, 0, 2))
    bench.finish((1, 0, 2))
    assert explain(bench.state, job) == [
        "succeeded: 1 of 1 tasks succeeded, 0 failed, 0 cancelled, 0 lost",
        "task 1.0: attempt 1 on h1: failed: Boom; queued again",
        "task 1.0: attempt 2 on h1: succeeded",
        "task 1.0: placed there: because",
    ]


def test_an_open_job_of_one_task_says_that_it_is_open(bench):
    bench.host()
    job = bench.submit(1, open=True)
    bench.assign((1, 0, 1))
    bench.finish((1, 0, 1))
    assert "open: waits for more tasks" in explain(bench.state, job)


def test_a_job_that_only_tasks_were_cancelled_of_says_why(bench):
    """Nobody cancelled the job: what it waited for did."""
    bench.host()
    first = bench.submit(2)
    job = bench.submit(2, after=(Dependency(first.id, "ok", True),))
    bench.assign((1, 0, 1), (1, 1, 1))
    bench.finish((1, 0, 1))
    bench.finish((1, 1, 1), outcome="failed", exit_code=3)
    assert job_view(bench.state, job).reason == ""
    bench.assign((2, 0, 1))
    bench.finish((2, 0, 1))

    why = "waited for task 1.1 to succeed; it failed"
    assert (job.state(), job_view(bench.state, job).reason) == ("cancelled", f"task 2.1 cancelled: {why}")
    assert explain(bench.state, job)[1:] == ["task 2.1: cancelled while it was queued", f"task 2.1: {why}"]


def test_of_a_job_that_goes_on_it_is_said_what_has_ended_badly(bench):
    bench.host()
    job = bench.submit(3)
    bench.assign((1, 0, 1), (1, 1, 1))
    bench.finish((1, 0, 1), outcome="failed", error="Boom")
    assert explain(bench.state, job)[0] == "running: 1 tasks on hosts, 1 queued, 1 failed"
