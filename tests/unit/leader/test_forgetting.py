"""The leader forgets what a majority has archived, and keeps its memory within bounds when none can."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, cast

import pytest

from depalma.config import ClusterConfig, MasterConfig, Settings
from depalma.leader.forgetting import Forgetting
from depalma.model import JobSpec
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import AnyCommand, Applied, CancelJobs, ForgetJobs, SubmitJob
from depalma.state.machine import apply

NOW = 1_795_000_000.0


async def test_too_many_are_forgotten_as_they_end_and_not_a_minute_later() -> None:
    leader = Leader(history_jobs=20)
    duty = Forgetting(cast(Any, leader))
    running = asyncio.create_task(duty.run())
    leader.ended(23)
    for _ in range(23):
        duty.note_ended()
    async with asyncio.timeout(20):
        while len(leader.state.jobs) > 20:  # noqa: ASYNC110 - the duty has no event
            await asyncio.sleep(0)
    running.cancel()
    assert leader.forgotten == [1, 2, 3]


class Leader:
    """What the duty asks of its master; `archives`: ids that a majority archives, all if it is None."""

    def __init__(self, **settings: Any) -> None:
        master = MasterConfig(id="m1", host="127.0.0.1", dir="m1")
        self.config = ClusterConfig(masters=(master,), settings=Settings(**settings))
        self.state = ClusterState.empty()
        self.archives: set[int] | None = None
        self.asked: list[int] = []
        self.forgotten: list[int] = []
        self.archive = self

    def clock(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return NOW

    async def keep_on_majority(self, jobs: Sequence[int]) -> set[int]:
        self.asked += jobs
        return set(jobs) if self.archives is None else set(jobs) & self.archives

    async def execute(self, command: AnyCommand) -> Applied:
        outcome = apply(self.state, command, self.state.version + 1)
        assert isinstance(outcome, Applied)
        if isinstance(command, ForgetJobs):
            self.forgotten += cast(tuple[int, ...], outcome.value)
        return outcome

    def ended(self, count: int, at: float = NOW) -> None:
        for _ in range(count):
            apply(self.state, SubmitJob("", JobSpec(kind="command", argv=("true",)), at), 1)
            apply(self.state, CancelJobs("", (self.state.next_job - 1,), at), 1)


async def trimmed(leader: Leader) -> list[int]:
    await Forgetting(cast(Any, leader)).trim()
    return leader.forgotten


async def test_only_what_a_majority_has_archived_is_forgotten() -> None:
    leader = Leader(history_jobs=10)
    leader.ended(12)
    leader.archives = {2}
    assert await trimmed(leader) == [2]
    assert leader.asked == [1, 2], "the rest is not to be forgotten at all"
    leader.archives = None
    assert await trimmed(leader) == [2, 1]


async def test_old_jobs_are_forgotten_when_archived() -> None:
    leader = Leader(history_days=1.0)
    leader.ended(2, NOW - 86_401)
    leader.ended(1, NOW - 86_399)
    assert await trimmed(leader) == [1, 2]


async def test_beyond_a_fifth_more_memory_comes_first(caplog: pytest.LogCaptureFixture) -> None:
    leader = Leader(history_jobs=10)
    leader.archives = set()
    leader.ended(12)
    with caplog.at_level(logging.WARNING):
        assert await trimmed(leader) == []
        assert "2 finished jobs are not forgotten: no majority" in caplog.text
        leader.ended(3)
        assert await trimmed(leader) == [1, 2, 3]
    assert "3 finished jobs are forgotten without being archived" in caplog.text


async def test_many_are_asked_for_in_parts_and_no_further_than_they_are_taken() -> None:
    leader = Leader(history_jobs=0)
    leader.ended(2_000)
    leader.archives = set()
    await trimmed(leader)
    assert len(leader.asked) == 1_000, "when two parts in a row are not taken, the rest waits"
    leader.archives, leader.forgotten = None, []
    apply(leader.state, SubmitJob("", JobSpec(kind="command", argv=("true",)), NOW), 1)
    await trimmed(leader)
    assert list(leader.state.jobs) == [2_001], "what is live stays"


async def test_what_ended_first_goes_first() -> None:
    """Not what was submitted first: a job that took weeks would be gone, with its results, a moment after its end."""
    leader = Leader(history_jobs=4)
    apply(leader.state, SubmitJob("", JobSpec(kind="command", argv=("true",)), NOW - 9_000), 1)
    leader.ended(5, NOW - 100)
    apply(leader.state, CancelJobs("", (1,), NOW), 1)
    assert await trimmed(leader) == [2, 3]

    leader = Leader(history_jobs=4)
    leader.archives = set()
    apply(leader.state, SubmitJob("", JobSpec(kind="command", argv=("true",)), NOW - 9_000), 1)
    leader.ended(5, NOW - 100)
    apply(leader.state, CancelJobs("", (1,), NOW), 1)
    assert await trimmed(leader) == [2, 3]
