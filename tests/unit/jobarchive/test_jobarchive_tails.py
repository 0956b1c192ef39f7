"""What a job's record has of the ends of output: nothing, as their blobs go with the job."""

from __future__ import annotations

from depalma.jobarchive import record
from depalma.model import JobSpec, Report
from depalma.state.jobs import Attempt, Job
from depalma.state.restoring import blobs_of_job
from depalma.state.task_states import SUCCEEDED
from depalma.tails import OutputTail


def test_a_record_names_no_ends_of_output() -> None:
    """Also of more tasks than one slice of the work has."""
    count = 3000
    job = Job(1, JobSpec(kind="command", argv=("true",), count=count), 0, 1.0)
    for index in range(count):
        attempt = Attempt(1, "h1", "h1-1", 1.0, None, 1, "")
        job.assign(index, attempt)
        report = Report(1, index, 1, "succeeded", 0, tail=OutputTail(digest="a" * 64, item=index))
        job.finish(index, SUCCEEDED, attempt, report, 2.0)
    job.end(2.0)
    taking = record.take(job)
    raw = None
    try:
        while True:
            next(taking)
    except StopIteration as stop:
        raw = stop.value
    assert raw is not None

    again = record.unpack(record.pack(raw).detail)

    assert not any(blobs_of_job(again))
    assert [again.outcome(index).tail for index in (0, count - 1)] == [None, None]  # type: ignore[union-attr]
