"""Connections between the members over mutual TLS: one for each pair, dialled by the one with the smaller id.

A frame is a length of four bytes and that many bytes of content; an empty frame says "still here". The acceptor's
first frame is empty: with TLS 1.3 the dialer is through with the handshake before the acceptor has seen who it is.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable, Iterable
from functools import partial
from typing import cast

from depalma.consensus.keyring import Keyring
from depalma.consensus.messages import MAX_FRAME_BYTES
from depalma.consensus.settings import Member, ReplicaSettings
from depalma.consensus.tls import Channel, Reason, Refusal

logger = logging.getLogger(__name__)

_LENGTH = struct.Struct("<I")
HANDSHAKE_S = 3.0
DIAL_S = 1.0
RETRY_S = (0.05, 0.5)
PING_S = 0.5
#: accepted connections that have not proven themselves yet; one more takes the place of the oldest
MAX_UNPROVEN = 32
#: what may wait in the send buffer of one connection; the windows of replication keep far below it
MAX_UNSENT_BYTES = 64 << 20
#: refusals for one reason are told in the log so often at most
TELL_S = 10.0


class Connection(asyncio.Protocol):
    """One TCP connection: TLS and proof of who is there first, then frames."""

    def __init__(self, mesh: Mesh, channel: Channel, peer: str | None) -> None:
        self._mesh = mesh
        self._channel = channel
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timeout: asyncio.TimerHandle | None = None
        self._refused = False
        self.accepted = peer is None
        #: whom this is for (dialled) or from (accepted and proven)
        self.peer = peer
        self.proven = False
        self.closed = asyncio.get_running_loop().create_future()
        self.heard_at = self.sent_at = asyncio.get_running_loop().time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        if not self._mesh.admit(self):
            self._transport.abort()
            return
        self._timeout = asyncio.get_running_loop().call_later(HANDSHAKE_S, self._expire)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
        if not self.proven:
            self.refuse(Reason.CLOSED, "it hung up before it had proven itself")
        self._mesh.dismiss(self)
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        self.heard_at = asyncio.get_running_loop().time()
        try:
            content = self._channel.receive(data)
            if not self.proven and self._channel.peer is not None:
                self._introduce(self._channel.peer, content)
        except Refusal as refusal:
            self.refuse(refusal.reason, str(refusal))
            return
        self._flush()
        if content:
            self._take(content)

    def _introduce(self, peer: str, content: bytes) -> None:
        """The other side's certificate is good. Raises Refusal if it is not the one that belongs here."""
        if self.peer is None:
            if peer not in self._mesh.members:
                raise Refusal(Reason.NOT_A_MEMBER, f"it is master {peer}, which is no other member of this cluster")
            self._prove(peer)
        elif peer != self.peer:
            raise Refusal(Reason.WRONG_NAME, f"it is master {peer}, where {self.peer} should be")
        elif content:  # the acceptor has taken us too
            self._prove(peer)

    def _take(self, content: bytes) -> None:
        buffer = self._buffer
        buffer += content
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > MAX_FRAME_BYTES:
                self._drop(f"a frame of {length} bytes, where {MAX_FRAME_BYTES} are allowed")
                return
            end = start + _LENGTH.size + length
            if len(buffer) < end:
                break
            if length:
                assert self.peer is not None
                self._mesh.on_frame(self.peer, bytes(memoryview(buffer)[start + _LENGTH.size : end]))
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
            self._drop("it does not read what it is sent")
            return
        self.sent_at = asyncio.get_running_loop().time()
        self._channel.send(_LENGTH.pack(len(frame)) + frame)
        transport.write(self._channel.take())

    @property
    def is_closing(self) -> bool:
        """Whether nothing more will come or go."""
        return self._transport is None or self._transport.is_closing()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def refuse(self, reason: Reason, why: str) -> None:
        """Close a connection that is not, or no longer, one of the cluster; the other side is told if TLS can say it.

        Counted once a connection, and only for what the other side has done: one that is dialled may be down or slow.
        """
        if self.proven:
            self._drop(why)
            return
        if not self._refused and (self.accepted or reason not in (Reason.TIMEOUT, Reason.CLOSED)):
            self._mesh.count_refusal(reason, self._where(), why)
        self._refused = True
        if self._transport is not None and not self._transport.is_closing():
            self._flush()
            self._transport.close()  # not abort: the alert is still to go out; _expire ends it if it cannot

    def _drop(self, why: str) -> None:
        logger.warning("closing the connection with %s: %s", self._where(), why)
        self.abort()

    def _prove(self, peer: str) -> None:
        self.peer = peer
        self.proven = True
        if self._timeout is not None:
            self._timeout.cancel()
        self._flush()
        if self.accepted:
            self.send(b"")
        self._mesh.join(self)

    def _flush(self) -> None:
        waiting = self._channel.take()
        if waiting and self._transport is not None:
            self._transport.write(waiting)

    def _expire(self) -> None:
        self.refuse(Reason.TIMEOUT, f"no proof of who it is within {HANDSHAKE_S} s")
        self.abort()

    def _where(self) -> str:
        address = self._transport.get_extra_info("peername") if self._transport else None
        place = f"{address[0]}:{address[1]}" if address else "an unknown address"
        return f"{self.peer} at {place}" if self.peer else place


def _itself(connection: Connection) -> Connection:
    return connection


class Mesh:
    """The connections of one replica."""

    def __init__(
        self,
        settings: ReplicaSettings,
        keyring: Keyring,
        *,
        on_frame: Callable[[str, bytes], None],
        on_connected: Callable[[str], None],
        on_disconnected: Callable[[str], None],
    ) -> None:
        self.on_frame = on_frame
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._settings = settings
        self._keyring = keyring
        #: the others, by id: only they are let in
        self.members = {member.id: member for member in settings.members if member.id != settings.id}
        #: connections that were refused, by reason
        self.refused = dict.fromkeys(Reason, 0)
        self._told: dict[Reason, float] = {}
        self._connections: dict[str, Connection] = {}
        self._unproven: dict[Connection, None] = {}  # oldest first
        self._accepted: set[Connection] = set()
        self._heard: dict[str, float] = {}
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._dials: dict[str, tuple[Member, asyncio.Task[None]]] = {}
        self._started_at = 0.0
        self._closed = False

    async def start(self) -> None:
        """Listen and begin to dial. Raises OSError if the port cannot be bound."""
        loop = asyncio.get_running_loop()
        self._started_at = loop.time()
        me = self._settings.me
        self._tasks.append(loop.create_task(self._keyring.watch()))
        self._server = await loop.create_server(self._accept, me.host, me.raft_port)
        self._tasks.append(loop.create_task(self._keep_alive()))
        self._dial_others()

    def set_members(self, members: Iterable[Member]) -> None:
        """From now on these are the others: connections with anybody else are closed, new ones are dialled."""
        self.members = {member.id: member for member in members}
        for peer, connection in list(self._connections.items()):
            if peer not in self.members:
                connection.refuse(Reason.NOT_A_MEMBER, f"{peer} is no member of this cluster any more")
        if self._server is not None:
            self._dial_others()

    def _dial_others(self) -> None:
        """Keep dialling exactly the members with a greater id than ours, at their present addresses."""
        wanted = {peer: member for peer, member in self.members.items() if peer > self._settings.id}
        for peer, (member, task) in list(self._dials.items()):
            if wanted.get(peer) != member:
                task.cancel()
                del self._dials[peer]
        loop = asyncio.get_running_loop()
        for peer in sorted(wanted.keys() - self._dials.keys()):
            self._dials[peer] = wanted[peer], loop.create_task(self._dial(wanted[peer]))

    def close(self) -> None:
        """Close everything at once; nothing is called back afterwards."""
        self._closed = True
        self._tasks += [task for _, task in self._dials.values()]
        for task in self._tasks:
            task.cancel()
        if self._server is not None:
            self._server.close()
        for connection in [*self._connections.values(), *self._unproven]:
            connection.abort()

    async def wait_closed(self) -> None:
        """Return when nothing of `close` is left to do."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # what was accepted at the last moment is a connection only now; `admit` closes it
        waiting = [connection.closed for connection in {*self._connections.values(), *self._unproven, *self._accepted}]
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
        return {peer: now - heard.get(peer, self._started_at) for peer in sorted(self.members)}

    # -- called by the connections -------------------------------------------------------------------------------

    def admit(self, connection: Connection) -> bool:
        """Whether a new connection may begin its handshake.

        With too many strangers the oldest has to go: a master is through in milliseconds, who holds a place is none.
        """
        if self._closed:
            return False
        strangers = [other for other in self._unproven if other.accepted and not other.is_closing]
        if connection.accepted and len(strangers) >= MAX_UNPROVEN:
            strangers[0].refuse(Reason.CROWDED, f"{MAX_UNPROVEN} newer connections have not proven themselves either")
        self._unproven[connection] = None
        return True

    def count_refusal(self, reason: Reason, where: str, why: str) -> None:
        """Somebody was refused."""
        if self._closed:
            return
        self.refused[reason] += 1
        now = asyncio.get_running_loop().time()
        if now - self._told.get(reason, float("-inf")) >= TELL_S:
            self._told[reason] = now
            count = self.refused[reason]
            logger.warning("refused a connection with %s: %s (%s, %d so far)", where, why, reason, count)

    def join(self, connection: Connection) -> None:
        """A connection is proven; it replaces an older one of the same member, which must be dead."""
        peer = connection.peer
        assert peer is not None
        self._unproven.pop(connection, None)
        older = self._connections.pop(peer, None)
        if older is not None:
            older.abort()
            self._on_disconnected(peer)
        self._connections[peer] = connection
        logger.info("connected with %s", peer)
        self._on_connected(peer)

    def dismiss(self, connection: Connection) -> None:
        """A connection is closed."""
        self._unproven.pop(connection, None)
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
        connection = Connection(self, Channel(self._keyring.credentials, accepting=True), None)
        self._accepted.add(connection)
        connection.closed.add_done_callback(lambda _: self._accepted.discard(connection))
        return connection

    async def _dial(self, member: Member) -> None:
        """Keep one connection with the member, for ever."""
        loop = asyncio.get_running_loop()
        pause = RETRY_S[0]
        while True:
            connection = Connection(self, Channel(self._keyring.credentials, accepting=False), member.id)
            try:
                async with asyncio.timeout(DIAL_S):
                    await loop.create_connection(partial(_itself, connection), member.host, member.raft_port)
                await asyncio.shield(connection.closed)  # who stops dialling does not end what stands
            except (OSError, TimeoutError, UnicodeError) as error:  # the last: of a name that cannot be looked up
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
