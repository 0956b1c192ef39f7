"""Connections between simulated agents and masters: bytes arrive in order or not at all, as TCP has it.

What is sent into a cut waits there, as a sender tries again; it arrives after the heal, however late, unless the end
that it is for has gone away meanwhile. What was sent before a connection closed still arrives at the other end.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from aiohttp import WSMsgType

from depalma.testing.clock import Timeline

#: how soon a sender tries again
_AGAIN_S = 0.03


class Message(NamedTuple):
    """What a WebSocket gives."""

    type: WSMsgType
    data: bytes


_CLOSED = Message(WSMsgType.CLOSED, b"")


class Line:
    """One direction of a connection. `None` is its end."""

    def __init__(
        self, timeline: Timeline, delay_s: Callable[[], float], cut: Callable[[], bool],
        deliver: Callable[[bytes | None], None],
    ) -> None:  # fmt: skip
        self._timeline = timeline
        self._delay_s = delay_s
        self._cut = cut
        self._deliver = deliver
        self._under_way: deque[bytes | None] = deque()
        self._arrives_s = 0.0
        self.closed = False

    def put(self, data: bytes | None) -> None:
        """Sends; nothing after the end."""
        if self.closed:
            return
        self.closed = data is None
        now = self._timeline.clock.monotonic()
        self._arrives_s = max(now + self._delay_s(), self._arrives_s)  # none overtakes another
        self._under_way.append(data)
        self._timeline.after(self._arrives_s - now, self._arrive)

    def _arrive(self) -> None:
        if self._cut():
            self._timeline.after(_AGAIN_S, self._arrive)
        elif self._under_way:
            self._deliver(self._under_way.popleft())


class ServerSocket:
    """The master's end, in the shape of aiohttp's WebSocketResponse as far as the sessions use it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Callable[[bytes | None], None]) -> None:
        self._loop = loop
        self._send = send
        self._came: deque[bytes | None] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.closed = False

    def came(self, data: bytes | None) -> None:
        """Something has arrived; the process takes it up when it can."""
        self._loop.call_soon(self._take, data)

    def _take(self, data: bytes | None) -> None:
        self._came.append(data)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> Message:
        """The next message; CLOSED at the end."""
        while not self._came and not self.closed:
            self._waiter = self._loop.create_future()
            await self._waiter
        data = self._came.popleft() if self._came else None
        if data is None:
            self.closed = True
            return _CLOSED
        return Message(WSMsgType.BINARY, data)

    def __aiter__(self) -> ServerSocket:
        return self

    async def __anext__(self) -> Message:
        message = await self.receive()
        if message is _CLOSED:
            raise StopAsyncIteration
        return message

    async def send_bytes(self, data: bytes) -> None:
        """Errors: ConnectionError once it is closed."""
        if self.closed:
            raise ConnectionResetError("closed")
        self._send(data)

    async def close(self, code: int = 1000) -> None:
        """Ends it from this side."""
        if not self.closed:
            self.closed = True
            self._send(None)
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)


class Cuts:
    """Which agents and masters do not hear each other, and how long bytes travel."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self.slowest_s = 0.002
        self.blocked: set[tuple[str, str]] = set()

    def delay_s(self) -> float:
        """One way."""
        return self._random.uniform(0.0002, self.slowest_s)

    def cut(self, sender: str, receiver: str) -> bool:
        """Whether nothing gets through."""
        return (sender, receiver) in self.blocked
