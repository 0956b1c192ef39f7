"""The agent's core: time, reports, needs, and the lease."""

from __future__ import annotations

from typing import Any

import pytest

from depalma.agent.events import (
    Announce,
    ApplyCode,
    CodeReached,
    Connected,
    CutOff,
    Disconnected,
    Ended,
    Ending,
    Evicted,
    KeepReports,
    Launch,
    LeaseLost,
    Leave,
    Prepare,
    Prepared,
    Recall,
    Reconnect,
    Rejoined,
    RenewLease,
    ResetCode,
    SendReports,
    SendTasks,
    StartWorker,
    StopCommand,
    Stopping,
    StopWorker,
    Tick,
    Unprepared,
    Upload,
    Uploaded,
    WorkerEnded,
    WorkerReady,
)
from depalma.codetree import CodeEntry
from depalma.model import HostFacts, JobSpec, Payload, Report
from depalma.protocol import (
    Assign,
    Assignment,
    CodeLog,
    Forget,
    HeartbeatAnswer,
    JobTemplate,
    Kill,
    Refused,
    ReportsCommitted,
    Welcome,
)

COMMAND = JobSpec(kind="command", argv=("true",), grace_s=3.0)
FUNCTION = JobSpec(kind="function", function="m:f", grace_s=4.0)
FACTS = HostFacts(slots=2, cpus=2, memory_bytes=1, gpus=0, version="0", python="3.11", address="h")


def ready_worker(rig: Any) -> int:
    """Runs three short tasks, so that a worker is warm and its tasks are known to be short."""
    worker = rig.one(rig.assign((1, 1000, 1), spec=FUNCTION), StartWorker).worker
    rig(WorkerReady(worker))
    rig.end((1, 1000, 1))
    number: int = worker
    return number


# ---------------------------------------------------------------- time


def test_long_attempts_are_announced_once_a_leader(rig_of: Any) -> None:
    rig = rig_of()
    rig.assign((1, 0, 1))

    assert rig(Tick(), after_s=0.1) == []
    tasks = rig.one(rig(Tick(), after_s=0.2), Announce).tasks
    assert tasks == ((1, 0, 1, pytest.approx(0.3)),)
    assert rig(Tick(), after_s=0.2) == []
    rig(Disconnected())
    assert rig(Tick()) == []
    rig.connect(term=2)
    rig.one(rig(Tick()), Announce)


def test_a_function_starts_when_its_worker_is_ready(rig_of: Any) -> None:
    rig = rig_of()
    spec = JobSpec(kind="function", function="m:f", timeout_s=1.0)
    worker = rig.one(rig.assign((1, 0, 1), spec=spec), StartWorker).worker

    assert rig(Tick(), after_s=5.0) == []
    assert rig(WorkerReady(worker)) == []
    assert rig(Tick(), after_s=0.1) == []
    rig.one(rig(Tick(), after_s=0.2), Announce)
    rig.one(rig(Tick(), after_s=0.8), Recall)


def test_a_worker_that_never_gets_ready_is_replaced(rig_of: Any) -> None:
    rig = rig_of()
    rig.connect(lease_s=1000.0)
    actions = rig.assign((1, 0, 1), spec=FUNCTION)
    for _ in range(3):
        worker = rig.one(actions, StartWorker).worker
        assert rig.one(rig(Tick(), after_s=61.0), StopWorker).worker == worker
        actions = rig(WorkerEnded(worker, ((1, 0, 1),), "killed", None, 9, 0.0))

    assert rig.outcomes(actions) == {(1, 0, 1): "failed"}


def test_a_time_limit_counts_from_the_start(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    limited = JobSpec(kind="command", argv=("x",), timeout_s=1.0, grace_s=0.5)
    rig.assign((1, 0, 1), spec=limited)

    rig.none(rig(Tick(), after_s=0.9), StopCommand)
    rig.one(rig(Tick(), after_s=0.2), StopCommand)
    rig.none(rig(Tick(), after_s=0.2), StopCommand)
    actions = rig.end((1, 0, 1), outcome="failed")

    assert rig.outcomes(actions) == {(1, 0, 1): "timed_out"}
    assert rig.one(actions, KeepReports).reports[0].error == "ran longer than its limit of 1 s"


def test_waiting_attempts_go_back_when_no_slot_becomes_free(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    rig.assign((1, 0, 1), (1, 1, 1))
    rig(Tick(), after_s=1.9)
    rig.assign((2, 0, 1))

    assert rig.outcomes(rig(Tick(), after_s=0.2)) == {(1, 1, 1): "returned"}
    assert rig.launched(rig.end((1, 0, 1))) == [(2, 0, 1)]


# ---------------------------------------------------------------- reports


def test_reports_are_sent_until_committed(rig_of: Any) -> None:
    rig = rig_of()
    rig.assign((1, 0, 1), (1, 1, 1))
    assert rig.one(rig.end((1, 0, 1)), KeepReports).send
    rig(Disconnected())
    assert not rig.one(rig.end((1, 1, 1)), KeepReports).send

    assert rig.core.hello("h", FACTS).unreported == ((1, 0, 1), (1, 1, 1))
    again = rig.one(rig.connect(term=2), SendReports)
    assert [report.task for report in again.reports] == [0, 1]
    rig(ReportsCommitted(((1, 0, 1), (1, 1, 1))))
    assert rig.core.hello("h", FACTS).unreported == ()


def test_a_large_result_is_reported_when_it_is_uploaded(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    rig.assign((1, 0, 1), (1, 1, 1), spec=FUNCTION)

    actions = rig.end((1, 0, 1), result=Payload(digest="d", size_bytes=9))

    assert rig.one(actions, Upload) == Upload((1, 0, 1), "d", 9)
    assert rig.outcomes(actions) == {}
    assert list(rig.sent(actions).values()) == [[(1, 1, 1)]]  # its slot is free
    assert rig.core.hello("h", FACTS).running == ((1, 0, 1), (1, 1, 1))
    rig(Disconnected())
    assert rig.outcomes(rig(Uploaded((1, 0, 1)))) == {(1, 0, 1): "succeeded"}


def test_a_forgotten_upload_is_not_reported(rig_of: Any) -> None:
    rig = rig_of()
    rig.assign((1, 0, 1), spec=FUNCTION)
    rig.end((1, 0, 1), result=Payload(digest="d", size_bytes=9))

    rig(Forget(1, 1, ((1, 0, 1),)))

    assert rig(Uploaded((1, 0, 1))) == []


def test_late_ends_change_nothing(rig_of: Any) -> None:
    rig = rig_of()
    rig.assign((1, 0, 1))
    rig.end((1, 0, 1))

    assert rig.end((1, 0, 1), outcome="failed") == []
    assert rig.end((5, 0, 1)) == []


# ---------------------------------------------------------------- needs and code


def test_attempts_wait_for_their_blobs_and_trees(rig_of: Any) -> None:
    rig = rig_of()
    spec = JobSpec(kind="function", function_pickle=Payload(digest="f", size_bytes=1))
    template = JobTemplate(1, spec, 2, "d2")
    actions = rig(Assign(1, 1, (template,), (Assignment(1, 0, 1, 1, None, "a", 3), Assignment(1, 1, 1, 1))))

    assert [action.need for action in actions] == ["tree:2", "f", "a"]
    assert rig(Prepared("f")) == []
    assert [a.ref for a in rig.one(rig(Prepared("tree:2", "d2")), SendTasks).attempts] == [(1, 1, 1)]
    assert rig.core.uses_blob("a")
    assert rig.core.uses_blob("f")
    assert [a.ref for a in rig.one(rig(Prepared("a")), SendTasks).attempts] == [(1, 0, 1)]


def test_one_blob_for_two_purposes_is_awaited_once(rig_of: Any) -> None:
    rig = rig_of()
    spec = JobSpec(kind="function", function_pickle=Payload(digest="x", size_bytes=1))
    rig(Assign(1, 1, (JobTemplate(1, spec, 0, ""),), (Assignment(1, 0, 1, 1, None, "x", -1),)))

    assert rig.sent(rig(Prepared("x"))) == {1: [(1, 0, 1)]}


def test_what_cannot_be_had_goes_back(rig_of: Any) -> None:
    rig = rig_of()
    rig(Assign(1, 1, (JobTemplate(1, COMMAND, 0, ""),), (Assignment(1, 0, 1, 1, None, "a", -1),)))

    actions = rig(Unprepared("a", "no master has it"))

    assert rig.outcomes(actions) == {(1, 0, 1): "returned"}
    rig.one(rig(Assign(1, 1, (), (Assignment(1, 0, 2, 1, None, "a", -1),))), Prepare)


def test_an_evicted_blob_is_fetched_again(rig_of: Any) -> None:
    rig = rig_of()
    rig(Assign(1, 1, (JobTemplate(1, COMMAND, 0, ""),), (Assignment(1, 0, 1, 1, None, "a", -1),)))
    rig(Evicted("a"))  # while it is awaited: not the one that is coming
    rig(Prepared("a"))
    rig.none(rig(Assign(1, 1, (), (Assignment(1, 1, 1, 1, None, "a", -1),))), Prepare)
    rig(Evicted("a"))

    rig.one(rig(Assign(1, 1, (), (Assignment(1, 2, 1, 1, None, "a", -1),))), Prepare)


def test_what_is_evicted_after_a_cut_off_is_fetched_again(rig_of: Any) -> None:
    """Between two incarnations nothing else is believed; but the blob is gone, and who needed it would fail."""
    rig = rig_of()
    rig(Assign(1, 1, (JobTemplate(1, COMMAND, 0, ""),), (Assignment(1, 0, 1, 1, None, "a", -1),)))
    rig(Prepared("a"))
    rig(LeaseLost("the monitor died"))
    rig(Evicted("a"))
    rig(Rejoined("i2"))
    rig.connect(2)

    rig.one(rig(Assign(2, 2, (JobTemplate(1, COMMAND, 0, ""),), (Assignment(1, 1, 1, 1, None, "a", -1),))), Prepare)


def test_killing_what_is_being_prepared(rig_of: Any) -> None:
    rig = rig_of()
    rig(Assign(1, 1, (JobTemplate(1, COMMAND, 0, ""),), (Assignment(1, 0, 1, 1, None, "a", -1),)))

    assert rig.outcomes(rig(Kill(1, 1, ((1, 0, 1),), "cancelled", ""))) == {(1, 0, 1): "cancelled"}
    assert rig(Prepared("a")) == []


def test_the_code_of_another_log_runs_nothing_and_is_thrown_away(rig_of: Any) -> None:
    rig = rig_of()
    rig(CodeReached(4))
    rig.assign((1, 0, 1), code_index=1, tree_digest="right")

    actions = rig(Prepared("tree:1", "wrong"))

    report = rig.one(actions, KeepReports).reports[0]
    assert report.outcome == "returned"
    assert "of another log (wrong), expected right" in report.error
    rig.one(actions, ResetCode)
    rig.one(actions, Reconnect)
    assert rig.core.hello("h", FACTS).code_index == 0
    rig(Disconnected())
    rig.connect(term=2)
    assert rig.one(rig.assign((1, 0, 2), code_index=1, tree_digest="right", term=2), Prepare).need == "tree:1"


def test_a_result_that_was_lost_is_a_failure(rig_of: Any) -> None:
    rig = rig_of()
    rig.assign((1, 0, 1), spec=FUNCTION)
    rig.end((1, 0, 1), result=Payload(digest="d", size_bytes=9))

    report = rig.one(rig(Uploaded((1, 0, 1), "the result was lost")), KeepReports).reports[0]

    assert (report.outcome, report.error, report.result) == ("failed", "the result was lost", None)


def test_the_code_log_is_applied_and_told(rig_of: Any) -> None:
    rig = rig_of()
    entry = CodeEntry(index=1, name="m.py", kind="module", digest="d", size_bytes=1, added_at=0, added_by="x")

    assert rig(CodeLog(1, 1, (entry,))) == [ApplyCode((entry,))]
    rig(CodeReached(1))

    assert rig.core.hello("h", FACTS).code_index == 1


# ---------------------------------------------------------------- lease


def test_the_lease_runs_from_when_the_question_was_sent(rig_of: Any) -> None:
    rig = rig_of(connect=False)
    rig(Connected(rig.now))

    assert rig.one(rig(Welcome(1, "m1", 10.0, 1.0, ()), after_s=3.0), RenewLease).until_s == 110.0
    rig.beat(1, after_s=1.0)
    assert rig.one(rig(HeartbeatAnswer(1, 0.0, 1), after_s=2.0), RenewLease).until_s == 114.0


def test_an_echo_does_not_renew_what_was_not_asked(rig_of: Any) -> None:
    rig = rig_of()
    rig.beat(1)

    assert rig(HeartbeatAnswer(2, rig.now + 1000, 1)) == []
    rig(HeartbeatAnswer(1, rig.now + 1000, 1))
    assert rig(HeartbeatAnswer(1, rig.now, 1), after_s=1.0) == []
    assert rig.core.lease_until == 110.0


def test_an_old_leader_does_not_renew(rig_of: Any) -> None:
    rig = rig_of()
    rig.assign((1, 0, 1), term=5)
    rig.beat(1, after_s=1.0)

    assert rig(HeartbeatAnswer(1, 0.0, 4)) == []


def test_answers_of_the_last_connection_do_not_renew(rig_of: Any) -> None:
    rig = rig_of()
    rig.beat(1)
    rig(Disconnected())
    rig.connect(term=2)

    assert rig(HeartbeatAnswer(1, 0.0, 2), after_s=1.0) == []


def test_past_the_lease_everything_is_cut_off_first(rig_of: Any) -> None:
    rig = rig_of()
    rig.assign((1, 0, 1), (1, 1, 1), (1, 2, 1))
    rig.end((1, 0, 1))
    rig.beat(1)

    # The process ended because the monitor killed it; that is not an outcome.
    actions = rig(Ended((Report(1, 1, 1, "failed", signal=9),)), after_s=11.0)

    assert actions == [CutOff("no leader was heard for 10 s", must_rejoin=False)]
    assert not rig.core.attempts
    assert not rig.core.pending
    assert rig(HeartbeatAnswer(1, 0.0, 1)) == []
    assert rig.assign((1, 3, 1)) == []
    assert rig(Tick()) == []
    rig(Rejoined("i2"))
    hello = rig.core.hello("h", FACTS)
    assert (hello.incarnation, hello.running, hello.unreported) == ("i2", (), ())


def test_an_answer_that_comes_after_the_lease_is_too_late(rig_of: Any) -> None:
    rig = rig_of()
    rig.beat(1, after_s=9.0)

    rig.one(rig(HeartbeatAnswer(1, 0.0, 1), after_s=1.0), CutOff)


def test_the_monitor_may_be_the_first_to_know(rig_of: Any) -> None:
    rig = rig_of()
    rig.assign((1, 0, 1))

    assert rig.one(rig(LeaseLost("the monitor says so")), CutOff).reason == "the monitor says so"
    assert rig(LeaseLost("again")) == []


def test_a_new_incarnation_starts_over(rig_of: Any) -> None:
    rig = rig_of()
    worker = ready_worker(rig)
    rig(Refused("given away", stop=True, restart_incarnation=True))
    rig(Rejoined("i2"))
    rig.connect(term=2)

    actions = rig.assign((1, 0, 1), spec=FUNCTION, term=2)

    rig.one(actions, StartWorker)
    assert rig(WorkerEnded(999, (), "old", None, 9, 0.0)) == []
    assert worker  # its number may be used again: the old one is dead before the rejoin


def test_refusals(rig_of: Any) -> None:
    rig = rig_of()
    assert rig.one(rig(Refused("stop", stop=True)), Leave).reason == "stop"
    assert rig.one(rig_of()(Refused("new", stop=True, restart_incarnation=True)), CutOff).must_rejoin
    assert "later" in rig.one(rig_of()(Refused("later")), Reconnect).reason


def test_what_is_ended_because_the_agent_is_stopped_moves(rig_of: Any) -> None:
    """It did not fail, even if it says so; what ends by itself before has ended."""
    rig = rig_of(slots=3)
    rig.assign((1, 0, 1), (1, 1, 1), (1, 2, 1))
    rig(Stopping())
    assert rig.outcomes(rig.end((1, 0, 1))) == {(1, 0, 1): "succeeded"}

    rig(Ending())

    assert rig.outcomes(rig.end((1, 1, 1), outcome="failed")) == {(1, 1, 1): "moved"}
    assert rig.outcomes(rig.end((1, 2, 1))) == {(1, 2, 1): "moved"}  # it took the signal in its stride


def test_a_worker_that_is_ended_because_the_agent_is_stopped_has_not_failed(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    worker = rig.one(rig.assign((2, 0, 1), spec=FUNCTION), StartWorker).worker
    rig(WorkerReady(worker))
    rig(Stopping())
    rig(Ending())

    assert rig.outcomes(rig(WorkerEnded(worker, (), "ended by signal 15", None, 15, 0.0))) == {(2, 0, 1): "moved"}


def test_stopping_gives_back_what_has_not_started(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    rig.assign((1, 0, 1), (1, 1, 1))

    assert rig.outcomes(rig(Stopping())) == {(1, 1, 1): "returned"}
    assert rig.outcomes(rig.assign((1, 2, 1))) == {(1, 2, 1): "returned"}
    rig.none(rig.end((1, 0, 1)), Launch)
