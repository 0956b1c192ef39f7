"""Finished jobs as the archive keeps them: what comes back is what the state told of them."""

from __future__ import annotations

import random
import zlib
from collections.abc import Generator
from typing import TypeVar

import msgspec
import pytest

from depalma.accounting import JobUse
from depalma.jobarchive import record as records
from depalma.jobarchive.record import BadRecord, Record
from depalma.jobarchive.usage import host_uses, job_use
from depalma.model import JobSpec, Payload, Report
from depalma.state import commands as c
from depalma.state import job_commands as jc
from depalma.state.cluster_state import ClusterState
from depalma.state.completions import Completions
from depalma.state.explain import explain
from depalma.state.jobs import Job
from depalma.state.task_states import SUCCEEDED
from depalma.state.views import job_view, task_views

T = TypeVar("T")
AT = 1_795_000_000.0


def result_of(work: Generator[None, None, T]) -> T:
    while True:
        try:
            next(work)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


def archived(job: Job) -> Record:
    raw = result_of(records.take(job))
    assert raw is not None
    return records.pack(raw)


def rounded(value: object) -> object:
    """The same with times to a ms, and without what the archive leaves out."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items() if key not in ("outputs", "archived")}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


def shown(job: Job) -> object:
    """Everything that users are told of a finished job."""
    state = ClusterState.empty()
    views = task_views(state, job, limit=10_000)
    lines = [explain(state, job, view.index) for view in views]
    return rounded(msgspec.to_builtins([job_view(state, job), views, explain(state, job), lines]))


def use_of(job: Job, now: float = AT) -> JobUse:
    return job_use(job, result_of(host_uses(job, now)), now)


@pytest.mark.long
def test_whatever_happened_to_a_job_is_told_alike_from_the_archive(make_bench, make_fuzzer):
    jobs = []
    for seed in range(8):
        bench = make_bench()
        bench.now = AT
        fuzzer = make_fuzzer(bench, random.Random(seed))
        for _ in range(400):
            bench.do(fuzzer.step())
        jobs += [(bench, job) for job in bench.state.jobs.values() if job.is_final]
    assert len(jobs) >= 20
    for bench, job in jobs:
        assert_told_alike(bench.state, job)


def assert_told_alike(state: ClusterState, job: Job) -> JobUse:
    before, use, view = shown(job), use_of(job), job_view(state, job)
    record = archived(job)
    assert shown(records.unpack(record.detail)) == before
    assert records.view(record) == msgspec.structs.replace(view, archived=True)
    assert records.use(record) == use
    return use


def test_attempts_that_were_tried_again_are_told_and_counted_once(bench):
    bench.now = AT
    bench.host("h1", slots=4)
    job = bench.submit(3, retries=1)
    refs = [(job.id, index, 1) for index in range(3)]
    bench.assign(*refs)
    bench.start(*refs)
    bench.now += 4
    bench.finish(refs[0], outcome="failed", error="no luck")  # tried again by itself
    bench.finish(refs[1])
    bench.finish(refs[2])
    for number in (2, 3):  # fails for good, and then somebody has it tried again
        ref = (job.id, 0, number)
        bench.assign(ref)
        bench.start(ref)
        bench.now += 2
        bench.finish(ref, outcome="failed" if number == 2 else "succeeded")
        if number == 2:
            assert job.is_final
            bench.ok(jc.RetryJobs("again", (job.id,), bench.now))
    assert job.is_final
    assert len(job.stories[0].attempts) == 2
    use = assert_told_alike(bench.state, job)
    assert (use.attempts, use.tasks, use.succeeded, use.failed) == (5, 3, 3, 0)
    assert use.attempt_s == pytest.approx(6 + 7 + 8 + 4 + 4, abs=0.001)


def finished(bench, spec: JobSpec, *, outcome: str = "succeeded", **report: object) -> Job:
    """A job whose tasks have all run on h1, for 10 s each."""
    bench.host("h1", slots=spec.count)
    number = bench.ok(c.SubmitJob("s", spec, bench.now))
    job = bench.state.jobs[number]
    refs = tuple((number, index, 1) for index in range(spec.count))
    bench.ok(c.AssignTasks(1, "h1", "h1-1", refs, bench.now))
    begin = bench.now + 1
    reports = tuple(
        Report(*ref, outcome, started_at=begin, finished_at=begin + 10, **report)  # type: ignore[arg-type]
        for ref in refs
    )
    bench.now += 11
    bench.ok(c.FinishTasks("h1", "h1-1", reports, bench.now))
    assert job.is_final
    return job


def test_secrets_arguments_results_and_outputs_are_not_kept(bench):
    bench.now = AT
    spec = JobSpec(kind="command", argv=("true",), env={"TOKEN": "very-secret"}, cwd="/data")
    job = finished(bench, spec, result=Payload(inline=b"the-result"), outputs=Payload(digest="a" * 64, size_bytes=5))
    raw = result_of(records.take(job))
    assert raw is not None
    packed = msgspec.msgpack.encode(raw.image) + records.pack(raw).head
    back = records.unpack(records.pack(result_of(records.take(job))).detail)  # type: ignore[arg-type]
    record = back.outcome(0)
    assert record is not None
    assert record.result is None
    assert record.outputs is None
    assert back.spec.env == {}
    assert back.spec.cwd == "/data"
    assert b"very-secret" not in packed
    assert b"the-result" not in packed


def test_a_job_that_runs_again_while_it_is_taken_is_not_taken(bench):
    job = finished(bench, JobSpec(kind="command", argv=("false",)), outcome="failed", exit_code=1)
    taking = records.take(job)
    next(taking)
    bench.ok(jc.RetryJobs("again", (job.id,), bench.now))
    assert result_of(taking) is None


def test_errors_of_many_tasks_are_cut_to_their_ends(bench):
    count = records.LONG_ERRORS + 5
    spec = JobSpec(kind="command", argv=("false",), count=count)
    job = finished(bench, spec, outcome="failed", error="x" * 5_000 + "\nValueError: the end")
    back = records.unpack(archived(job).detail)
    lengths = [len(back.outcome(index).error) for index in range(count)]  # type: ignore[union-attr]
    assert sum(length == records.ERROR_CHARACTERS for length in lengths) == records.LONG_ERRORS
    assert lengths.count(records.LINE_CHARACTERS) == 5
    assert all(back.outcome(index).error.endswith("ValueError: the end") for index in range(count))  # type: ignore[union-attr]


def test_a_large_job_takes_some_bytes_a_task(bench):
    """A map of tasks that end in about the order of their index, at times that have nothing round."""
    job = Job(1, JobSpec(kind="command", argv=("true", "{}"), count=20_000), 0, AT)
    chance, at = random.Random(1), AT
    job.done = Completions(0)
    for index in range(20_000):
        at += chance.expovariate(50)
        note = (1, f"h{chance.randrange(20)}", 0, None, "", 3, "d" * 64, "a slot was free", "", None)
        job.done.add(index, note, at, at + chance.expovariate(0.1), None)
        job.states[index] = SUCCEEDED
    job.tally[SUCCEEDED] = 20_000
    job.end(at + 100)
    record = archived(job)
    assert (len(record.head) + len(record.detail)) / 20_000 < 10
    back = records.unpack(record.detail)
    for index in (0, 7_777, 19_999):
        told, was = back.outcome(index), job.outcome(index)
        assert told is not None
        assert was is not None
        assert told.host == was.host
        assert told.started_at == pytest.approx(was.started_at, abs=1e-4)
        assert told.finished_at == pytest.approx(was.finished_at, abs=1e-4)


def test_use_counts_slots_memory_and_gpus_over_the_time_of_attempts(bench):
    spec = JobSpec(kind="command", argv=("true",), count=3, cpus=1.5, memory_bytes=1000, tags=("a",))
    use = use_of(finished(bench, spec))
    assert (use.attempts, use.attempt_s, use.slot_s, use.memory_byte_s, use.gpu_s) == (3, 30.0, 45.0, 30_000.0, 0.0)
    assert (use.wait_s, use.run_s, use.succeeded) == (1.0, 10.0, 3)
    (host,) = use.hosts
    assert (host.host, host.attempts, host.succeeded) == ("h1", 3, 3)


def test_damaged_details_are_refused(bench):
    record = archived(finished(bench, JobSpec(kind="command", argv=("true",))))
    for bad in (b"", record.detail[:-3], record.detail[:10] + b"\0\0" + record.detail[12:]):
        with pytest.raises(BadRecord):
            records.unpack(bad)
    newer = zlib.compress(b"\x09" + zlib.decompress(record.detail)[1:])
    with pytest.raises(BadRecord, match="upgrade"):
        records.unpack(newer)
