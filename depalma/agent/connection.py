"""Finds the leader and holds the one WebSocket to it.

All masters are asked at once, again and again at short intervals: how soon an agent finds the new leader is part of
every fail-over. Only a leader accepts; a follower answers 421 and may name it. While a connection stands but the
leader is silent, the others are asked too, so that a frozen leader costs little more than a dead one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable

import aiohttp

from depalma.protocol import HOST_HEADER, MAX_FRAME_BYTES

log = logging.getLogger(__name__)

_FIRST_PAUSES_S = (0.02, 0.02, 0.03, 0.04, *[0.05] * 18)  # the first second, when a leader is being elected
_LONGEST_PAUSE_S = 0.5
_TRY_S = 2.0


class Finder:
    """Asks masters for the session. `masters` are base URLs; those that a leader names are added."""

    def __init__(self, session: aiohttp.ClientSession, masters: list[str], host: str) -> None:
        self._session = session
        self._headers = {HOST_HEADER: host}
        self.masters = list(dict.fromkeys(url.rstrip("/") for url in masters))
        self.leader = ""  #: base URL of the last one that accepted
        self._told: dict[str, str] = {}

    def learn(self, masters: tuple[str, ...]) -> None:
        """Takes the masters that a leader named; those known from the cluster file stay."""
        self.masters = list(dict.fromkeys([*self.masters, *(url.rstrip("/") for url in masters)]))

    def ordered(self) -> list[str]:
        """Returns all masters, the leader first."""
        return sorted(self.masters, key=lambda url: url != self.leader)

    async def find(self, pauses: tuple[float, ...] = _FIRST_PAUSES_S) -> tuple[str, aiohttp.ClientWebSocketResponse]:
        """Returns the leader's URL and an accepted connection; comes back only with one."""
        round_number = 0
        pause_s = pauses[-1]
        while True:
            accepted = await self.ask(self.masters)
            if accepted is not None:
                self.leader = accepted[0]
                return accepted
            longer_s = min(_LONGEST_PAUSE_S, pause_s * 1.3)
            pause_s = pauses[round_number] if round_number < len(pauses) else longer_s
            if round_number == len(pauses):
                log.warning("no leader found yet: %s", "; ".join(f"{u}: {t}" for u, t in self._told.items()))
            round_number += 1
            await asyncio.sleep(pause_s * random.uniform(0.7, 1.3))

    async def ask(self, urls: list[str]) -> tuple[str, aiohttp.ClientWebSocketResponse] | None:
        """Asks all of `urls` at once, and whom they name. Returns the first that accepts."""
        asked = set(urls)
        tries = {asyncio.create_task(self._try(url)) for url in urls}
        try:
            while tries:
                done, tries = await asyncio.wait(tries, return_when=asyncio.FIRST_COMPLETED)
                won: tuple[str, aiohttp.ClientWebSocketResponse] | None = None
                for task in done:
                    url, socket, leader = task.result()
                    if socket is not None and won is None:
                        won = (url, socket)
                    elif socket is not None:
                        await socket.close()
                    elif leader and leader not in asked:
                        asked.add(leader)
                        tries.add(asyncio.create_task(self._try(leader)))
                if won is not None:
                    return won
            return None
        finally:
            for task in tries:
                task.cancel()
                task.add_done_callback(_close_late)

    async def _try(self, url: str) -> tuple[str, aiohttp.ClientWebSocketResponse | None, str]:
        """Returns the URL, and a connection or whom the master names instead."""
        try:
            async with asyncio.timeout(_TRY_S):
                socket = await self._session.ws_connect(
                    f"{url}/v1/agent",
                    headers=self._headers,
                    max_msg_size=MAX_FRAME_BYTES,
                    autoping=True,
                    compress=0,
                    timeout=aiohttp.ClientWSTimeout(ws_close=0.5),
                )
            self._told.pop(url, None)
            return url, socket, ""
        except aiohttp.WSServerHandshakeError as error:
            self._told[url] = f"HTTP {error.status}"
            leader = error.headers.get("Depalma-Leader", "") if error.headers and error.status == 421 else ""
            return url, None, leader.rstrip("/")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._told[url] = str(error) or type(error).__name__
            return url, None, ""


def _close_late(task: asyncio.Task[tuple[str, aiohttp.ClientWebSocketResponse | None, str]]) -> None:
    """Closes a connection that was accepted although somebody else had won already."""
    if task.cancelled() or task.exception() is not None:
        return
    socket = task.result()[1]
    if socket is not None:
        with contextlib.suppress(RuntimeError):
            closing = asyncio.ensure_future(socket.close())
            _late.add(closing)
            closing.add_done_callback(_late.discard)


_late: set[asyncio.Future[bool]] = set()


class Outbox:
    """Frames that wait for the connection; one writer sends them in order, what collects meanwhile in one go."""

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self._some = asyncio.Event()

    def put(self, frame: bytes) -> None:
        """Adds a frame."""
        self._frames.append(frame)
        self._some.set()

    def clear(self) -> None:
        """Drops what was meant for a connection that is gone."""
        self._frames.clear()
        self._some.clear()

    async def pump(self, socket: aiohttp.ClientWebSocketResponse, refill: Callable[[], list[bytes]]) -> None:
        """Sends until the connection fails; `refill` gives what the batches of now are worth."""
        while True:
            await self._some.wait()
            self._some.clear()
            frames, self._frames = self._frames, []
            for frame in (*frames, *refill()):
                await socket.send_bytes(frame)

    def wake(self) -> None:
        """Makes the writer ask for a refill."""
        self._some.set()
