"""A loop that stands still is noticed, and one that turns is not accused."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from depalma.loopwatch import BOUNDS_S, PERIOD_S, LoopWatch


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(PERIOD_S)


def stall(seconds: float) -> None:
    """Stands still, and the loop with it: what is to be measured."""
    time.sleep(seconds)


async def test_a_stall_is_counted_with_its_length() -> None:
    watch = LoopWatch()
    watch.start()
    await until(lambda: sum(watch.counts) >= 2)
    long_before = sum(watch.counts[BOUNDS_S.index(0.3) :])
    stall(0.4)
    await until(lambda: sum(watch.counts[BOUNDS_S.index(0.3) :]) > long_before)
    watch.stop()

    assert 0.4 - PERIOD_S <= watch.worst_s() < 10
    assert watch.total_s >= watch.worst_s()


async def test_nothing_is_counted_after_the_end() -> None:
    watch = LoopWatch()
    assert watch.worst_s() == 0.0
    watch.stop()
    watch.start()
    await until(lambda: sum(watch.counts))
    watch.stop()
    counts = list(watch.counts)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2 * PERIOD_S):
            await until(lambda: watch.counts != counts)
