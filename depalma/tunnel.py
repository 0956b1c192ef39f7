"""TLS inside the messages of another connection, with the standard library's buffers.

For the few talks that must be secret while the connection that carries them is not.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

MESSAGE_BYTES = 256 * 1024
_LENGTH_BYTES = 4


class TunnelFailed(Exception):
    """The other side does not speak as it should, or does not believe us."""


class Tunnel:
    """One end. `send` and `receive` carry the messages that hold it. Errors of all methods: TunnelFailed."""

    def __init__(
        self,
        context: ssl.SSLContext,
        send: Callable[[bytes], Awaitable[None]],
        receive: Callable[[], Awaitable[bytes]],
        *,
        server_side: bool = False,
    ) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._send = send
        self._receive = receive

    async def handshake(self) -> object:
        """Returns the other side's certificate, verified as the context says."""
        await self._step(self._tls.do_handshake)
        return self._tls.getpeercert()

    async def write(self, data: bytes) -> None:
        """Sends one message."""
        await self._step(lambda: self._tls.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data))

    async def read(self) -> bytes:
        """Returns one message."""
        size = int.from_bytes(await self._exactly(_LENGTH_BYTES), "big")
        if size > MESSAGE_BYTES:
            raise TunnelFailed(f"a message of {size} bytes; allowed: {MESSAGE_BYTES}")
        return await self._exactly(size)

    async def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            missing = size - len(data)
            part = await self._step(lambda missing=missing: self._tls.read(missing))  # type: ignore[misc]
            if not part:
                raise TunnelFailed("the other side has ended the talk")
            data += part
        return data

    async def _step(self, operation: Callable[[], T]) -> T:
        """Does it, carrying bytes both ways until it is done."""
        while True:
            try:
                value = operation()
            except ssl.SSLWantReadError:
                await self._flush()
                data = await self._receive()
                if not data:
                    raise TunnelFailed("the other side has hung up") from None
                self._incoming.write(data)
            except ssl.SSLError as error:
                await self._flush()  # an alert, which tells the other side why
                raise TunnelFailed(getattr(error, "verify_message", "") or error.reason or str(error)) from error
            else:
                await self._flush()
                return value

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            await self._send(data)
