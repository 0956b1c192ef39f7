"""Looks after the owner of the machine: sees whether somebody is there, has tasks make way, tells the leader.

The switch is looked at ten times a second, the rest twice a second, and only while the policy asks for it. Nothing
here needs a leader: what was the policy when the connection broke still is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from depalma.agent import sight
from depalma.agent.events import OwnerStands
from depalma.agent.execution import OWNER
from depalma.agent.yielding import Sight, Yielding
from depalma.monitor import boottime
from depalma.ownership import OwnerPolicy
from depalma.pausing import Switch
from depalma.protocol import OwnerNews, Welcome

log = logging.getLogger(__name__)

_SWITCH_S = 0.1
_LOOK_S = 0.5
_GPU_S = 5.0


class Owner:
    """Of one agent. `deliver` takes what changes, `send` what is to be told to the leader."""

    def __init__(self, root: Path, deliver: Callable[[OwnerStands], None], send: Callable[[OwnerNews], None]) -> None:
        self._deliver = deliver
        self._send = send
        self._switch = Switch(root)
        self._input = sight.Input()
        self._cpu = sight.ForeignCpu()
        self._yielding = Yielding()
        self._policy = OwnerPolicy()
        self._stands = OwnerStands()
        self._sight = Sight(0.0)
        self._desktop: tuple[float, str] | None = None
        self._gpu_percent: float | None = None
        self._look_s = 0.0
        self._recorded: OwnerNews | None = None  #: what the leader knows; None = it does not want to
        self._wake = asyncio.Event()
        # Threads of the loop's own pool may all be busy with large files.
        self._looker = ThreadPoolExecutor(1, "owner")

    def welcomed(self, frame: Welcome) -> None:
        """Takes what the leader says: the policy, and what it knows of us."""
        if frame.owner_policy != self._policy:
            self._policy = frame.owner_policy
            self._look_s = 0.0
        self._recorded = frame.owner_known
        self._wake.set()

    def orders(self) -> list[tuple[Any, ...]]:
        """Returns what a new monitor has to be told."""
        lower: list[tuple[Any, ...]] = [("lower", True)] if self._stands.lower else []
        return lower + ([("suspend", None, OWNER)] if self._stands.suspend else [])

    async def watch(self) -> None:
        """Looks, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._ask(_LOOK_S, self._ask_desktop))
            group.create_task(self._ask(_GPU_S, self._ask_gpu))
            while True:
                await self.look()
                self._wake.clear()
                try:
                    async with asyncio.timeout(_SWITCH_S):
                        await self._wake.wait()
                except TimeoutError:
                    continue

    async def look(self) -> None:
        """Looks once at what is due."""
        now = boottime()
        if self._policy.watches and now >= self._look_s:
            self._look_s = now + _LOOK_S
            self._sight = await asyncio.get_running_loop().run_in_executor(self._looker, self._see, now)
        elif not self._policy.watches:
            self._sight = Sight(0.0)
        pause = self._switch.read()
        # A pause ends at its time, not at that of the last look.
        seen = msgspec.structs.replace(self._sight, wall=time.time())
        self._turn(self._yielding.look(self._policy, seen, pause, now))

    def _see(self, now: float) -> Sight:
        wall, local, policy = time.time(), time.localtime(), self._policy
        input_at, where = None, ""
        if policy.idle_s:
            input_at, where = self._input.last(wall, now)
            desktop = self._desktop
            if desktop is not None and (not desktop[0] or desktop[0] > (input_at or 0.0)):
                input_at, where = desktop[0] or wall, desktop[1]
        else:
            self._input.close()
        return Sight(
            wall=wall,
            weekday=local.tm_wday,
            minute=local.tm_hour * 60 + local.tm_min,
            input_at=input_at,
            input_where=where,
            cpu_percent=self._cpu.percent() if policy.cpu_percent else None,
            gpu_percent=self._gpu_percent,
        )

    def _turn(self, stands: OwnerStands) -> None:
        if stands != self._stands:
            if stands.reason != self._stands.reason or stands.step != self._stands.step:
                there = f"is there: {stands.reason}; tasks: {stands.step or 'no new ones'}"
                log.info("the owner of the machine %s", there if stands.reason else "is gone")
            self._stands = stands
            self._deliver(stands)
        news = OwnerNews(stands.reason, stands.step, stands.suspend)
        if self._recorded is not None and news != self._recorded:
            self._recorded = news
            self._send(news)

    async def _ask(self, every_s: float, question: Callable[[], Awaitable[None]]) -> None:
        while True:
            await question()
            await asyncio.sleep(every_s)

    async def _ask_desktop(self) -> None:
        self._desktop = await asyncio.to_thread(sight.desktop_idle) if self._policy.idle_s else None

    async def _ask_gpu(self) -> None:
        self._gpu_percent = await asyncio.to_thread(sight.foreign_gpu_percent) if self._policy.gpu_percent else None
