"""Events: numbered without gaps, one a task, readable from any number on, kept up to a bound."""

from __future__ import annotations

import time
from collections import deque

import pytest

from depalma.state import commands as c
from depalma.state import event_log
from depalma.state.cluster_state import ClusterState
from depalma.state.events import events_after, newest, oldest_kept


def run_some(bench) -> None:
    bench.host()
    bench.submit(3, retries=1)
    bench.assign((1, 0, 1), (1, 1, 1))
    bench.start((1, 0, 1))
    bench.finish((1, 0, 1), outcome="succeeded")
    bench.finish((1, 1, 1), outcome="failed")
    bench.assign((1, 1, 2), (1, 2, 1))
    bench.ok(c.HostSuspect("h1", "h1-1", "quiet", bench.tick()))
    bench.ok(c.HostRecovered("h1", "h1-1", bench.tick()))
    bench.lose()
    bench.cancel(1)


def test_the_story_of_a_job(bench):
    """In order, one event a task."""
    run_some(bench)

    assert [(event.kind, event.job, event.task) for event in bench.events()] == [
        ("host.added", None, None),
        ("host.up", None, None),
        ("job.submitted", 1, None),
        ("task.assigned", 1, 0),
        ("task.assigned", 1, 1),
        ("task.started", 1, 0),
        ("task.finished", 1, 0),
        ("task.requeued", 1, 1),
        ("task.assigned", 1, 1),
        ("task.assigned", 1, 2),
        ("host.suspect", None, None),
        ("host.recovered", None, None),
        ("host.lost", None, None),
        ("task.requeued", 1, 1),
        ("task.requeued", 1, 2),
        ("job.cancelled", 1, None),
        ("job.finished", 1, None),
    ]


def test_details(bench):
    """What a reader needs without asking again."""
    run_some(bench)
    details = [event.detail for event in bench.events()]

    assert details[3] == {"attempt": 1, "reason": "because", "fence": 4}
    assert details[6] == {"attempt": 1, "state": "succeeded"}
    assert details[7] == {"attempt": 1, "state": "failed"}
    assert details[12] == {"reason": "silent"}
    assert details[13] == {"attempt": 2, "reason": "host h1 was lost: silent", "state": "lost"}
    assert details[15] == {"by": "ann", "cancelled": 2, "running": 0}
    assert details[16] == {"state": "cancelled", "exit_code": None}


def test_returned_tasks_say_so(bench):
    """They were never started."""
    bench.host()
    bench.submit()
    bench.assign((1, 0, 1))
    bench.finish((1, 0, 1), outcome="returned")

    assert bench.events()[-1].detail == {"attempt": 1, "state": "returned"}


def test_numbers_have_no_gap_and_any_can_be_the_start(bench):
    """A reader that resumes after n gets n + 1, also in the middle of a batch."""
    run_some(bench)
    everything = bench.events()
    assert [event.index for event in everything] == list(range(1, len(everything) + 1))
    assert newest(bench.state) == len(everything)
    assert oldest_kept(bench.state) == 1

    for after in range(-1, len(everything) + 2):
        assert events_after(bench.state, after, 1000) == everything[max(0, after) :]
        assert events_after(bench.state, after, 2) == everything[max(0, after) : max(0, after) + 2]
    assert events_after(bench.state, 0, 0) == []


def test_an_empty_cluster_has_none(bench):
    """The next one will be number 1."""
    assert bench.events() == []
    assert (oldest_kept(bench.state), newest(bench.state)) == (1, 0)


def test_old_events_are_dropped(bench, monkeypatch):
    """The reader sees by the oldest number that it missed some."""
    monkeypatch.setattr(event_log, "KEEP_EVENTS", 10)
    bench.host(slots=100)
    bench.submit(60)
    for start in range(0, 60, 4):
        refs = [(1, index, 1) for index in range(start, start + 4)]
        bench.assign(*refs)
        bench.finish(*refs)

    kept = bench.events()
    assert 10 <= len(kept) <= 14
    assert kept[0].index == oldest_kept(bench.state) > 100
    assert kept[-1].index == newest(bench.state)
    assert kept[-1].kind == "job.finished"


def test_a_refused_command_has_no_event(bench):
    """Nothing happened."""
    bench.refused(c.CloseJob("", 7, 1.0))
    bench.host()
    before = newest(bench.state)
    bench.finish((1, 0, 1))
    bench.assign((1, 0, 1))

    assert newest(bench.state) == before


def test_changes_are_drained(bench):
    """Who waits for a job or a host is told once."""
    bench.machine.drain_changes()
    bench.host()
    bench.submit(2)
    bench.assign((1, 0, 1))
    changes = bench.machine.drain_changes()
    assert (changes.jobs, changes.hosts, changes.code) == ({1}, {"h1"}, False)

    bench.ok(c.AddCode("", "pkg", "module", "a" * 64, 1, "ann", bench.tick()))
    changes = bench.machine.drain_changes()
    assert (changes.jobs, changes.hosts, changes.code) == (set(), set(), True)


@pytest.mark.parametrize("step", ["start", "finish", "cancel", "close", "lose", "forget"])
def test_every_step_of_a_job_is_a_change(bench, step):
    """Or somebody would wait for ever."""
    bench.host()
    bench.submit(1, open=step == "close")
    if step == "forget":
        bench.cancel(1)
    else:
        bench.assign((1, 0, 1))
    bench.machine.drain_changes()
    {
        "start": lambda: bench.start((1, 0, 1)),
        "finish": lambda: bench.finish((1, 0, 1)),
        "cancel": lambda: bench.cancel(1),
        "close": lambda: bench.ok(c.CloseJob("", 1, bench.tick())),
        "lose": lambda: bench.lose(),
        "forget": lambda: bench.ok(c.ForgetJobs((1,), bench.tick())),
    }[step]()

    assert bench.machine.drain_changes().jobs == {1}


def test_who_follows_does_not_walk_through_what_is_kept():
    """From any place on, and from the newest at next to no cost: it is read at each commit by all who follow."""
    for size in range(6):
        kept = deque(range(size))
        for start in range(size + 2):
            assert list(event_log.from_place(kept, start)) == list(kept)[start:]

    state = ClusterState.empty()
    for _ in range(event_log.KEEP_EVENTS):
        state.events.add("job.held", 1.0, job=1)
    began_s = time.thread_time()
    for _ in range(200):
        list(state.events.records)
    walked_s = time.thread_time() - began_s
    began_s = time.thread_time()
    for _ in range(200):
        assert len(events_after(state, newest(state) - 1)) == 1
    assert time.thread_time() - began_s < walked_s / 2
