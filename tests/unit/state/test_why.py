"""The whole answer to `explain`: needs, and what changed when; the same on a master that was restored."""

from __future__ import annotations

import re

import pytest

from depalma.state import commands as c
from depalma.state import job_commands as jc
from depalma.state.machine import Machine
from depalma.state.why import MOST, needs_line, why


def told(bench, job, index=None):
    """Returns the changes that are told, without their times; another master says the same."""
    lines = why(bench.state, job, index)
    other = Machine()
    other.restore(list(bench.machine.snapshot()))
    assert why(other.state, other.state.jobs[job.id], index) == lines
    dated = [line for line in lines if re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC ", line)]
    assert lines[-len(dated) :] == dated
    return [line[24:] for line in dated]


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ({}, "needs: 1 slot"),
        ({"cpus": 0.5, "gpus": 1}, "needs: 0.5 slots, 1 GPU"),
        ({"cpus": 2, "resources": {"tape": 2}, "group": "g"}, "needs: 2 slots, 2 tape, group g"),
        ({"on_host": "h1", "labels": ("a", "b>2")}, "needs: 1 slot, host h1, label a, label b>2"),
        ({"count": 2, "gang": -1, "prefer": ("c=d",)}, "needs: 1 slot; wishes c=d; 2 tasks at once"),
    ],
)
def test_what_it_needs(bench, spec, line):
    """In one line, as long as it is not over."""
    job = bench.submit(**spec)
    assert needs_line(job) == line
    assert line in why(bench.state, job)
    bench.cancel(job.id)
    assert line not in why(bench.state, job)


def test_what_changed_while_it_waited(bench):
    """What was done to the job, to hosts and to the order, oldest first; nothing from before it came."""
    bench.host("h0")
    job = bench.submit(2, on_host="h1")
    bench.ok(jc.SetJobs("", (job.id,), bench.tick(), "ann", priority=5))
    bench.ok(jc.HoldJobs("", (job.id,), bench.tick(), "bob"))
    bench.ok(jc.ReleaseJobs("", (job.id,), bench.tick(), "bob"))
    bench.ok(c.SetLimit("", "tag", "db", 2, bench.tick()))
    bench.ok(c.SetLimit("", "tag", "db", 0, bench.tick()))
    bench.ok(c.SetLimit("", "tag", "db", None, bench.tick()))
    bench.lose("h0")
    bench.submit()
    assert told(bench, job) == [
        "job.submitted (tasks 2)",
        "job.set (by ann, priority 5)",
        "job.held (by bob)",
        "job.released (by bob)",
        "limit.changed (kind tag, name db, limit 2)",
        "limit.changed (kind tag, name db, limit 0)",
        "limit.changed (kind tag, name db, limit none)",
        "host.lost: h0 (reason silent)",
    ]


def test_the_story_of_a_task(bench):
    """Where each attempt went and how it ended, with times; hosts are not told of what runs or is over."""
    bench.host("h1")
    job = bench.submit(2, retries=1)
    bench.dispatch()
    bench.start((1, 0, 1))
    bench.finish((1, 0, 1), outcome="failed")
    bench.dispatch()
    bench.ok(c.SetHost("", "h1", bench.tick(), priority=3))
    why_there = "reason 2 of 2 slots were free; least full of 1 host with room, priority level 0"
    story = [
        "job.submitted (tasks 2)",
        f"task.assigned: attempt 1 on h1 ({why_there})",
        "task.started: attempt 1 on h1",
        "task.requeued failed: attempt 1 on h1",
        f"task.assigned: attempt 2 on h1 ({why_there.replace('2 of 2', '1 of 2')})",
    ]
    assert told(bench, job, 0) == story
    bench.finish((1, 0, 2))
    bench.finish((1, 1, 1))
    assert told(bench, job, 0) == [*story, "task.finished succeeded: attempt 2 on h1", "job.finished (state succeeded)"]


def test_only_the_latest_are_told(bench):
    """However much has happened."""
    job = bench.submit(hold=True)
    for priority in range(1, 2 * MOST + 1):
        bench.ok(jc.SetJobs("", (job.id,), bench.tick(), "ann", priority=priority))
    changes = told(bench, job)
    assert (len(changes), changes[-1]) == (MOST, f"job.set (by ann, priority {2 * MOST})")
