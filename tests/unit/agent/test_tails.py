"""What an attempt wrote last goes to the masters before its end is reported, and its end is reported anyhow."""

from __future__ import annotations

from typing import Any

from depalma.agent.events import Disconnected, KeepReports, SendReports, Upload, Uploaded, WorkerEnded
from depalma.model import JobSpec, Payload
from depalma.protocol import Forget, ReportsCommitted
from depalma.tails import OutputTail

FUNCTION = JobSpec(kind="function", function="m:f")
SHORT, LONG, KEPT = OutputTail(b"end"), OutputTail(), OutputTail(digest="d", item=3)


def reported(actions: list[Any]) -> list[tuple[bool, str, OutputTail | None]]:
    """Whether reports are sent, their outcomes and their tails."""
    keeps = [action for action in actions if type(action) is KeepReports]
    return [(keep.send, report.outcome, report.tail) for keep in keeps for report in keep.reports]


def test_a_short_tail_travels_in_the_report(rig_of: Any) -> None:
    rig = rig_of()
    rig.assign((1, 0, 1))

    actions = rig.end((1, 0, 1), tail=SHORT)

    assert reported(actions) == [(True, "succeeded", SHORT)]
    rig.none(actions, Upload)


def test_a_long_tail_is_handed_over_first(rig_of: Any) -> None:
    """The outcome is on disk meanwhile, for the case that this agent does not come to report it."""
    rig = rig_of(slots=1)
    rig.assign((1, 0, 1), (1, 1, 1))

    actions = rig.end((1, 0, 1), outcome="failed", exit_code=3, tail=LONG)

    assert rig.one(actions, Upload) == Upload((1, 0, 1), "", 0, (), tail=True)
    ((send, outcome, tail),) = reported(actions)
    assert (send, outcome) == (False, "failed")
    assert "its agent ended before" in tail.lost
    assert list(rig.core.early) == [(1, 0, 1)]
    assert rig.core.hello("h", None).running == ((1, 0, 1), (1, 1, 1))
    rig(Disconnected())
    assert reported(rig(Uploaded((1, 0, 1), tail=KEPT))) == [(False, "failed", KEPT)]
    assert not rig.core.early
    assert [report.tail for report in rig.one(rig.connect(), SendReports).reports] == [KEPT]
    rig(ReportsCommitted(((1, 0, 1),)))
    assert not rig.core.pending


def test_what_cannot_be_handed_over_holds_up_no_outcome(rig_of: Any) -> None:
    rig = rig_of()
    rig.assign((1, 0, 1))
    rig.end((1, 0, 1), tail=LONG)

    assert reported(rig(Uploaded((1, 0, 1), tail=OutputTail(lost="why")))) == [
        (True, "succeeded", OutputTail(lost="why"))
    ]


def test_a_result_and_a_tail_go_together(rig_of: Any) -> None:
    """A result that is lost makes the attempt a failed one, so nothing of it is certain before."""
    rig = rig_of()
    rig.assign((1, 0, 1), spec=FUNCTION)

    actions = rig.end((1, 0, 1), result=Payload(digest="r", size_bytes=9), tail=LONG)

    assert rig.one(actions, Upload) == Upload((1, 0, 1), "r", 9, (), tail=True)
    assert reported(actions) == []
    assert reported(rig(Uploaded((1, 0, 1), error="lost", tail=KEPT))) == [(True, "failed", KEPT)]


def test_of_a_worker_that_dies_the_task_that_ran_has_the_output(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    (worker,) = rig.sent(rig.assign((1, 0, 1), (1, 1, 1), spec=FUNCTION))

    actions = rig(WorkerEnded(worker, ((1, 1, 1),), "died", None, 9, 1.0, LONG))

    assert rig.one(actions, Upload).attempt == (1, 0, 1)
    assert reported(rig(Uploaded((1, 0, 1), tail=KEPT))) == [(True, "failed", KEPT)]


def test_a_forgotten_attempt_leaves_nothing(rig_of: Any) -> None:
    rig = rig_of()
    rig.assign((1, 0, 1))
    rig.end((1, 0, 1), tail=LONG)

    rig(Forget(1, 1, ((1, 0, 1),)))

    assert not rig.core.early
    assert rig(Uploaded((1, 0, 1), tail=KEPT)) == []
