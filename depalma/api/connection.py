"""One connection of the HTTP server. It is aiohttp's; what a stranger can break in it ends it, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from aiohttp import web

log = logging.getLogger(__name__)

#: What strangers send is told in the log so often at most: it must not fill the disk of a master.
TELL_S = 10.0


class _Teller:
    """Tells of requests that could not be read, now and then."""

    def __init__(self) -> None:
        self._count = 0
        self._next_s = float("-inf")

    def __call__(self, error: BaseException | None) -> None:
        self._count += 1
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + TELL_S
            what = f"{type(error).__name__}: {error}"[:500]
            log.warning("a request could not be read (%d so far): %r", self._count, what)


_tell = _Teller()


class Connection(web.RequestHandler):
    """aiohttp's own, whose defects stay its own.

    Some addresses in a request's first line make its parser raise what it does not expect (an IndexError, a
    UnicodeError). That came to the loop's handler, which stops the master: for bytes that anybody may send.
    """

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        """Takes bytes; what cannot be read ends the connection."""
        try:
            super().data_received(data)
        except Exception as error:
            self._end(error)

    async def start(self) -> None:
        """Answers requests until the connection ends."""
        try:
            await super().start()
        except Exception as error:
            self._end(error)

    def _end(self, error: Exception) -> None:
        _tell(error)
        self.force_close()

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Only of requests that could not be read: what handlers raise is told by the guard around them (app.py)."""
        _tell(kw.get("exc_info"))


class Connections:
    """Makes the protocol of each connection to the server, and knows how many there are."""

    def __init__(self, server: web.Server) -> None:
        self._server = server

    def __call__(self) -> asyncio.BaseProtocol:
        made = self._server()
        # The server makes them itself and has no seam for it; both classes have the same members.
        made.__class__ = Connection
        return made

    def __len__(self) -> int:
        return len(self._server.connections)
