"""Connections between the members over TCP: one for each pair, dialled by the one with the smaller id.

A frame is a length of four bytes and that many bytes of content; an empty frame says "still here".
Mutual TLS will be the `ssl` argument of the two calls that open connections; the handshake stays.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
from collections.abc import Callable
from functools import partial

from depalma.consensus.handshake import MAX_BYTES, NONCE_BYTES, Acceptor, Dialer, HandshakeFailed
from depalma.consensus.messages import MAX_FRAME_BYTES
from depalma.consensus.settings import Member, ReplicaSettings

logger = logging.getLogger(__name__)

_LENGTH = struct.Struct("<I")
HANDSHAKE_S = 3.0
DIAL_S = 1.0
RETRY_S = (0.05, 0.5)
PING_S = 0.5
#: connections that have not proven themselves yet
MAX_UNPROVEN = 32
#: what may wait in the send buffer of one connection; the windows of replication keep far below it
MAX_UNSENT_BYTES = 64 << 20


class Connection(asyncio.Protocol):
    """One TCP connection: handshake first, then frames."""

    def __init__(self, mesh: Mesh, handshake: Dialer | Acceptor, peer: str | None) -> None:
        self._mesh = mesh
        self._handshake = handshake
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timeout: asyncio.TimerHandle | None = None
        #: whom this is for (dialled) or from (accepted and proven)
        self.peer = peer
        self.proven = False
        self.closed = asyncio.get_running_loop().create_future()
        self.heard_at = self.sent_at = asyncio.get_running_loop().time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not self._mesh.admit(self):
            transport.abort()
            return
        self._timeout = asyncio.get_running_loop().call_later(HANDSHAKE_S, self._expire)
        if isinstance(self._handshake, Dialer):
            self.send(self._handshake.hello())

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
        self._mesh.dismiss(self)
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        self.heard_at = asyncio.get_running_loop().time()
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            limit = MAX_FRAME_BYTES if self.proven else MAX_BYTES
            if length > limit:
                self._refuse(f"a frame of {length} bytes, where {limit} are allowed")
                return
            end = start + _LENGTH.size + length
            if len(buffer) < end:
                break
            if length:
                self._receive(bytes(memoryview(buffer)[start + _LENGTH.size : end]))
            if self.is_closing:
                return
            start = end
        del buffer[:start]

    def send(self, frame: bytes) -> None:
        """Send it if the connection stands; otherwise it is lost, like anything on its way."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self._refuse("it does not read what it is sent")
            return
        self.sent_at = asyncio.get_running_loop().time()
        transport.write(_LENGTH.pack(len(frame)) + frame)

    @property
    def is_closing(self) -> bool:
        """Whether nothing more will come or go."""
        return self._transport is None or self._transport.is_closing()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _receive(self, frame: bytes) -> None:
        if self.proven:
            assert self.peer is not None
            self._mesh.on_frame(self.peer, frame)
            return
        try:
            if isinstance(self._handshake, Dialer):
                self.send(self._handshake.prove(frame))
                self._prove(self.peer)
            else:
                answer, peer = self._handshake.receive(frame)
                if answer is not None:
                    self.send(answer)
                self._prove(peer)
        except HandshakeFailed as error:
            self._refuse(str(error))

    def _prove(self, peer: str | None) -> None:
        if peer is None:
            return
        self.peer = peer
        self.proven = True
        if self._timeout is not None:
            self._timeout.cancel()
        self._mesh.join(self)

    def _expire(self) -> None:
        self._refuse(f"no handshake within {HANDSHAKE_S} s")

    def _refuse(self, why: str) -> None:
        where = self._transport.get_extra_info("peername") if self._transport else None
        logger.warning("closing the connection with %s %s: %s", self.peer or "a stranger", where, why)
        self.abort()


def _itself(connection: Connection) -> Connection:
    return connection


class Mesh:
    """The connections of one replica."""

    def __init__(
        self,
        settings: ReplicaSettings,
        *,
        on_frame: Callable[[str, bytes], None],
        on_connected: Callable[[str], None],
        on_disconnected: Callable[[str], None],
    ) -> None:
        self.on_frame = on_frame
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._settings = settings
        self._connections: dict[str, Connection] = {}
        self._unproven: set[Connection] = set()
        self._heard: dict[str, float] = {}
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._started_at = 0.0
        self._closed = False

    async def start(self) -> None:
        """Listen and begin to dial. Raises OSError if the port cannot be bound."""
        loop = asyncio.get_running_loop()
        self._started_at = loop.time()
        me = self._settings.me
        if not self._settings.peers:
            return
        self._server = await loop.create_server(self._accept, me.host, me.raft_port)
        for member in self._settings.members:
            if member.id > me.id:
                self._tasks.append(loop.create_task(self._dial(member)))
        self._tasks.append(loop.create_task(self._keep_alive()))

    def close(self) -> None:
        """Close everything at once; nothing is called back afterwards."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        if self._server is not None:
            self._server.close()
        for connection in [*self._connections.values(), *self._unproven]:
            connection.abort()

    async def wait_closed(self) -> None:
        """Return when nothing of `close` is left to do."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        waiting = [connection.closed for connection in [*self._connections.values(), *self._unproven]]
        await asyncio.gather(*waiting)

    def send(self, peer: str, frame: bytes) -> None:
        """Send the frame, or lose it if there is no connection."""
        connection = self._connections.get(peer)
        if connection is not None:
            connection.send(frame)

    def contacts(self) -> dict[str, float]:
        """Seconds since each other member was last heard, or since our start if never."""
        now = asyncio.get_running_loop().time()
        heard = {**self._heard, **{peer: c.heard_at for peer, c in self._connections.items()}}
        return {peer: now - heard.get(peer, self._started_at) for peer in self._settings.peers}

    # -- called by the connections -------------------------------------------------------------------------------

    def admit(self, connection: Connection) -> bool:
        """Whether a new connection may begin its handshake."""
        if self._closed or len(self._unproven) >= MAX_UNPROVEN:
            return False
        self._unproven.add(connection)
        return True

    def join(self, connection: Connection) -> None:
        """A connection is proven; it replaces an older one of the same member, which must be dead."""
        peer = connection.peer
        assert peer is not None
        self._unproven.discard(connection)
        older = self._connections.pop(peer, None)
        if older is not None:
            older.abort()
            self._on_disconnected(peer)
        self._connections[peer] = connection
        logger.info("connected with %s", peer)
        self._on_connected(peer)

    def dismiss(self, connection: Connection) -> None:
        """A connection is closed."""
        self._unproven.discard(connection)
        peer = connection.peer
        if peer is None or self._connections.get(peer) is not connection:
            return
        del self._connections[peer]
        self._heard[peer] = connection.heard_at
        if not self._closed:
            logger.info("connection with %s closed", peer)
            self._on_disconnected(peer)

    # -- tasks ---------------------------------------------------------------------------------------------------

    def _accept(self) -> Connection:
        settings = self._settings
        members = frozenset(settings.peers)
        return Connection(self, Acceptor(settings.secret, settings.id, members, os.urandom(NONCE_BYTES)), None)

    async def _dial(self, member: Member) -> None:
        """Keep one connection with the member, for ever."""
        loop = asyncio.get_running_loop()
        pause = RETRY_S[0]
        while True:
            dialer = Dialer(self._settings.secret, self._settings.id, member.id, os.urandom(NONCE_BYTES))
            connection = Connection(self, dialer, member.id)
            try:
                async with asyncio.timeout(DIAL_S):
                    await loop.create_connection(partial(_itself, connection), member.host, member.raft_port)
                await connection.closed
            except (OSError, TimeoutError) as error:
                logger.debug("cannot reach %s: %s", member.id, error)
            pause = RETRY_S[0] if connection.proven else min(pause * 2, RETRY_S[1])
            await asyncio.sleep(pause)

    async def _keep_alive(self) -> None:
        """Say that we are here where nothing else says it, and close what has fallen silent."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(PING_S / 2)
            now = loop.time()
            we_slept = now - last > 2 * PING_S  # then what others said may be waiting to be read
            last = now
            for connection in list(self._connections.values()):
                if now - connection.sent_at >= PING_S:
                    connection.send(b"")
                if not we_slept and now - connection.heard_at > self._settings.connection_timeout_s:
                    logger.warning("%s has been silent for %.1f s", connection.peer, now - connection.heard_at)
                    connection.abort()
