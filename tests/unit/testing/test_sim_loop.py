"""An event loop on virtual time, which stands still and dies with its process."""

from __future__ import annotations

import asyncio
import gc

import pytest

from depalma.testing.clock import ManualClock, Timeline
from depalma.testing.sim_loop import SimLoop


class Process:
    def __init__(self) -> None:
        self.alive, self.stands = True, False
        self.timeline = Timeline(ManualClock())
        self.loop = SimLoop(self.timeline, alive=lambda: self.alive, stands=lambda: self.stands)  # type: ignore[abstract]
        self.seen: list[object] = []

    async def count(self, pause_s: float) -> None:
        for number in range(5):
            await asyncio.sleep(pause_s)
            self.seen.append((number, round(self.loop.time(), 3)))


def test_tasks_go_on_when_their_time_has_come() -> None:
    process = Process()
    process.loop.call_soon(lambda: process.loop.create_task(process.count(1.0)))
    process.timeline.run_for(2.5)

    assert process.seen == [(0, 1.0), (1, 2.0)]


def test_timeouts_and_gathers_are_those_of_asyncio() -> None:
    process = Process()

    async def work() -> None:
        try:
            async with asyncio.timeout(0.5):
                await asyncio.gather(asyncio.sleep(0.1), asyncio.sleep(9))
        except TimeoutError:
            process.seen.append(process.loop.time())

    process.loop.call_soon(lambda: process.loop.create_task(work()))
    process.timeline.run_for(1.0)

    assert process.seen == [0.5]
    assert asyncio._get_running_loop() is None


def test_a_process_that_stands_still_does_what_is_due_when_it_goes_on() -> None:
    process = Process()
    process.loop.call_soon(lambda: process.loop.create_task(process.count(1.0)))
    process.timeline.run_for(0.5)
    process.stands = True
    process.timeline.run_for(3.0)
    assert process.seen == []

    process.stands = False
    process.timeline.run_for(1.2)

    assert [number for number, _ in process.seen] == [0, 1]


def test_a_dead_process_does_nothing_more() -> None:
    process = Process()
    process.loop.call_soon(lambda: process.loop.create_task(process.count(1.0)))
    process.timeline.run_for(1.5)
    process.alive = False
    process.loop.call_soon(process.seen.append, "late")
    process.timeline.run_for(5.0)

    assert process.seen == [(0, 1.0)]


@pytest.mark.filterwarnings("error")
def test_a_task_that_its_process_did_not_live_to_begin_is_closed_without_a_word() -> None:
    process = Process()

    def die() -> None:
        process.loop.create_task(process.count(1.0))
        process.alive = False

    process.loop.call_soon(die)
    process.timeline.run_for(5.0)
    process.loop.close()
    gc.collect()

    assert process.seen == []


def test_an_error_that_nobody_handles_ends_the_simulation() -> None:
    process = Process()
    process.loop.call_soon(lambda: process.seen[1])

    with pytest.raises(IndexError):
        process.timeline.run_for(0.1)
