"""What may wait gives way: to heartbeats at the agent's end, and to orders at the leader's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from depalma import protocol
from depalma.agent.connection import Outbox
from depalma.leader.session import BULK_FRAMES, AgentSession
from depalma.model import HostFacts
from depalma.protocol import InVisit, Masters

FACTS = HostFacts(4, 4, 8 << 30, 0, "0.1.0", "3.11", "10.0.0.11")


class Wire:
    """A connection that takes a frame each time it is let."""

    closed = False

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.lets = asyncio.Semaphore(0)
        self.waits = asyncio.Event()
        self._taken: asyncio.Queue[bytes] = asyncio.Queue()

    async def send_bytes(self, data: bytes) -> None:
        self.waits.set()
        await self.lets.acquire()
        self._taken.put_nowait(data)

    async def take(self, count: int) -> list[bytes]:
        """Takes so many frames more; returns all."""
        for _ in range(count):
            self.lets.release()
            async with asyncio.timeout(30):
                self.sent.append(await self._taken.get())
        return self.sent


async def test_an_agent_sends_other_frames_between_two_that_may_wait() -> None:
    wire: Any = Wire()
    outbox = Outbox()
    pump = asyncio.create_task(outbox.pump(wire, list))
    for number in range(5):
        outbox.put_bulk(b"bulk%d" % number)
    assert await wire.take(1) == [b"bulk0"]
    outbox.put(b"beat")
    assert (await wire.take(2))[1:] == [b"bulk1", b"beat"], "at most the one that is on its way comes before"
    outbox.clear()
    outbox.put(b"last")
    assert (await wire.take(2))[3:] == [b"bulk2", b"last"], "what was meant for another connection is gone"
    pump.cancel()


async def test_a_leader_sends_orders_between_two_that_may_wait_and_keeps_few_of_those() -> None:
    wire: Any = Wire()
    session = AgentSession("h1", "i", FACTS, wire)
    order = Masters(("http://a",))

    async def say() -> None:
        for number in range(20):
            await session.send_bulk(InVisit(1, b"%d" % number))

    saying = asyncio.create_task(say())
    writing = asyncio.create_task(session.write_outbox())
    await wire.waits.wait()
    assert len(session._bulk) <= BULK_FRAMES
    session.send(order)
    await wire.take(3)
    assert protocol.encode(order) in wire.sent
    assert not saying.done()
    session.abandon()
    with pytest.raises(ConnectionError, match="host h1 disconnected"):
        await saying
    writing.cancel()
