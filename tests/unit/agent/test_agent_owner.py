"""The agent's core when the owner of the machine comes and goes: what starts, stands still, ends, is given back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from depalma.agent.events import (
    KeepReports,
    Launch,
    LeaseLost,
    Lower,
    OwnerStands,
    Recall,
    Recalled,
    Rejoined,
    Resume,
    SendTasks,
    StartWorker,
    StopCommand,
    StopWorker,
    Suspend,
    Tick,
    WorkerEnded,
    WorkerReady,
)
from depalma.model import JobSpec

HERE = OwnerStands(reason="input at tty1")
LOWERED = OwnerStands(reason="input at tty1", step="lowered", lower=True)
STILL = msgspec.structs.replace(LOWERED, step="suspended", suspend=True)
WARNED = msgspec.structs.replace(STILL, step="warned", end=True, grace_s=30.0)
GONE = OwnerStands()
WHY = "its owner uses the machine: input at tty1"

COMMAND = JobSpec(kind="command", argv=("true",), grace_s=3.0)
KEPT = JobSpec(kind="command", argv=("true",), grace_s=3.0, restartable=False)
FUNCTION = JobSpec(kind="function", function="m:f", grace_s=4.0)


def reports(actions: list[Any]) -> list[tuple[Any, ...]]:
    found = [report for action in actions if isinstance(action, KeepReports) for report in action.reports]
    return [(report.task, report.outcome, report.error) for report in found]


def test_nothing_new_starts_and_what_waits_goes_back(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    rig.assign((1, 0, 1), (1, 1, 1))
    assert reports(rig(HERE)) == [(1, "returned", WHY)]
    assert reports(rig.assign((2, 0, 1))) == [(0, "returned", WHY)]
    rig.none(rig.end((1, 0, 1)), Launch)
    rig(GONE)
    rig.one(rig.assign((3, 0, 1)), Launch)


def test_the_steps_are_carried_out_once_each_and_taken_back(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    rig.assign((1, 0, 1))
    assert rig.one(rig(LOWERED), Lower).lowered
    rig.none(rig(LOWERED), Lower, Suspend)
    assert rig.one(rig(STILL), Suspend) == Suspend(None, "owner")
    rig.none(rig(STILL), Lower, Suspend)
    actions = rig(GONE)
    assert not rig.one(actions, Lower).lowered
    assert rig.one(actions, Resume) == Resume(None, "owner")
    rig.none(actions, StopCommand)


def test_what_may_run_elsewhere_is_warned_has_the_owners_grace_and_moves(rig_of: Any) -> None:
    rig = rig_of(slots=2)
    rig.assign((1, 0, 1))
    rig.assign((2, 0, 1), spec=KEPT)
    rig(STILL)
    stop = rig.one(rig(WARNED), StopCommand)
    assert (stop.attempt, stop.grace_s) == ((1, 0, 1), 30.0)
    rig.none(rig(Tick()), StopCommand)
    assert reports(rig.end((1, 0, 1), outcome="failed")) == [(0, "moved", WHY)]
    rig.none(rig(GONE), StopCommand)
    assert reports(rig.end((2, 0, 1))) == [(0, "succeeded", "")], "it stood still, and goes on to its end"


def test_what_is_not_restartable_moves_too_if_the_owner_wants_it(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    rig.assign((1, 0, 1), spec=KEPT)
    stop = rig.one(rig(msgspec.structs.replace(WARNED, end_all=True)), StopCommand)
    assert stop.attempt == (1, 0, 1)


def test_a_function_moves_with_its_worker_and_those_behind_it_go_back(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    worker = rig.one(rig.assign((1, 0, 1), spec=FUNCTION), StartWorker).worker
    rig(WorkerReady(worker))
    rig.end(*[(1, 0, 1)])  # short: the next ones are handed over together
    sent = rig.one(rig.assign((1, 1, 1), (1, 2, 1), (1, 3, 1), spec=FUNCTION), SendTasks)
    assert len(sent.attempts) == 3
    rig.one(rig(WARNED), Recall)
    back = rig(Recalled(worker, ((1, 2, 1), (1, 3, 1))))
    assert reports(back) == [(2, "returned", WHY), (3, "returned", WHY)]
    rig.one(rig(Tick()), Recall)
    stop = rig.one(rig(Recalled(worker, ())), StopWorker)
    assert stop.grace_s == 30.0
    ended = rig(WorkerEnded(worker, (), "worker process died", None, 15, 1.0))
    assert reports(ended) == [(1, "moved", WHY)]


def test_time_in_which_a_task_stands_still_is_none_of_its_own(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    rig.assign((1, 0, 1), spec=msgspec.structs.replace(COMMAND, timeout_s=10.0))
    rig.core.lease_until = rig.now + 1000.0  # a leader goes on answering
    rig(STILL, after_s=6.0)
    rig.none(rig(Tick(), after_s=500.0), StopCommand)
    rig(GONE)
    rig.none(rig(Tick(), after_s=3.9), StopCommand)
    rig.one(rig(Tick(), after_s=0.2), StopCommand)


def test_a_worker_that_is_stopped_while_it_starts_is_not_taken_for_hung(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    worker = rig.one(rig.assign((1, 0, 1), spec=FUNCTION), StartWorker).worker
    rig(OwnerStands(reason="x", suspend=True))
    rig(Recalled(worker, ()))
    rig.core.lease_until = rig.now + 1000.0
    rig.none(rig(Tick(), after_s=500.0), StopWorker)


def test_the_owner_is_there_also_for_the_next_incarnation(rig_of: Any) -> None:
    """Between two of them nothing is believed but that."""
    rig = rig_of(slots=1)
    rig(LOWERED)
    rig(LeaseLost("cut off"))
    assert rig.one(rig(STILL), Suspend) == Suspend(None, "owner")
    rig(Rejoined("i2"))
    rig.connect()
    assert reports(rig.assign((1, 0, 1))) == [(0, "returned", WHY)]


@pytest.mark.parametrize("outcome", ["cancelled", "moved"])
def test_what_stands_still_can_be_ended_by_the_leader(rig_of: Any, outcome: str) -> None:
    from depalma.protocol import Kill

    rig = rig_of(slots=1)
    rig.assign((1, 0, 1))
    rig(STILL)
    stop = rig.one(rig(Kill(1, 1, ((1, 0, 1),), outcome, "asked to")), StopCommand)
    assert stop.grace_s == 3.0
    assert reports(rig.end((1, 0, 1))) == [(0, outcome, "asked to")]
