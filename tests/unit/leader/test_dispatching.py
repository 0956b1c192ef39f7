"""The loop that gives work out: what one job waits for holds up no other, and what happens meanwhile ends nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from depalma import protocol
from depalma.blobs import Blobs, BlobStore
from depalma.config import ClusterConfig
from depalma.leader.dispatching import DispatchLoop
from depalma.leader.leases import Leases
from depalma.leader.rates import Rates
from depalma.leader.rooms import Rooms
from depalma.leader.session import AgentSession
from depalma.leader.sessions import Sessions
from depalma.model import HostFacts, JobSpec, Payload
from depalma.protocol import Assign
from depalma.state import commands as c
from depalma.state.cluster_state import ClusterState
from depalma.state.machine import Machine

FACTS = HostFacts(4, 4, 8 << 30, 0, "0.1.0", "3.11", "10.0.0.11")
FAR_AWAY = Payload(digest="ab" * 32, size_bytes=100_000)


@dataclass
class Reign:
    """What the loop needs of a master that leads."""

    machine: Machine
    blobs: Blobs
    config: ClusterConfig
    rates: Rates
    term: int = 1
    master_id: str = "m1"
    clock = staticmethod(time.monotonic)
    wall = staticmethod(time.time)
    spent = staticmethod(time.thread_time)

    @property
    def state(self) -> ClusterState:
        return self.machine.state

    async def execute(self, command: c.AnyCommand) -> c.Applied:
        await asyncio.sleep(0)
        outcome = self.machine.apply(c.encode(command), 1)
        assert isinstance(outcome, c.Applied), outcome
        return outcome


@asynccontextmanager
async def hanging_master() -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A peer that takes questions about blobs and never answers; the event says that it was asked."""
    asked, over = asyncio.Event(), asyncio.Event()

    async def hang(request: web.Request) -> web.Response:
        asked.set()
        await over.wait()
        return web.Response(status=404)

    app = web.Application()
    app.router.add_get("/internal/blobs/{digest}", hang)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield site.name, asked
    finally:
        over.set()
        await runner.cleanup()


def assigned(session: AgentSession) -> list[tuple[int, int]]:
    frames = [protocol.decode_to_agent(data) for data in session._outbox]
    return [(task.job, task.task) for frame in frames if isinstance(frame, Assign) for task in frame.tasks]


async def test_an_argument_that_does_not_come_holds_up_no_other_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The master that has the argument hangs: its own task waits for it, all others are given out; and as it is
    cancelled and forgotten meanwhile, there is nothing left to send."""
    monkeypatch.setattr("depalma.blobs._TIMEOUT", aiohttp.ClientTimeout(total=60))  # this process may stand still
    async with hanging_master() as (url, asked):
        blobs = Blobs(BlobStore(tmp_path / "blobs"), {"m2": url}, "token")
        reign = Reign(Machine(), blobs, ClusterConfig(masters=(), hosts=()), Rates(time.monotonic))
        sessions = Sessions(reign, Leases(reign.config.settings.lease_times))  # type: ignore[arg-type]
        loop = DispatchLoop(reign, sessions, Rooms(reign, sessions))  # type: ignore[arg-type]
        for name in ("h1", "h2"):
            await reign.execute(c.AddHost("", name, (), {}, 0, 4, 0, 1.0))
            await reign.execute(c.HostUp(name, "i1", FACTS, 1.0))
            sessions.by_host[name] = AgentSession(name, "i1", FACTS, web.WebSocketResponse())
        duty = asyncio.create_task(loop.run())
        try:
            spec = JobSpec(kind="command", argv=("true",), on_host="h1", arguments=FAR_AWAY)
            await reign.execute(c.SubmitJob("", spec, 2.0))
            loop.wake()
            async with asyncio.timeout(30):
                await asked.wait()
                await reign.execute(c.SubmitJob("", JobSpec(kind="command", argv=("true",), on_host="h2"), 3.0))
                loop.wake()
                await sessions.by_host["h2"]._wake.wait()
            assert assigned(sessions.by_host["h2"]) == [(2, 0)]
            assert assigned(sessions.by_host["h1"]) == []

            await reign.execute(c.CancelJobs("", (1,), 4.0))
            await reign.execute(c.HostLost("h1", "i1", "silent", 5.0))
            await reign.execute(c.ForgetJobs((1,), 6.0))
            sending = list(sessions._tasks)
        finally:
            duty.cancel()
            await asyncio.gather(duty, return_exceptions=True)
    await asyncio.gather(*sending)
    assert assigned(sessions.by_host["h1"]) == []
    await blobs.close()
