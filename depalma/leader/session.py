"""One connected agent, as the leader sees it: its outbox, its questions, what it was told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable

from aiohttp import WSCloseCode, web

from depalma import protocol
from depalma.model import AttemptRef, HostFacts, Load
from depalma.ownership import OwnerPolicy
from depalma.protocol import Answer, Question, Refused, ToAgent

log = logging.getLogger(__name__)

#: An agent that does not read for so many bytes of frames is cut off rather than remembered in memory.
OUTBOX_LIMIT_BYTES = 64 * 1024 * 1024
#: Whoever sends very much goes on when there is less than this.
QUEUED_BYTES = 8 * 1024 * 1024
#: Frames that may wait are taken up to this number; who has more of them waits.
BULK_FRAMES = 4


class Goodbye(Exception):
    """The agent is not admitted; the frame says why."""

    def __init__(self, refusal: Refused) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


class AgentSession:
    """Frames go out in the order of `send`, written by one task; nothing here touches the state."""

    def __init__(self, host: str, incarnation: str, facts: HostFacts, websocket: web.WebSocketResponse) -> None:
        self.host = host
        self.incarnation = incarnation
        self.facts = facts
        self.load = Load()
        self.free_slots = facts.slots
        self.known_jobs: set[int] = set()  #: whose template this connection has carried
        self.code_sent = 0  #: the last code index that this connection has carried
        self.code_sent_whole = False  #: the host's tree was another one, so it was sent everything
        self.killed: dict[tuple[AttemptRef, str], str] = {}  #: attempts it was told to end, with which outcome: why
        self.slots_told = 0  #: of its welcome
        self.tells_history = False  #: of its hello
        self.suspends_jobs = False  #: of its hello
        self.takes_visits = False  #: of its hello
        self.suspended: set[int] = set()  #: jobs that stand still, as it was told
        self.policy_told = OwnerPolicy()  #: of its welcome
        self.no_ahead_until = 0.0  #: loop time; it gave waiting tasks back, so it gets none ahead for a while
        self._websocket = websocket
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0
        self._bulk: deque[bytes] = deque()  #: what gives way to the outbox
        self._bulk_room = asyncio.Event()
        self._bulk_room.set()
        self._wake = asyncio.Event()
        self._taken = asyncio.Event()  #: what was queued is being written, or never will be
        self._is_over = False
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._next_request = 0

    def send(self, frame: ToAgent) -> None:
        """Queues a frame; a session whose agent does not read is closed."""
        data = protocol.encode(frame)
        self._outbox.append(data)
        self._outbox_bytes += len(data)
        if self._outbox_bytes > OUTBOX_LIMIT_BYTES:
            log.warning("host %s does not read its orders; closing its connection", self.host)
            self._outbox.clear()
            self.close()
        self._wake.set()

    async def has_written(self) -> None:
        """Returns when little is queued any more: whoever sends very much would be cut off for what it sends."""
        while self._outbox_bytes > QUEUED_BYTES and not self._is_over:
            self._taken.clear()
            await self._taken.wait()

    async def send_bulk(self, frame: ToAgent) -> None:
        """Queues a frame that may wait; returns when there is room for it. Errors: ConnectionError."""
        while not self._bulk_room.is_set():
            await self._bulk_room.wait()
        if self._is_over:
            raise ConnectionError(f"host {self.host} disconnected")
        self._bulk.append(protocol.encode(frame))
        if len(self._bulk) >= BULK_FRAMES:
            self._bulk_room.clear()
        self._wake.set()

    async def write_outbox(self) -> None:
        """Writes queued frames until cancelled or the connection breaks; of those that may wait one at a time."""
        while not self._websocket.closed:
            await self._wake.wait()
            self._wake.clear()
            frames, self._outbox, self._outbox_bytes = self._outbox, [], 0
            self._taken.set()
            if self._bulk:
                frames.append(self._bulk.popleft())
                self._bulk_room.set()
                self._wake.set()
            try:
                for data in frames:
                    await self._websocket.send_bytes(data)
            except ConnectionError:
                return

    def close(self) -> None:
        """Ends the connection from our side; the reader notices and cleans up."""
        closing = asyncio.ensure_future(self._websocket.close(code=WSCloseCode.GOING_AWAY))
        closing.add_done_callback(lambda done: done.cancelled() or done.exception())

    def dismiss(self, refusal: Refused) -> None:
        """Tells the agent why it is not wanted any more, and ends the connection."""
        dismissing = asyncio.ensure_future(self._dismiss(protocol.encode(refusal)))
        dismissing.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _dismiss(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            await self._websocket.send_bytes(data)
        await self._websocket.close()

    def note_over(self, refs: Iterable[AttemptRef]) -> None:
        """Forgets that it was told to end these: a connection may last for years."""
        if self.killed:
            over = frozenset(refs)
            self.killed = {each: why for each, why in self.killed.items() if each[0] not in over}

    async def ask(self, question: Callable[[int], Question]) -> Answer:
        """Sends `question(request id)` and returns the agent's answer. Errors: ConnectionError when it goes away."""
        self._next_request += 1
        number = self._next_request
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            self.send(question(number))
            return await answer
        finally:
            del self._answers[number]

    def answered(self, frame: Answer) -> None:
        """Hands an answer to whoever asked; a late one is dropped."""
        waiting = self._answers.get(frame.request)
        if waiting is not None and not waiting.done():
            waiting.set_result(frame)

    def abandon(self) -> None:
        """Fails the open questions: the connection is gone."""
        self._is_over = True
        self._taken.set()
        self._bulk_room.set()  # whoever waits for room looks up
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(ConnectionError(f"host {self.host} disconnected"))
