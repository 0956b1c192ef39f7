"""A schedule as the state keeps it. [pure]"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct

from depalma.model import JobSpec

if TYPE_CHECKING:
    from depalma.state.cluster_state import ClusterState


class Schedule(Struct, array_like=True, gc=False):
    """What is submitted, and when next."""

    name: str
    spec: JobSpec
    cron: str
    zone: str
    next_at: float
    created_at: float
    by: str = ""
    catch_up: str = "one"  #: of missed ticks: one job for all of them, one for each (all), or none
    overlap: str = "run"  #: while the last job lives: run beside it, or skip the tick
    last_at: float | None = None  #: the last tick
    last_job: int = 0  #: the last job; 0 = none yet
    runs: int = 0
    skipped: int = 0  #: ticks without a job


def check_schedules(state: ClusterState, must: Callable[[bool, str], None]) -> None:
    """Checks the schedules."""
    for name, schedule in state.schedules.items():
        must(schedule.name == name, f"schedule {name}: its name is {schedule.name}")
        must(schedule.last_at is None or schedule.last_at < schedule.next_at, f"schedule {name}: goes back in time")
        must(schedule.last_job < state.next_job, f"schedule {name}: job {schedule.last_job} is not there yet")
        must((schedule.runs > 0) == (schedule.last_job > 0), f"schedule {name}: {schedule.runs} runs")
