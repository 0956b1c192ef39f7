"""A webhook that is removed and made again at once: what it is to be told is told, in whatever moment that was."""

from __future__ import annotations

import asyncio
import time

import pytest
from aiohttp import web

from depalma.config import ClusterConfig
from depalma.leader.rates import Rates
from depalma.leader.webhooks import Messengers
from depalma.state import commands as c
from depalma.state import webhook_commands as wc
from depalma.state.machine import Machine
from tests.unit.leader.test_dispatching import Reign


@pytest.mark.parametrize("turns", range(8))
async def test_a_webhook_of_the_same_name_is_told(turns: int) -> None:
    """The messenger of the one before may still be closing its connections."""
    told: asyncio.Queue[int] = asyncio.Queue()

    async def receive(request: web.Request) -> web.Response:
        told.put_nowait((await request.json())["id"])
        return web.Response()

    app = web.Application()
    app.router.add_post("/", receive)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    reign = Reign(Machine(), None, ClusterConfig(masters=(), hosts=()), Rates(time.monotonic))  # type: ignore[arg-type]
    messengers = Messengers(reign, lambda task: None)  # type: ignore[arg-type]

    def do(*commands: c.AnyCommand) -> None:
        for command in commands:
            assert isinstance(reign.machine.apply(c.encode(command), 1), c.Applied)
        messengers.changed(["w"])

    make = wc.AddWebhook("", "w", f"{site.name}/", ("job.finished",), (), (), (), "s" * 20, 100, 1.0)
    try:
        messengers.begin()
        async with asyncio.timeout(30):
            do(make, wc.TryWebhook("", "w", 1.0))
            assert await told.get() == 1
            messenger, _ = messengers._running["w"]
            while messenger._ahead:  # noqa: ASYNC110 - it has no event for that
                await asyncio.sleep(0)
            do(wc.RemoveWebhook("", "w", 2.0))
            for _ in range(turns):
                await asyncio.sleep(0)
            do(make, wc.TryWebhook("", "w", 3.0))
            assert await told.get() == 1
    finally:
        messengers.end()
        await runner.cleanup()
