"""Whole jobs: submitting, adding, closing, cancelling, forgetting; and requests that are made twice."""

from __future__ import annotations

import pytest

from depalma import items
from depalma.model import JobSpec, Payload
from depalma.state import commands as c
from depalma.state import requests

DIGEST = "ab" * 32


def packed(*texts: bytes) -> Payload:
    return Payload(inline=items.pack(texts))


def test_a_new_job_waits(bench):
    """Ids count from 1; all tasks are queued."""
    first, second = bench.submit(3, name="words"), bench.submit()

    assert (first.id, second.id) == (1, 2)
    assert first.state() == "queued"
    assert first.counts().queued == first.counts().total == 3
    assert first.submitted_at == bench.now - 1
    assert not first.is_final
    assert bench.kinds() == ["job.submitted", "job.submitted"]


def test_a_request_made_twice_makes_one_job(bench):
    """The client whose leader died asks again and gets the same answer."""
    job = bench.submit(request="r1")

    assert bench.ok(c.SubmitJob("r1", JobSpec(kind="command", argv=("true",)), bench.tick())) == job.id
    assert len(bench.state.jobs) == 1


def test_every_request_is_answered_the_same_again(bench):
    """AddTasks, CloseJob, CancelJobs, AddHost and AddCode, too; the id of one kind is not that of another."""
    job = bench.submit(0, open=True, request="r")
    add = c.AddTasks("r", job.id, packed(b"a", b"b"), 2, bench.tick())
    assert bench.ok(add) == bench.ok(add) == 0
    close = c.CloseJob("r", job.id, bench.tick())
    assert bench.ok(close) is bench.ok(close) is None
    cancel = c.CancelJobs("r", (job.id,), bench.tick())
    assert bench.ok(cancel) == bench.ok(cancel) == (job.id,)
    host = c.AddHost("r", "h1", (), {}, 0, 1, 0, bench.tick())
    assert bench.ok(host) is bench.ok(host) is None
    code = c.AddCode("r", "pkg", "module", DIGEST, 5, "ann", bench.tick())
    assert bench.ok(code) == bench.ok(code) == 1

    assert job.total == 2
    assert len(bench.state.code) == 1


def test_a_refused_request_may_be_made_again(bench):
    """Only what changed something is remembered."""
    bench.refused(c.CloseJob("r", 1, bench.tick()))
    bench.submit(open=True)

    bench.ok(c.CloseJob("r", 1, bench.tick()))
    assert not bench.state.jobs[1].open


def test_answers_are_kept_for_an_hour(bench):
    """By the times of the commands; after two hours of others they are gone."""
    job = bench.submit(request="old")
    for _ in range(3):
        bench.tick(requests.KEEP_S / 4)
        bench.submit(request=f"at {bench.now}")
    assert bench.ok(c.SubmitJob("old", job.spec, bench.now)) == job.id

    for _ in range(2):
        bench.tick(requests.KEEP_S)
        bench.submit(request=f"at {bench.now}")
    assert bench.ok(c.SubmitJob("old", job.spec, bench.now)) != job.id


def test_answers_are_bounded():
    """However many come: the latest ones are kept."""
    answers = requests.Answers()
    for number in range(requests.LIMIT * 2):
        answers.keep("submit", str(number), number, 1.0)

    assert len(answers.younger) + len(answers.older) <= requests.LIMIT
    assert answers.find("submit", str(requests.LIMIT * 2 - requests.LIMIT // 4)) is not None
    assert answers.find("submit", "1") is None


SPEC = JobSpec(kind="command", argv=("true",))
FUNCTION = JobSpec(kind="function", function="pkg:f")


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("argv", {"argv": ()}),
        ("argv", {"argv": ("",)}),
        ("argv", {"argv": ("a\0b",)}),
        ("argv", {"argv": ("x" * 200_000,)}),
        ("argv", {"kind": "function", "function": "f"}),
        ("function", {"function": "f"}),
        ("function", {"kind": "function", "argv": ()}),
        ("function", {"kind": "function", "argv": (), "function": "f", "function_pickle": Payload(inline=b"x")}),
        ("function_pickle", {"kind": "function", "argv": (), "function_pickle": Payload(inline=b"x", digest=DIGEST)}),
        ("function_pickle.digest", {"kind": "function", "argv": (), "function_pickle": Payload(digest="AB")}),
        ("function_pickle", {"kind": "function", "argv": (), "function_pickle": Payload(inline=b"x" * 100_000)}),
        ("function_pickle.size_bytes", {"kind": "function", "argv": (),
                                        "function_pickle": Payload(digest=DIGEST, size_bytes=-1)}),
        ("name", {"name": "x" * 5000}),
        ("cwd", {"cwd": "/a\0"}),
        ("group", {"group": "no such name"}),
        ("on_host", {"on_host": "-h"}),
        ("tags", {"tags": ("",)}),
        ("tags", {"tags": ("t",) * 101}),
        ("python", {"python": "2.7"}),
        ("env", {"env": {"A=B": ""}}),
        ("env", {"env": {"": "x"}}),
        ("env", {"env": {"A": "\0"}}),
        ("cpus", {"cpus": 0.0}),
        ("cpus", {"cpus": float("nan")}),
        ("cpus", {"cpus": float("inf")}),
        ("priority", {"priority": 10**7}),
        ("memory_bytes", {"memory_bytes": -1}),
        ("max_running", {"max_running": -1}),
        ("retries", {"retries": 1001}),
        ("timeout_s", {"timeout_s": -1.0}),
        ("timeout_s", {"timeout_s": float("nan")}),
        ("grace_s", {"grace_s": -0.1}),
        ("first_index", {"first_index": -1}),
        ("count", {"count": -1}),
        ("count", {"count": 10_000_001}),
        ("code_index", {"code_index": 1}),
        ("code_index", {"code_index": -2}),
        ("arguments", {"count": 0, "arguments": packed()}),
        ("arguments", {"count": 2, "arguments": packed(b"a")}),
        ("arguments", {"count": 1, "arguments": Payload(inline=b"junk")}),
        ("arguments", {"count": 1, "arguments": Payload()}),
        ("arguments", {"count": 2, "arguments": Payload(inline=packed(b"ab", b"c").inline.replace(
            b"\2\0\0\0\0\0\0\0", b"\7\0\0\0\0\0\0\0", 2))}),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(bench, field, spec):
    """With what was given and what is allowed; nothing is half submitted."""
    values = {"kind": "command", "argv": ("true",)} | spec

    refusal = bench.refused(c.SubmitJob("r", JobSpec(**values), 1.0))

    assert refusal.code == "bad_field"
    assert refusal.message.startswith(f"{field}: ")
    assert " given; allowed: " in refusal.message
    assert not bench.state.jobs
    assert bench.state.next_job == 1


@pytest.mark.parametrize("at", [float("nan"), float("inf"), -1.0])
def test_a_command_without_a_time_is_refused(bench, at):
    """No time may come from the replica itself, so a command must bring one."""
    assert bench.refused(c.SubmitJob("", SPEC, at)).message.startswith("at: ")


def test_a_long_request_id_is_refused(bench):
    """It would have to be kept for an hour."""
    assert bench.refused(c.SubmitJob("r" * 201, SPEC, 1.0)).message.startswith("request: ")


def test_function_jobs_are_accepted_in_their_three_forms(bench):
    """By name, by pickle, by arguments that carry the function."""
    for spec in (
        {"function": "pkg:f"},
        {"function_pickle": Payload(digest=DIGEST, size_bytes=9)},
        {"arguments": packed(b"f")},
    ):
        assert bench.submit(1, kind="function", argv=(), **spec).state() == "queued"


def test_arguments_are_found_by_index(bench):
    """Of the submission and of what was added later; arrays may start anywhere."""
    first, second, blob = packed(b"a", b"b"), packed(b"c"), Payload(digest=DIGEST, size_bytes=100)
    job = bench.submit(2, open=True, first_index=10, arguments=first)
    assert bench.ok(c.AddTasks("", job.id, second, 1, bench.tick())) == 12
    assert bench.ok(c.AddTasks("", job.id, blob, 5, bench.tick())) == 13

    assert job.argument_of(10) == (first, 0)
    assert job.argument_of(11) == (first, 1)
    assert job.argument_of(12) == (second, 0)
    assert job.argument_of(17) == (blob, 4)
    assert job.argument_of(18) == job.argument_of(9) == (None, -1)
    assert bench.submit(2).argument_of(1) == (None, -1)
    late = bench.submit(2, open=True)
    bench.ok(c.AddTasks("", late.id, second, 1, bench.tick()))
    assert late.argument_of(1) == (None, -1)
    assert late.argument_of(2) == (second, 0)


def test_an_open_job_ends_only_after_it_is_closed(bench):
    """With nothing left it is queued, so that more may come."""
    bench.host()
    job = bench.submit(0, open=True)
    bench.ok(c.AddTasks("", job.id, packed(b"a"), 1, bench.tick()))
    assert job.state() == "queued"
    bench.assign((1, 0, 1))
    assert job.state() == "running"
    bench.finish((1, 0, 1))
    assert job.state() == "queued"
    assert not job.is_final

    bench.ok(c.CloseJob("", job.id, bench.tick()))
    assert job.state() == "succeeded"
    assert job.finished_at == bench.now
    assert bench.refused(c.AddTasks("", job.id, packed(b"a"), 1, bench.tick())).code == "job_closed"
    bench.ok(c.CloseJob("", job.id, bench.tick()))


def test_wrong_additions_are_refused(bench):
    """Unknown job, wrong count, wrong arguments."""
    job = bench.submit(1, open=True)

    assert bench.refused(c.AddTasks("", 9, packed(b"a"), 1, 1.0)).code == "unknown_job"
    for count, arguments in (
        (0, packed()),
        (2, packed(b"a")),
        (1, Payload(inline=b"?")),
        (10_000_000, Payload(digest=DIGEST)),
    ):
        assert bench.refused(c.AddTasks("", job.id, arguments, count, 1.0)).code == "bad_field"
    assert bench.refused(c.CloseJob("", 9, 1.0)).code == "unknown_job"
    assert job.total == 1


def test_a_job_without_tasks_ends_at_once(bench):
    """A map over nothing has succeeded."""
    job = bench.submit(0)

    assert job.is_final
    assert job.state() == "succeeded"
    assert job.exit_code == 0


def test_cancelling_ends_what_waits_and_marks_what_runs(bench):
    """Running tasks end with their report, or with their host."""
    bench.host()
    job = bench.submit(5)
    bench.assign((1, 0, 1), (1, 1, 1))
    bench.start((1, 1, 1))

    assert bench.cancel(1) == (1,)
    assert job.cancelled
    assert [job.state_of(i) for i in range(5)] == ["assigned", "running", "cancelled", "cancelled", "cancelled"]
    assert list(job.finished_order) == [2, 3, 4]
    assert not job.is_final
    bench.finish((1, 1, 1), outcome="cancelled", signal=15)
    bench.lose()
    assert job.state() == "cancelled"
    assert list(job.finished_order) == [2, 3, 4, 1, 0]
    assert job.counts().cancelled == 5
    assert bench.cancel(1) == ()


def test_cancelling_again_names_the_job_and_changes_nothing(bench):
    """It was live, and still is."""
    bench.host()
    bench.submit(1)
    bench.assign((1, 0, 1))

    assert bench.cancel(1) == bench.cancel(1, 1) == (1,)
    assert bench.kinds().count("job.cancelled") == 1


def test_a_cancelled_job_takes_what_came_back_along(bench):
    """Tasks that wait for another attempt are cancelled too, with the attempts they had."""
    bench.host()
    job = bench.submit(6, retries=1)
    bench.assign((1, 0, 1), (1, 3, 1), (1, 4, 1))
    bench.finish((1, 0, 1), outcome="failed", error="no")
    bench.finish((1, 3, 1), outcome="returned")

    bench.cancel(1)
    assert sorted(job.finished_order) == [0, 1, 2, 3, 5]
    assert job.outcome(0).attempt == 1
    assert job.outcome(0).host == ""
    assert job.outcome(5).attempt == 0
    assert job.outcome(4) is None
    assert list(job.finished_order)[2:4] == job.finished_order[2:4]
    assert [job.finished_order[i] for i in range(5)] == list(job.finished_order)
    assert job.finished_order[-1] == 5
    with pytest.raises(IndexError):
        job.finished_order[5]


def test_cancelling_an_open_job_closes_it(bench):
    """Nobody waits for more."""
    job = bench.submit(1, open=True)

    bench.cancel(1)
    assert job.is_final
    assert job.state() == "cancelled"


def test_cancelling_an_unknown_job_changes_no_other(bench):
    """All or nothing."""
    job = bench.submit()

    assert bench.refused(c.CancelJobs("", (1, 7), 1.0)).message == "there is no job 7"
    assert not job.cancelled


def test_a_held_job_waits_and_can_be_cancelled(bench):
    """Nothing of it is handed out."""
    bench.host()
    job = bench.submit(2, hold=True)
    assert job.state() == job.state_of(1) == "held"
    assert bench.plan() == []
    assert bench.assign((1, 0, 1)).refused == (((1, 0, 1), "held"),)

    bench.cancel(1)
    assert job.state() == "cancelled"


def test_only_jobs_that_ended_are_forgotten(bench):
    """Ids are never used again."""
    bench.host()
    bench.submit()
    bench.submit()
    bench.assign((1, 0, 1))
    bench.finish((1, 0, 1))

    assert bench.ok(c.ForgetJobs((1, 2, 9), bench.tick())) == (1,)
    assert list(bench.state.jobs) == [2]
    assert bench.submit().id == 3


def test_ten_million_tasks_are_cheap_until_they_run(bench):
    """One byte a task; cancelling them is one stretch."""
    job = bench.submit(10_000_000)
    assert job.counts().queued == 10_000_000

    bench.cancel(1)
    assert job.counts().cancelled == 10_000_000
    assert job.outcome(9_999_999).state == "cancelled"
    assert job.finished_order[1_234_567] == 1_234_567
    assert job.finished_order[5:8] == [5, 6, 7]
    assert sum(map(len, bench.machine.snapshot())) < 10_100_000
