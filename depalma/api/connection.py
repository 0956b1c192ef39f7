"""One connection of the HTTP server. It is aiohttp's; what a stranger can break in it ends it, and nothing else."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

log = logging.getLogger(__name__)


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
        log.info("ending a connection that sent what cannot be read: %s: %s", type(error).__name__, error)
        self.force_close()


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
