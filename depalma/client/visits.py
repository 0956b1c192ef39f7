"""The user's end of a visit: a command, or a shell, inside a task that runs. On aiohttp, which only this imports.

What is asked for goes the way of all writes; what is said then passes over one connection to the leader, with bounded
windows both ways (`depalma/visits.py`). Nothing is ever run twice: a connection that breaks ends the visit.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import aiohttp

from depalma.client.connections import Connections
from depalma.client.visiting import Granted, VisitResult
from depalma.errors import DepalmaError
from depalma.trust import verifying
from depalma.visits import (
    CHUNK_BYTES,
    MAX_MESSAGE_BYTES,
    STDERR,
    STDIN,
    STDOUT,
    Breach,
    Credit,
    Data,
    End,
    Flight,
    FromUser,
    Over,
    encode,
    from_task,
)

T = TypeVar("T")
#: A leader that does not answer for about so long is gone.
ALIVE_S = 10.0
_CONNECT_S = 10.0
_GOOD_BYE_LOOKS = 200
#: A leader that leads no more before the visit has begun costs a try.
TRIES = 3

Source = AsyncIterator[FromUser]
Sink = Callable[[int, bytes], Awaitable[None]]


class NotBegun(DepalmaError):
    """The master that was to carry the visit does not: nothing was run."""


async def converse(connections: Connections, granted: Granted, source: Source, sink: Sink) -> Over:
    """Carries a visit to its end and returns its last word, all output before it given to `sink`.

    Errors: NotBegun; what `source` and `sink` raise, which ends the visit.
    """
    endpoints, trust = connections.endpoints, connections.trust
    url = endpoints.leader or endpoints.urls[0]
    headers = {"Authorization": f"Bearer {connections.token}"}
    if trust is not None:
        trust.refresh()
    async with aiohttp.ClientSession(headers=headers) as http:
        try:
            async with asyncio.timeout(_CONNECT_S):
                socket = await http.ws_connect(
                    url + granted.path,
                    max_msg_size=MAX_MESSAGE_BYTES + 1,
                    compress=0,
                    heartbeat=ALIVE_S,
                    timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
                    ssl=verifying(trust),
                )
        except (aiohttp.WSServerHandshakeError, aiohttp.ClientConnectorError) as error:
            raise NotBegun(f"{url} does not lead any more, and nothing was run: {error}") from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            lost = f"the connection to {url} broke before anything was heard: {str(error) or type(error).__name__}"
            return Over(None, f"{lost}; what may run on {granted.host} is ended, and nothing is run again")
        try:
            last = await _Conversation(socket, source, sink).run()
        finally:
            await _close(socket)
    broken = f"the connection to {url} broke; what ran on {granted.host} is ended, and nothing is run again"
    return last or Over(None, broken)


async def _close(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Closes a connection, and waits a moment for TLS to say good-bye: the loop may end with this call."""
    raw = socket.get_extra_info("socket")
    await socket.close()
    for _ in range(_GOOD_BYE_LOOKS):
        if raw is None or raw.fileno() < 0:
            return
        await asyncio.sleep(0.005)


class _Conversation:
    """One connection. What comes is always read, so that the master never waits for whoever takes the output."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, source: Source, sink: Sink) -> None:
        self._socket = socket
        self._source = source
        self._sink = sink
        self._out, self._in = Flight(), Flight()
        self._room = asyncio.Event()
        self._come: asyncio.Queue[Data | None] = asyncio.Queue()

    async def run(self) -> Over | None:
        """Returns the last word; None if the connection ended without one."""
        listener, writer = asyncio.create_task(self._listen()), asyncio.create_task(self._write())
        tasks: set[asyncio.Task[Any]] = {listener, writer, asyncio.create_task(self._speak())}
        waiting = set(tasks)
        try:
            while listener in waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            self._come.put_nowait(None)
            await writer
            return listener.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self) -> Over | None:
        async for frame in self._socket:
            if frame.type is not aiohttp.WSMsgType.BINARY:
                return None
            try:
                message = from_task(frame.data)
                if isinstance(message, Over):
                    return message
                if isinstance(message, Credit):
                    self._in.consumed(message.size_bytes)
                    self._room.set()
                else:
                    self._out.add(len(message.data))
                    self._come.put_nowait(message)
            except Breach as error:
                return Over(None, f"what came from the cluster is not what was agreed: {error}")
        return None

    async def _write(self) -> None:
        while (data := await self._come.get()) is not None:
            await self._sink(data.stream, data.data)
            self._out.consumed(len(data.data))
            await self._send(Credit(len(data.data)))

    async def _speak(self) -> None:
        async for message in self._source:
            if not isinstance(message, Data):
                await self._send(message)
                continue
            for start in range(0, len(message.data), CHUNK_BYTES):
                piece = message.data[start : start + CHUNK_BYTES]
                while self._in.room_bytes < len(piece):
                    self._room.clear()
                    await self._room.wait()
                self._in.add(len(piece))
                await self._send(Data(STDIN, piece))

    async def _send(self, message: FromUser) -> None:
        try:
            await self._socket.send_bytes(encode(message))
        except (ConnectionError, aiohttp.ClientError):
            return  # whoever listens finds out, and says so


# ---------------------------------------------------------------- for programs


async def run_in(
    connections: Connections, grant: Callable[[], Awaitable[Granted]], data: bytes, timeout_s: float | None
) -> VisitResult:
    """Returns what a command did that was given this input. Errors: DepalmaError, TimeoutError; then it is ended."""
    written = {STDOUT: bytearray(), STDERR: bytearray()}

    async def sink(stream: int, piece: bytes) -> None:
        written[stream] += piece

    async def source() -> Source:
        yield Data(STDIN, data)
        yield End()

    async with asyncio.timeout(timeout_s):
        for left in reversed(range(TRIES)):
            granted = await grant()
            try:
                over = await converse(connections, granted, source(), sink)
                break
            except NotBegun:
                if not left:
                    raise
    if over.exit_code is None:
        raise DepalmaError(over.error)
    if over.error:  # it could not be started
        written[STDERR] += f"{over.error}\n".encode()
    return VisitResult(granted.task, granted.host, over.exit_code, *map(bytes, written.values()))


def in_a_thread(work: Coroutine[Any, Any, T]) -> T:
    """Returns what a coroutine returns, run in a loop of its own, whether the caller has one or not."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(asyncio.run(work))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="depalma-visit", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
