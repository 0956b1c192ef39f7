"""The agent's core when jobs are suspended: what stands still, what goes back, and that the rest goes on."""

from __future__ import annotations

from typing import Any

import msgspec

from depalma.agent.events import (
    Launch,
    Recall,
    Recalled,
    Resume,
    SendTasks,
    StartWorker,
    StopCommand,
    Suspend,
    Tick,
    WorkerReady,
)
from depalma.model import JobSpec
from depalma.protocol import Kill, Suspended

COMMAND = JobSpec(kind="command", argv=("true",), grace_s=3.0)
FUNCTION = JobSpec(kind="function", function="m:f", grace_s=4.0)


def suspended(*jobs: int, term: int = 1) -> Suspended:
    return Suspended(1, term, jobs)


def test_what_runs_stands_still_what_waits_goes_back_and_other_jobs_go_on(rig_of: Any) -> None:
    rig = rig_of(slots=2)
    rig.assign((1, 0, 1))
    other = rig.one(rig.assign((2, 0, 1)), Launch).lane
    rig.assign((1, 1, 1), (2, 1, 1))

    actions = rig(suspended(1))

    lane = rig.one(actions, Suspend).lane
    assert lane != other
    assert rig.outcomes(actions) == {(1, 1, 1): "returned"}
    assert rig.outcomes(rig.assign((1, 2, 1))) == {(1, 2, 1): "returned"}, "it may come after the suspension"
    assert rig.launched(rig.end((2, 0, 1))) == [(2, 1, 1)]
    rig.none(rig(suspended(1)), Suspend, Resume)
    assert rig.one(rig(suspended()), Resume) == Resume(lane, "job")
    assert rig.outcomes(rig.end((1, 0, 1))) == {(1, 0, 1): "succeeded"}


def test_an_older_leader_suspends_nothing(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    rig.connect(term=3)
    rig.assign((1, 0, 1), term=3)

    rig.none(rig(suspended(1, term=2)), Suspend)


def test_time_in_which_a_job_is_suspended_is_none_of_its_tasks(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    rig.assign((1, 0, 1), spec=msgspec.structs.replace(COMMAND, timeout_s=10.0))
    rig.core.lease_until = rig.now + 1000.0  # a leader goes on answering
    rig(suspended(1), after_s=6.0)
    rig.none(rig(Tick(), after_s=500.0), StopCommand)
    rig(suspended())
    rig.none(rig(Tick(), after_s=3.9), StopCommand)
    rig.one(rig(Tick(), after_s=0.2), StopCommand)


def test_what_stands_still_can_be_cancelled(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    rig.assign((1, 0, 1))
    rig(suspended(1))

    stop = rig.one(rig(Kill(1, 1, ((1, 0, 1),), "cancelled", "job cancelled")), StopCommand)

    assert stop.attempt == (1, 0, 1)
    assert rig.outcomes(rig.end((1, 0, 1), outcome="failed")) == {(1, 0, 1): "cancelled"}


def short_functions(rig: Any, *refs: tuple[int, int, int]) -> int:
    """Hands functions to one worker, of jobs that are known to be short; returns it. The first of them runs."""
    worker = rig.one(rig.assign((1, 90, 1), spec=FUNCTION), StartWorker).worker
    rig(WorkerReady(worker))
    rig.end((1, 90, 1))
    rig.assign((2, 90, 1), spec=FUNCTION)
    rig.end((2, 90, 1))
    assert rig.one(rig.assign(*refs, spec=FUNCTION), SendTasks).worker == worker
    return int(worker)


def test_what_was_handed_ahead_to_a_worker_does_not_wait_behind_a_suspended_task(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    worker = short_functions(rig, (1, 0, 1), (1, 1, 1), (2, 0, 1))

    actions = rig(suspended(1))

    assert rig.one(actions, Recall).lane == worker
    assert rig.one(actions, Suspend) == Suspend(worker, "job")
    back = rig(Recalled(worker, ((1, 1, 1), (2, 0, 1))))
    assert rig.outcomes(back) == {(1, 1, 1): "returned"}
    rig.none(back, SendTasks)
    assert [attempt.ref for attempt in rig.core.lanes.waiting] == [(2, 0, 1)], "for a slot, not for that worker"


def test_the_worker_goes_on_when_its_task_had_ended_in_the_same_moment(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    worker = short_functions(rig, (1, 0, 1), (2, 0, 1))
    rig(suspended(1))

    actions = rig.end((1, 0, 1))

    assert rig.one(actions, Resume) == Resume(worker, "job")


def test_a_command_that_had_begun_in_the_same_moment_is_stopped_too(rig_of: Any) -> None:
    """The one before it had ended, so the monitor had nothing to stop."""
    rig = rig_of(slots=1)
    rig.assign((1, 90, 1))
    rig.end((1, 90, 1))
    lane = rig.one(rig.assign((1, 0, 1), (1, 1, 1)), Launch).lane
    assert rig.one(rig(suspended(1)), Suspend).lane == lane
    rig(Recalled(lane, ()))

    actions = rig.end((1, 0, 1))

    assert rig.one(actions, Suspend) == Suspend(lane, "job")
