"""Looks up the address of a host in a thread of its own: a name server that hangs holds up its own target only, and
the end of the process not at all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

Found = list[tuple[Any, Any, int, str, Any]]


class OwnResolver(AbstractResolver):
    """One look-up at a time; who asks again while one hangs waits for that one."""

    def __init__(self) -> None:
        self._asked: tuple[tuple[str, int, int], asyncio.Future[Found]] | None = None

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Returns the addresses. Errors: OSError."""
        question = (host, port, int(family))
        if self._asked is None or self._asked[0] != question or self._asked[1].done():
            self._asked = question, _ask(question)
        found = await asyncio.shield(self._asked[1])
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(hostname=host, host=address[0], port=address[1], family=kind, proto=proto, flags=flags)
            for kind, _, proto, _, address in found
        ]

    async def close(self) -> None:
        """Leaves a look-up that hangs to itself."""


def _ask(question: tuple[str, int, int]) -> asyncio.Future[Found]:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Found] = loop.create_future()

    def tell(found: Found | None, error: OSError | None) -> None:
        if answer.cancelled():
            return
        if error is None:
            answer.set_result(found or [])
        else:
            answer.set_exception(error)
            answer.exception()  # it may be that nobody waits any more

    def look_up() -> None:
        host, port, family = question
        found: Found | None = None
        problem: OSError | None = None
        try:
            found = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        except OSError as error:
            problem = error
        except UnicodeError as error:
            problem = OSError(f"{host!r} is no name of a host: {error}")
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, found, problem)

    threading.Thread(target=look_up, name="webhook name look-up", daemon=True).start()
    return answer
