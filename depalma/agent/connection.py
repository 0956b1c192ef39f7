"""Finds the leader and holds the one WebSocket to it.

All masters are asked at once, again and again at short intervals: how soon an agent finds the new leader is part of
every fail-over. Only a leader accepts; a follower answers 421 and may name it. While a connection stands but the
leader is silent, the others are asked too, so that a frozen leader costs little more than a dead one.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable

import aiohttp

from depalma.protocol import HOST_HEADER, MAX_FRAME_BYTES
from depalma.trust import Trust, verifying

log = logging.getLogger(__name__)

Socket = aiohttp.ClientWebSocketResponse

_FIRST_PAUSE_S = 0.02
#: How it goes on for about a second, in which a leader is being elected; later it slows down to the longest pause.
_EAGER_PAUSE_S = 0.05
_EAGER_TRIES = 25
_LONGEST_PAUSE_S = 0.5
_TRY_S = 2.0
_COMPLAIN_AFTER_S = 2.0


def headers_of(token: str, host: str) -> dict[str, str]:
    """Returns what an agent says of itself with each request."""
    return {"Authorization": f"Bearer {token}", HOST_HEADER: host}


class Finder:
    """Asks masters for the session. `masters` are base URLs; those that a leader named last are asked too.

    `on_learned` is called with what a leader named, when that is news.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        masters: list[str],
        host: str,
        *,
        learned: Iterable[str] = (),
        trust: Trust | None = None,
        on_learned: Callable[[tuple[str, ...]], None] = lambda urls: None,
    ) -> None:
        self._session = session
        self._headers = {HOST_HEADER: host}
        self._given = [url.rstrip("/") for url in masters]
        self._trust = trust
        self._learned = self._ours(learned)
        self._on_learned = on_learned
        self.leader = ""  #: base URL of the last one that accepted
        self._told: dict[str, str] = {}

    @property
    def masters(self) -> list[str]:
        """Base URLs: those of the cluster file, then those that a leader named."""
        return list(dict.fromkeys((*self._given, *self._learned)))

    def learn(self, masters: tuple[str, ...]) -> None:
        """Takes the masters that a leader named, instead of those that one named before."""
        named = self._ours(masters)
        if named != self._learned:
            self._learned = named
            self._on_learned(named)

    def _ours(self, named: Iterable[str]) -> tuple[str, ...]:
        """Returns base URLs as we can speak to masters: never in plain text if that is what we were given."""
        plain = not self._given[0].startswith("https:")
        urls = [url.rstrip("/") for url in named]
        if not plain:
            return tuple(url.replace("http:", "https:", 1) for url in urls)
        return tuple(url.replace("https:", "http:", 1) for url in urls) if self._trust is None else tuple(urls)

    def ordered(self) -> list[str]:
        """Returns all masters, the leader first."""
        return sorted(self.masters, key=lambda url: url != self.leader)

    async def find(self, avoid: str = "") -> tuple[str, Socket]:
        """Returns the first master that accepts, and the connection; comes back only with one.

        Each master is asked at its own pace, so that one that hangs does not hold up the others. `avoid` is not asked.
        """
        found: asyncio.Future[tuple[str, Socket]] = asyncio.get_running_loop().create_future()
        hunts: dict[str, asyncio.Task[None]] = {}

        def hunt(url: str) -> None:
            if url != avoid and url not in hunts:
                hunts[url] = asyncio.create_task(self._hunt(url, found, hunt))

        for url in self.masters:
            hunt(url)
        try:
            if not avoid:
                await asyncio.wait([found], timeout=_COMPLAIN_AFTER_S)
                if not found.done():
                    log.warning("no leader found yet: %s", "; ".join(f"{u}: {t}" for u, t in self._told.items()))
            return await found
        finally:
            for task in hunts.values():
                task.cancel()
            await asyncio.gather(*hunts.values(), return_exceptions=True)

    async def _hunt(self, url: str, found: asyncio.Future[tuple[str, Socket]], named: Callable[[str], None]) -> None:
        """Asks one master until it accepts."""
        pause_s = _FIRST_PAUSE_S
        for number in itertools.count():
            socket, leader = await self._try(url)
            if socket is not None:
                if not found.done():
                    found.set_result((url, socket))
                else:
                    await socket.close()
                return
            if leader:
                named(leader)
            await asyncio.sleep(pause_s * random.uniform(0.7, 1.3))
            pause_s = min(_LONGEST_PAUSE_S if number > _EAGER_TRIES else _EAGER_PAUSE_S, pause_s * 1.3)

    async def _try(self, url: str) -> tuple[Socket | None, str]:
        """Returns a connection, or whom the master names instead."""
        try:
            async with asyncio.timeout(_TRY_S):
                socket = await self._session.ws_connect(
                    f"{url}/v1/agent",
                    headers=self._headers,
                    max_msg_size=MAX_FRAME_BYTES,
                    compress=0,
                    timeout=aiohttp.ClientWSTimeout(ws_close=0.5),
                    ssl=verifying(self._trust),
                )
            self._told.pop(url, None)
            return socket, ""
        except aiohttp.WSServerHandshakeError as error:
            self._told[url] = f"HTTP {error.status}" + (" (does it speak TLS?)" if error.status == 400 else "")
            leader = error.headers.get("Depalma-Leader", "") if error.headers and error.status == 421 else ""
            return None, "".join(self._ours([leader]))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._told[url] = str(error) or type(error).__name__
            return None, ""


class Outbox:
    """Frames that wait for the connection; one writer sends them in order, what collects meanwhile in one go."""

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self._bulk: deque[bytes] = deque()  #: what gives way to everything else; whoever puts it there bounds it
        self._some = asyncio.Event()

    def put(self, frame: bytes) -> None:
        """Adds a frame."""
        self._frames.append(frame)
        self._some.set()

    def put_bulk(self, frame: bytes) -> None:
        """Adds a frame that may wait: for each of them others have a chance to go first."""
        self._bulk.append(frame)
        self._some.set()

    def clear(self) -> None:
        """Drops what was meant for a connection that is gone."""
        self._frames.clear()
        self._bulk.clear()
        self._some.clear()

    async def pump(self, socket: Socket, refill: Callable[[], list[bytes]]) -> None:
        """Sends until the connection fails; `refill` gives what the batches of now are worth."""
        while True:
            await self._some.wait()
            self._some.clear()
            frames, self._frames = self._frames, []
            for frame in (*frames, *refill()):
                await socket.send_bytes(frame)
            if self._bulk:
                await socket.send_bytes(self._bulk.popleft())
                if self._bulk:
                    self._some.set()

    def wake(self) -> None:
        """Makes the writer ask for a refill."""
        self._some.set()
