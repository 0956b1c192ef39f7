"""The agent's standing with the leader: one connection at a time, its heartbeats and its reports."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

import aiohttp
import msgspec

from depalma.agent.connection import Finder, Outbox
from depalma.agent.core import AgentCore
from depalma.agent.events import AnyEvent, BeatSent, Connected, Disconnected
from depalma.agent.lives import Lives
from depalma.model import HostFacts, Load, Report
from depalma.monitor import boottime
from depalma.protocol import FromAgent, Heartbeat, Masters, Reports, ToAgent, Welcome, decode_to_agent, encode

log = logging.getLogger(__name__)

Socket = aiohttp.ClientWebSocketResponse

_BATCH_BYTES = 1024 * 1024
_HELLO_WAIT_S = 2.0
#: A leader that has not answered for so long may be frozen: the others are asked whether one of them leads.
_PATIENCE_S = 0.3
_LOOK_S = 0.05


class Session:
    """Connects, for ever. `deliver` gets the core's events, `on_frame` every frame of the leader."""

    def __init__(
        self,
        finder: Finder,
        core: AgentCore,
        facts: HostFacts,
        host: str,
        deliver: Callable[[AnyEvent], None],
        on_frame: Callable[[str, ToAgent], None],
        load: Callable[[], Load],
        lives: Lives,
    ) -> None:
        self.finder = finder
        self.whole = asyncio.Event()  #: clear between a cut-off and the rejoin
        self.whole.set()
        self._core = core
        self.facts = facts
        self._host = host
        self._deliver = deliver
        self._on_frame = on_frame
        self._outbox = Outbox()
        self._reports: list[Report] = []
        self._socket: Socket | None = None
        self._welcomed = False
        self._beat = 0
        self._beat_s = 1.0
        self._unanswered_s: float | None = None  #: when the first was sent of what should have been answered
        self._closing: set[asyncio.Task[Any]] = set()
        self._load = load
        self._lives = lives

    # ------------------------------------------------------------ out

    def send(self, frame: FromAgent) -> None:
        """Sends a frame if there is a leader; otherwise it is dropped."""
        if self._core.connected:
            self._outbox.put(encode(frame))

    def send_bulk(self, frame: FromAgent) -> None:
        """Does the same with one that gives way to all others."""
        if self._core.connected:
            self._outbox.put_bulk(encode(frame))

    def report(self, reports: Iterable[Report]) -> None:
        """Sends reports, with all others that collect until the connection takes them."""
        self._reports += reports
        self._outbox.wake()

    def close(self) -> None:
        """Ends the connection of now."""
        self._reports.clear()
        if self._socket is not None:
            self._close(self._socket)

    def _close(self, socket: Socket) -> None:
        closing = asyncio.create_task(socket.close())  # a frozen leader does not answer the closing handshake
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def ended(self) -> None:
        """Waits until closed connections are."""
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _report_frames(self) -> list[bytes]:
        """Returns what is to be reported, in frames of bounded size."""
        reports, self._reports = self._reports, []
        if reports:
            self._expect_answer(boottime())
        frames: list[bytes] = []
        batch: list[Report] = []
        size = 0
        for report in reports:
            size += 256 + len(report.error) + (len(report.result.inline) if report.result is not None else 0)
            batch.append(report)
            if size > _BATCH_BYTES:
                frames.append(encode(Reports(tuple(batch))))
                batch, size = [], 0
        if batch:
            frames.append(encode(Reports(tuple(batch))))
        return frames

    def _expect_answer(self, now: float) -> None:
        if self._unanswered_s is None:
            self._unanswered_s = now

    # ------------------------------------------------------------ connections

    async def run(self) -> None:
        """Looks for the leader, serves the connection, and looks again."""
        pause_s = 0.0
        while True:
            await self.whole.wait()
            found: tuple[str, Socket] | None = await self.finder.find()
            self._welcomed = False
            while found is not None:
                found = await self._serve(*found)
            # Accepted and then refused, or dropped before the welcome: not a reason to hammer.
            pause_s = 0.0 if self._welcomed else min(0.5, pause_s + 0.02)
            await asyncio.sleep(pause_s)

    async def _serve(self, url: str, socket: Socket) -> tuple[str, Socket] | None:
        """Serves one connection. Returns the next one if another leader was found while this one was silent."""
        if not self.whole.is_set():
            self._close(socket)
            return None
        self.finder.leader = url
        self._socket = socket
        self._outbox.clear()
        self._reports.clear()
        self._unanswered_s = None
        sent_s = boottime()
        tasks: list[asyncio.Task[Any]] = []
        try:
            hello = self._core.hello(self._host, _facts_here(self.facts, socket))
            await socket.send_bytes(encode(msgspec.structs.replace(hello, over=self._lives.over)))
            self._deliver(Connected(sent_s))
            watch = asyncio.create_task(self._watch(url, sent_s))
            tasks = [
                asyncio.create_task(self._read(url, socket)),
                asyncio.create_task(self._outbox.pump(socket, self._report_frames)),
                watch,
            ]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return watch.result() if watch.done() else None
        except (aiohttp.ClientError, OSError) as error:
            log.info("connection to %s: %s", url, error)
            return None
        finally:
            await self._leave(url, socket, tasks)

    async def _leave(self, url: str, socket: Socket, tasks: list[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        self._socket = None
        self._close(socket)
        self._deliver(Disconnected())
        log.info("connection to %s is gone", url)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, aiohttp.ClientError | OSError):
                raise result

    async def _read(self, url: str, socket: Socket) -> None:
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.BINARY:
                continue
            try:
                frame = decode_to_agent(message.data)
            except msgspec.MsgspecError as error:
                log.error("%s sent a frame that is none: %s", url, error)
                return
            self._unanswered_s = None
            if isinstance(frame, Welcome):
                log.info("connected to %s (%s), term %d, lease %g s", frame.leader, url, frame.term, frame.lease_s)
                self._welcomed = True
                self._beat_s = frame.heartbeat_s
            if isinstance(frame, Welcome | Masters):
                self.finder.learn(frame.masters)
            self._on_frame(url, frame)

    async def _watch(self, url: str, since_s: float) -> tuple[str, Socket]:
        """Returns another leader's connection, once this one is silent and another one accepts."""
        while True:
            await asyncio.sleep(_LOOK_S)
            silent_s = self._silent_s(since_s)
            if silent_s < (_PATIENCE_S if self._core.connected else _HELLO_WAIT_S):
                continue
            # After a while the same master is asked too: the line may be dead and nobody said so.
            again = silent_s > _HELLO_WAIT_S
            hunt = asyncio.create_task(self.finder.find("" if again else url))
            try:
                while self._silent_s(since_s) > _LOOK_S and (again or silent_s < _HELLO_WAIT_S):
                    await asyncio.wait([hunt], timeout=_LOOK_S)
                    if hunt.done():
                        break
                    silent_s = self._silent_s(since_s)
            finally:
                hunt.cancel()
            if not hunt.done() or hunt.cancelled():
                continue
            found = hunt.result()
            if found[0] == url and self._silent_s(since_s) <= _LOOK_S:
                self._close(found[1])  # it had answered, and this process stood still
                continue
            log.warning("%s is silent, %s answers", url, found[0])
            return found

    def _silent_s(self, since_s: float) -> float:
        """Returns for how long something has been waiting for an answer; before the welcome: since the hello."""
        if not self._core.connected:
            return boottime() - since_s
        return 0.0 if self._unanswered_s is None else boottime() - self._unanswered_s

    async def beat(self) -> None:
        """Sends heartbeats, for ever."""
        while True:
            await asyncio.sleep(self._beat_s)
            if not self._core.connected:
                continue
            self._beat += 1
            now = boottime()
            self._deliver(BeatSent(self._beat, now))
            self._expect_answer(now)
            self.send(Heartbeat(self._beat, now, self._load(), self._core.free_slots))


def _facts_here(facts: HostFacts, socket: Socket) -> HostFacts:
    """Returns the facts with the address that this connection has: a laptop takes another one along."""
    if facts.address:
        return facts
    own = socket.get_extra_info("sockname") or ("",)
    return msgspec.structs.replace(facts, address=str(own[0]))
