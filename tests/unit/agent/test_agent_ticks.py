"""The agent's clock goes on whatever the disk does."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from depalma import pausing
from depalma.agent.driver import Agent
from depalma.agent.events import OwnerStands, Tick
from depalma.agent.owner import Owner
from depalma.ownership import OwnerPolicy, Pause
from depalma.testing.fake_leader import wait_until


async def test_the_owner_is_seen_while_files_take_long(tmp_path: Path) -> None:
    done = threading.Event()
    threads = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(threads)
    threads.submit(done.wait)
    stands: list[OwnerStands] = []
    owner = Owner(tmp_path, stands.append, lambda news: None)
    owner._policy = OwnerPolicy(cpu_percent=99.0)
    pausing.begin(tmp_path, Pause(time.time()))
    try:
        await asyncio.wait_for(owner.look(), 30.0)
        assert stands[0].reason
    finally:
        done.set()
        owner._looker.shutdown()


async def test_time_limits_are_looked_at_while_files_take_long(tmp_path: Path) -> None:
    """It waited once a second until the trash was empty, and for every thread that unpacked something."""
    done = threading.Event()
    threads = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(threads)
    threads.submit(done.wait)  # a large archive, a folder of a million files, a server that does not answer
    events: list[Any] = []
    agent: Any = Agent.__new__(Agent)
    agent._root, agent._trust = tmp_path, None
    agent.deliver = events.append
    agent._look_after_monitor = lambda: None
    agent._runner = SimpleNamespace(cut_output=lambda: None)
    agent._core = SimpleNamespace(pending={}, early={}, attempts={})
    agent._journal = SimpleNamespace(committed=lambda left: None)
    agent._stage = SimpleNamespace(sweep=lambda live: None)
    ticking = asyncio.create_task(agent._tick_forever())
    try:
        await wait_until(lambda: len(events) > 15, "more than a second's worth of ticks")
        assert set(map(type, events)) == {Tick}
    finally:
        done.set()
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
