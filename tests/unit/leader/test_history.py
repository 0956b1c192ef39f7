"""What the leader forgets, and which open jobs it closes."""

from __future__ import annotations

from depalma.items import pack
from depalma.leader.history import IdleJobs, to_forget
from depalma.model import JobSpec, Payload
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import AddTasks, AnyCommand, Applied, CancelJobs, SubmitJob
from depalma.state.machine import apply


def do(state: ClusterState, command: AnyCommand) -> None:
    outcome = apply(state, command, state.version + 1)
    assert isinstance(outcome, Applied), outcome


def submit(state: ClusterState, *, ended_at: float | None = None, **spec: object) -> int:
    number = state.next_job
    do(state, SubmitJob(f"s{number}", JobSpec(kind="command", argv=("true",), **spec), 1.0))  # type: ignore[arg-type]
    if ended_at is not None:
        do(state, CancelJobs(f"c{number}", (number,), ended_at))
    return number


def test_old_finished_jobs_are_forgotten_and_live_ones_never() -> None:
    state = ClusterState.empty()
    old, fresh, live = submit(state, ended_at=10.0), submit(state, ended_at=90.0), submit(state)
    assert to_forget(state.jobs.values(), finished_before=50.0, keep=100) == [old]
    assert to_forget(state.jobs.values(), finished_before=100.0, keep=100) == [old, fresh]
    assert live in state.jobs


def test_beyond_the_number_to_keep_the_oldest_go() -> None:
    state = ClusterState.empty()
    jobs = [submit(state, ended_at=90.0) for _ in range(5)]
    assert to_forget(state.jobs.values(), finished_before=0.0, keep=2) == jobs[:3]


def test_an_open_job_is_closed_after_its_idle_time_and_not_before() -> None:
    state = ClusterState.empty()
    job = submit(state, open=True, count=0)
    submit(state)  # not open
    idle = IdleJobs(60.0)
    assert idle.over(state.jobs.values(), now=0.0) == []
    assert idle.over(state.jobs.values(), now=59.0) == []
    assert idle.over(state.jobs.values(), now=60.0) == [job]


def test_work_starts_the_idle_time_anew() -> None:
    state = ClusterState.empty()
    job = submit(state, open=True, count=0)
    idle = IdleJobs(60.0)
    idle.over(state.jobs.values(), now=0.0)
    do(state, AddTasks("a", job, Payload(inline=pack([b"x"])), 1, 2.0))
    assert idle.over(state.jobs.values(), now=61.0) == [], "it has a task to run"
    do(state, CancelJobs("c", (job,), 3.0))
    assert idle.over(state.jobs.values(), now=200.0) == [], "it has ended"
