"""The agent's core: events in, actions out, no clock and no process."""

from __future__ import annotations

from typing import Any

from depalma.agent.events import (
    CodeRepaired,
    Connected,
    Disconnected,
    EndForkServers,
    KeepReports,
    Launch,
    Outdone,
    Prepared,
    Recall,
    Recalled,
    Reconnect,
    SendTasks,
    StartWorker,
    StopCommand,
    StopWorker,
    Tick,
    WorkerEnded,
    WorkerReady,
)
from depalma.alternatives import Alternative
from depalma.model import HostFacts, JobSpec
from depalma.protocol import (
    Assign,
    Assignment,
    CodeLog,
    Forget,
    JobTemplate,
    Kill,
    ReportsCommitted,
)

COMMAND = JobSpec(kind="command", argv=("true",), grace_s=3.0)
FUNCTION = JobSpec(kind="function", function="m:f", grace_s=4.0)
FACTS = HostFacts(slots=2, cpus=2, memory_bytes=1, gpus=0, version="0", python="3.11", address="h")


# ---------------------------------------------------------------- orders


def test_commands_start_in_order_as_slots_allow(rig_of: Any) -> None:
    rig = rig_of(slots=2)

    assert rig.launched(rig.assign((1, 0, 1), (1, 1, 1), (1, 2, 1))) == [(1, 0, 1), (1, 1, 1)]
    actions = rig.end((1, 1, 1))

    assert rig.launched(actions) == [(1, 2, 1)]
    assert rig.outcomes(actions) == {(1, 1, 1): "succeeded"}
    assert rig.core.free_slots == 0


def test_tasks_of_one_job_take_the_room_of_their_alternatives(rig_of: Any) -> None:
    """A slot for two halves; the job is remembered over a lost connection while any of them lives."""
    spec = JobSpec(kind="command", argv=("true",), alternatives=(Alternative(cpus=0.5, memory_bytes=9),))
    rig = rig_of(slots=1)
    tasks = tuple(Assignment(1, task, 1, 1, alternative=1) for task in range(3))
    assert rig.launched(rig(Assign(1, 1, (JobTemplate(1, spec, 0, ""),), tasks))) == [(1, 0, 1), (1, 1, 1)]
    first, second = (rig.core.attempts[1, task, 1].job for task in range(2))
    assert (first is second, first.spec.memory_bytes, first.id, first.key != 1) == (True, 9, 1, True)
    base = rig.core.jobs[1]
    rig(Disconnected())
    assert rig.core.jobs == {1: base}
    assert rig.launched(rig.end((1, 0, 1), (1, 1, 1))) == [(1, 2, 1)]
    rig.end((1, 2, 1))
    rig(Disconnected())
    assert rig.core.jobs == {}


def test_an_attempt_starts_once_however_often_it_is_assigned(rig_of: Any) -> None:
    rig = rig_of(slots=4)
    rig.assign((1, 0, 1))

    rig.none(rig.assign((1, 0, 1)), Launch)
    rig.end((1, 0, 1))
    rig.none(rig.assign((1, 0, 1)), Launch)
    rig(ReportsCommitted(((1, 0, 1),)))
    rig.none(rig.assign((1, 0, 1)), Launch)

    assert rig.launched(rig.assign((1, 0, 2))) == [(1, 0, 2)]


def test_orders_of_an_older_term_change_nothing(rig_of: Any) -> None:
    rig = rig_of()
    rig.assign((1, 0, 1), term=3)

    assert rig.assign((1, 1, 1), term=2) == []
    assert rig(Kill(1, 2, ((1, 0, 1),), "cancelled", "")) == []
    assert rig(Forget(1, 2, ((1, 0, 1),))) == []
    assert rig(CodeLog(1, 2, ())) == []
    assert list(rig.core.attempts) == [(1, 0, 1)]


def test_orders_without_a_welcome_change_nothing(rig_of: Any) -> None:
    rig = rig_of(connect=False)
    rig(Connected(rig.now))

    assert rig.assign((1, 0, 1)) == []


def test_a_leader_of_an_older_term_is_left(rig_of: Any) -> None:
    rig = rig_of()
    rig(Disconnected())
    rig.connect(term=7)
    rig(Disconnected())

    assert "term 7 was seen" in rig.one(rig.connect(term=6), Reconnect).reason
    assert not rig.core.connected


def test_a_task_without_its_job_makes_us_ask_again(rig_of: Any) -> None:
    rig = rig_of()

    rig.one(rig(Assign(1, 1, (), (Assignment(9, 0, 1, 1),))), Reconnect)


def test_templates_of_idle_jobs_go_with_the_connection(rig_of: Any) -> None:
    rig = rig_of()
    rig.assign((1, 0, 1))
    rig.assign((2, 0, 1))
    rig.end((2, 0, 1))
    rig(Disconnected())

    assert list(rig.core.jobs) == [1]


def test_another_interpreter_is_refused_by_name(rig_of: Any) -> None:
    rig = rig_of()

    actions = rig.assign((1, 0, 1), spec=JobSpec(kind="function", function="m:f", python="3.12"))

    report = rig.one(actions, KeepReports).reports[0]
    assert report.outcome == "failed"
    assert report.error == "HostMismatch: made by Python 3.12, this host runs Python 3.11"


# ---------------------------------------------------------------- kill and forget


def test_waiting_attempts_end_without_having_started(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    rig.assign((1, 0, 1), (1, 1, 1), (1, 2, 1), (1, 3, 1))

    actions = rig(Kill(1, 1, ((1, 1, 1), (1, 3, 1)), "cancelled", "why"))

    assert rig.outcomes(actions) == {(1, 1, 1): "cancelled", (1, 3, 1): "cancelled"}
    assert rig.one(actions, KeepReports).reports[0].error == "why"
    assert rig.launched(rig.end((1, 0, 1))) == [(1, 2, 1)]


def test_a_running_command_is_stopped_and_reported_as_ordered(rig_of: Any) -> None:
    rig = rig_of()
    rig.assign((1, 0, 1))

    assert rig.one(rig(Kill(1, 1, ((1, 0, 1),), "cancelled", "why")), StopCommand) == StopCommand((1, 0, 1), 3.0)
    rig.none(rig(Kill(1, 1, ((1, 0, 1),), "cancelled", "again")), StopCommand)
    # It may exit with 0 on SIGTERM.
    assert rig.outcomes(rig.end((1, 0, 1))) == {(1, 0, 1): "cancelled"}


def test_what_has_started_is_not_taken_back(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    rig.assign((1, 0, 1), (1, 1, 1))

    actions = rig(Kill(1, 1, ((1, 0, 1), (1, 1, 1)), "returned", "urgent"))

    assert rig.outcomes(actions) == {(1, 1, 1): "returned"}
    rig.none(actions, StopCommand)
    assert rig.outcomes(rig.end((1, 0, 1))) == {(1, 0, 1): "succeeded"}


def test_a_kill_of_what_never_came_is_answered(rig_of: Any) -> None:
    rig = rig_of()

    assert rig.outcomes(rig(Kill(1, 1, ((1, 0, 1),), "cancelled", ""))) == {(1, 0, 1): "cancelled"}
    rig.none(rig.assign((1, 0, 1)), Launch)


def test_a_kill_of_what_has_ended_is_not(rig_of: Any) -> None:
    rig = rig_of()
    rig.assign((1, 0, 1))
    rig.end((1, 0, 1))

    assert rig(Kill(1, 1, ((1, 0, 1),), "cancelled", "")) == []
    rig(ReportsCommitted(((1, 0, 1),)))
    assert rig(Kill(1, 1, ((1, 0, 1),), "cancelled", "")) == []


def test_forgotten_attempts_report_nothing(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    rig.assign((1, 0, 1), (1, 1, 1))

    actions = rig(Forget(1, 1, ((1, 0, 1), (1, 1, 1))))

    rig.one(actions, StopCommand)
    assert rig.outcomes(actions) == {}
    assert rig.outcomes(rig.end((1, 0, 1), outcome="failed")) == {}
    assert not rig.core.attempts
    assert rig.core.free_slots == 1


def test_forgetting_drops_reports_that_wait(rig_of: Any) -> None:
    rig = rig_of()
    rig.assign((1, 0, 1))
    rig.end((1, 0, 1))

    rig(Forget(1, 1, ((1, 0, 1),)))

    assert not rig.core.pending


# ---------------------------------------------------------------- functions


def ready_worker(rig: Any) -> int:
    """Runs three short tasks, so that a worker is warm and its tasks are known to be short."""
    worker = rig.one(rig.assign((1, 1000, 1), spec=FUNCTION), StartWorker).worker
    rig(WorkerReady(worker))
    rig.end((1, 1000, 1))
    number: int = worker
    return number


def test_the_first_task_of_a_job_goes_alone(rig_of: Any) -> None:
    rig = rig_of(slots=1)

    actions = rig.assign((1, 0, 1), (1, 1, 1), spec=FUNCTION)

    worker = rig.one(actions, StartWorker).worker
    assert actions.index(StartWorker(worker, 0)) < next(i for i, a in enumerate(actions) if type(a) is SendTasks)
    assert rig.sent(actions) == {worker: [(1, 0, 1)]}


def test_short_tasks_are_handed_ahead_in_order(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    worker = ready_worker(rig)

    actions = rig.assign(*[(1, index, 1) for index in range(100)], spec=FUNCTION)

    assert rig.sent(actions) == {worker: [(1, index, 1) for index in range(32)]}
    rig.none(actions, StartWorker)
    actions = rig.end(*[(1, index, 1) for index in range(10)])
    assert rig.sent(actions) == {worker: [(1, index, 1) for index in range(32, 42)]}


def test_slots_are_filled_before_anything_goes_ahead(rig_of: Any) -> None:
    rig = rig_of(slots=2)
    ready_worker(rig)

    actions = rig.assign(*[(1, index, 1) for index in range(10)], spec=FUNCTION)

    shares = sorted(len(refs) for refs in rig.sent(actions).values())
    assert shares == [5, 5]


def test_long_tasks_go_one_at_a_time(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    ready_worker(rig)
    rig.assign((1, 0, 1), spec=FUNCTION)
    rig.end((1, 0, 1), took_s=1.0)

    actions = rig.assign(*[(1, index, 1) for index in range(1, 10)], spec=FUNCTION)

    assert [len(refs) for refs in rig.sent(actions).values()] == [1]


def test_workers_serve_one_code_index_and_make_room(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    first = rig.one(rig.assign((1, 0, 1), spec=FUNCTION), StartWorker).worker
    rig.end((1, 0, 1))
    rig(Prepared("tree:1", "d1"))
    second = rig.one(rig.assign((2, 0, 1), spec=FUNCTION, code_index=1), StartWorker)
    rig.end((2, 0, 1))
    rig(Prepared("tree:2", "d2"))

    actions = rig.assign((3, 0, 1), spec=FUNCTION, code_index=2)

    assert second.code_index == 1
    assert rig.one(actions, StopWorker) == StopWorker(first, 0.0)
    assert rig.one(actions, StartWorker).code_index == 2


def test_whoever_may_have_imported_a_changed_file_ends_when_it_has_been_put_right(rig_of: Any) -> None:
    rig = rig_of(slots=2)
    idle, busy = (rig.one(rig.assign((1, n, 1), spec=FUNCTION), StartWorker).worker for n in (0, 1))
    rig(WorkerReady(idle))
    rig(WorkerReady(busy))
    rig.end((1, 0, 1))

    actions = rig(CodeRepaired(frozenset({0})))
    assert rig.one(actions, EndForkServers).indices == frozenset({0})
    assert rig.one(actions, StopWorker) == StopWorker(idle, 0.0)
    assert rig.one(rig.end((1, 1, 1)), StopWorker) == StopWorker(busy, 0.0)
    assert rig.one(rig.assign((1, 2, 1), spec=FUNCTION), StartWorker).worker not in (idle, busy)


def test_workers_that_lack_what_takes_long_to_import_go_when_they_are_idle(rig_of: Any) -> None:
    rig = rig_of(slots=3)
    idle, busy, other = (rig.one(rig.assign((1, n, 1), spec=FUNCTION), StartWorker).worker for n in range(3))
    for worker in (idle, busy, other):
        rig(WorkerReady(worker))
    rig.end((1, 0, 1))
    rig.end((1, 2, 1))

    assert rig.one(rig(Outdone(frozenset({idle, busy}))), StopWorker) == StopWorker(idle, 0.0)
    assert rig.one(rig.end((1, 1, 1)), StopWorker) == StopWorker(busy, 0.0)
    assert rig.one(rig.assign((1, 3, 1), spec=FUNCTION), SendTasks).worker == other


def test_a_crash_costs_one_task_and_the_rest_goes_on(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    worker = ready_worker(rig)
    rig.assign(*[(1, index, 1) for index in range(4)], spec=FUNCTION)
    rig.end((1, 0, 1))

    unread = ((1, 2, 1), (1, 3, 1))
    actions = rig(WorkerEnded(worker, unread, "worker process died: signal 11 (SIGSEGV)", None, 11, 50.0))

    report = rig.one(actions, KeepReports).reports[0]
    assert (report.task, report.outcome, report.signal) == (1, "failed", 11)
    assert report.error == "worker process died: signal 11 (SIGSEGV)"
    new = rig.one(actions, StartWorker).worker
    assert rig.sent(actions) == {new: [(1, 2, 1), (1, 3, 1)]}


def test_cancelling_the_head_spares_what_was_handed_ahead(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    worker = ready_worker(rig)
    rig.assign(*[(1, index, 1) for index in range(3)], spec=FUNCTION)

    assert rig.one(rig(Kill(1, 1, ((1, 0, 1),), "cancelled", "why")), Recall).lane == worker
    actions = rig(Recalled(worker, ((1, 1, 1), (1, 2, 1))))
    assert rig.one(actions, StopWorker) == StopWorker(worker, 4.0)

    actions = rig(WorkerEnded(worker, (), "died", None, 15, 50.0))
    assert rig.outcomes(actions) == {(1, 0, 1): "cancelled"}
    assert list(rig.sent(actions).values()) == [[(1, 1, 1), (1, 2, 1)]]


def test_cancelling_what_was_handed_ahead_spares_the_head(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    worker = ready_worker(rig)
    rig.assign(*[(1, index, 1) for index in range(3)], spec=FUNCTION)
    rig(Kill(1, 1, ((1, 2, 1),), "cancelled", "why"))

    actions = rig(Recalled(worker, ((1, 1, 1), (1, 2, 1))))

    rig.none(actions, StopWorker)
    assert rig.outcomes(actions) == {(1, 2, 1): "cancelled"}
    assert rig.sent(actions) == {worker: [(1, 1, 1)]}


def test_a_cancelled_task_that_has_ended_does_not_take_its_successor_along(rig_of: Any) -> None:
    """Task 0 is done, its answer is on the way; the worker has read task 1."""
    rig = rig_of(slots=1)
    worker = ready_worker(rig)
    rig.assign((1, 0, 1), (1, 1, 1), spec=FUNCTION)
    rig(Kill(1, 1, ((1, 0, 1),), "cancelled", "why"))

    rig.none(rig(Recalled(worker, ())), StopWorker)

    assert rig.outcomes(rig.end((1, 0, 1))) == {(1, 0, 1): "succeeded"}
    assert rig.outcomes(rig.end((1, 1, 1))) == {(1, 1, 1): "succeeded"}


def test_taking_back_takes_what_has_not_been_read(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    worker = ready_worker(rig)
    rig.assign(*[(1, index, 1) for index in range(3)], spec=FUNCTION)
    rig(Kill(1, 1, ((1, 0, 1), (1, 1, 1), (1, 2, 1)), "returned", "urgent"))

    actions = rig(Recalled(worker, ((1, 2, 1),)))

    assert rig.outcomes(actions) == {(1, 2, 1): "returned"}
    assert rig.outcomes(rig.end((1, 0, 1), (1, 1, 1))) == {(1, 0, 1): "succeeded", (1, 1, 1): "succeeded"}


def test_what_waits_behind_a_long_task_is_recalled(rig_of: Any) -> None:
    rig = rig_of(slots=2)
    worker = ready_worker(rig)
    rig.assign(*[(1, index, 1) for index in range(6)], spec=FUNCTION)
    other = next(number for number in rig.core.lanes.lanes if number != worker)
    busy = [attempt.ref for attempt in rig.core.lanes.lanes[worker].queue]
    rig.end(*[attempt.ref for attempt in rig.core.lanes.lanes[other].queue])

    actions = rig(Tick(), after_s=0.2)

    assert rig.one(actions, Recall).lane == worker
    actions = rig(Recalled(worker, tuple(busy[1:])))
    assert rig.sent(actions) == {other: [busy[1]]}


def test_workers_that_cannot_start_end_one_task_after_the_other(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    actions = rig.assign((1, 0, 1), (1, 1, 1), spec=FUNCTION)
    for _ in range(2):
        worker = rig.one(actions, StartWorker).worker
        actions = rig(WorkerEnded(worker, ((1, 0, 1),), "no numpy", 1, None, 0.0))
        assert rig.outcomes(actions) == {}
    worker = rig.one(actions, StartWorker).worker

    actions = rig(WorkerEnded(worker, ((1, 0, 1),), "no numpy", 1, None, 0.0))

    assert rig.outcomes(actions) == {(1, 0, 1): "failed"}
    assert rig.one(actions, KeepReports).reports[0].error == "no worker process could be started: no numpy"
    assert list(rig.sent(actions).values()) == [[(1, 1, 1)]]


def test_an_idle_worker_may_die_unnoticed(rig_of: Any) -> None:
    rig = rig_of(slots=1)
    worker = ready_worker(rig)

    assert rig(WorkerEnded(worker, (), "gone", None, 9, 0.0)) == []
    rig.one(rig.assign((1, 0, 1), spec=FUNCTION), StartWorker)
