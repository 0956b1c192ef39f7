"""Visits that go through this leader: what a user says goes to the host of the task, and back. Nothing is read here.

Nothing is replicated either, but for the event that says who was where (`state/visiting.py`): a visit ends with this
reign, with the connection of its host, and with that of its user, whichever is first.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Mapping

from aiohttp import WSMsgType, web
from msgspec import Struct

from depalma import visits
from depalma.errors import Rejected
from depalma.leader.session import AgentSession
from depalma.model import AttemptRef
from depalma.protocol import CloseVisit, FromVisit, InVisit, OpenVisit, VisitOver
from depalma.visits import MAX_MESSAGE_BYTES, PER_HOST, PER_LEADER, WINDOW_BYTES, Over

log = logging.getLogger(__name__)

#: Who has asked for a visit comes within this time.
COME_WITHIN_S = 15.0
#: More than an agent that keeps to the window can have on the way.
_QUEUE_BYTES = 2 * WINDOW_BYTES
_CLOSE_S = 1.0
#: A user who does not take what was last said for so long does not get it.
_LAST_WORDS_S = 60.0


class Wanted(Struct, frozen=True):
    """A visit that was asked for and has not begun."""

    ref: AttemptRef
    host: str
    argv: tuple[str, ...]
    tty: bool
    rows: int
    columns: int
    terminal: str
    until: float  #: loop time


class Visit:
    """One that goes on: what its host said and its user has not got yet."""

    def __init__(self, number: int, session: AgentSession) -> None:
        self.number = number
        self.session = session
        self.over = False  #: the host has said its last word, or nobody waits for it
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()

    def put(self, message: bytes) -> None:
        """Takes what the host said. One that says more than it may is not listened to any more."""
        if self.over:
            return
        self._queued_bytes += len(message)
        if len(message) > MAX_MESSAGE_BYTES or self._queued_bytes > _QUEUE_BYTES:
            log.warning("more is on the way in a visit of host %s than may be", self.session.host)
            self.session.send(CloseVisit(self.number))
            self.end(f"more was on the way from host {self.session.host} than may be")
            return
        self._queue.append(message)
        self._wake.set()

    def end(self, error: str = "") -> None:
        """Ends it; an error is its last word."""
        if not self.over:
            self.over = True
            if error:
                self._queue.append(visits.encode(Over(None, error)))
            self._wake.set()

    async def write(self, websocket: web.WebSocketResponse) -> None:
        """Gives the user what there is, until all is said. Errors: ConnectionError when he is gone."""
        while self._queue or not self.over:
            while self._queue:
                message = self._queue.popleft()
                self._queued_bytes -= len(message)
                await websocket.send_bytes(message)
            self._wake.clear()
            if not self.over:
                await self._wake.wait()
        async with asyncio.timeout(_CLOSE_S):
            await websocket.close()


class Visits:
    """All of this leader's."""

    def __init__(self, by_host: Mapping[str, AgentSession]) -> None:
        self._by_host = by_host
        self._wanted: dict[str, Wanted] = {}
        self._open: dict[int, Visit] = {}
        self._numbers = itertools.count(1)
        self.clock: Callable[[], float] = lambda: asyncio.get_running_loop().time()

    def check(self, host: str) -> None:
        """Returns if a task of this host can be visited now. Errors: Rejected."""
        session = self._by_host.get(host)
        if session is None:
            raise Rejected(f"host {host} is not connected to the leader now; ask again", code="host_away")
        if not session.takes_visits:
            raise Rejected(f"the agent of host {host} is of a version that lets nobody in", code="host_too_old")
        self._forget_late()
        there = [visit.session.host for visit in self._open.values()] + [want.host for want in self._wanted.values()]
        if there.count(host) >= PER_HOST:
            raise Rejected(f"there are {PER_HOST} visits on host {host} already, the most at once", code="too_many")
        if len(there) >= PER_LEADER:
            raise Rejected(f"there are {PER_LEADER} visits in the cluster already, the most at once", code="too_many")

    def expect(self, key: str, wanted: Wanted) -> None:
        """Lets a user in who comes with this key, once."""
        self._wanted[key] = wanted

    def take(self, key: str) -> Wanted | None:
        """Returns what was asked for under a key, once."""
        self._forget_late()
        return self._wanted.pop(key, None)

    def _forget_late(self) -> None:
        now = self.clock()
        self._wanted = {key: wanted for key, wanted in self._wanted.items() if wanted.until > now}

    async def serve(self, websocket: web.WebSocketResponse, wanted: Wanted) -> None:
        """Carries a visit from its beginning to its end."""
        session = self._by_host.get(wanted.host)
        visit = Visit(next(self._numbers), session) if session is not None else None
        if visit is None or session is None:
            await websocket.send_bytes(visits.encode(Over(None, f"host {wanted.host} is not connected any more")))
            await websocket.close()
            return
        self._open[visit.number] = visit
        size = (wanted.rows, wanted.columns)
        session.send(OpenVisit(visit.number, *wanted.ref, wanted.argv, wanted.tty, *size, wanted.terminal))
        writer = asyncio.create_task(visit.write(websocket))
        reader = asyncio.create_task(_listen(websocket, visit))
        try:
            await asyncio.wait([writer, reader], return_when=asyncio.FIRST_COMPLETED)
            if visit.over:
                await asyncio.wait([writer], timeout=_LAST_WORDS_S)
        finally:
            del self._open[visit.number]
            if not visit.over:
                visit.end()
                session.send(CloseVisit(visit.number))
            for task in (reader, writer):
                task.cancel()
            results = await asyncio.gather(reader, writer, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, ConnectionError | TimeoutError):
                raise result

    def told(self, session: AgentSession, frame: FromVisit) -> None:
        """Takes what a host says in a visit; of a visit that is over, or of another host's, nothing is taken."""
        visit = self._open.get(frame.visit)
        if visit is None or visit.session is not session:
            return
        if isinstance(frame, VisitOver):
            visit.end()
        else:
            visit.put(frame.message)

    def lost(self, session: AgentSession) -> None:
        """Ends the visits of a host whose connection is gone: it ends them, too."""
        for visit in self._open.values():
            if visit.session is session:
                visit.end(f"the connection to host {session.host} is lost; what ran there is ended with it")

    def close_all(self, why: str) -> None:
        """Ends all, and lets nobody in who has asked."""
        self._wanted.clear()
        for visit in self._open.values():
            visit.end(f"{why}; what ran on host {visit.session.host} is ended with it")


async def _listen(websocket: web.WebSocketResponse, visit: Visit) -> None:
    """Passes on what the user says, no faster than his host takes it."""
    async for message in websocket:
        if message.type is not WSMsgType.BINARY or len(message.data) > MAX_MESSAGE_BYTES:
            return
        await visit.session.send_bulk(InVisit(visit.number, message.data))
