"""The API's port: TLS, plain HTTP, or both, told apart by the first byte that a connection sends.

Certificates are read again when their files change; connections that stand keep theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
import ssl
from collections.abc import Coroutine
from typing import Any

from depalma.api.connection import Connections
from depalma.certificates import CertificateFiles
from depalma.errors import ConfigError
from depalma.trust import BadAuthority, Trust, context_of, fingerprint

log = logging.getLogger(__name__)

BACKLOG = 1024
#: A connection that has not said a word, or not proven itself, is closed after so long.
HANDSHAKE_S = 10.0
LOOK_S = 2.0
#: Refusals for one reason are told in the log so often at most.
TELL_S = 10.0
_AGAIN_S = 1.0
_HANDSHAKE_BYTE = 22
_NO_CHECK_TIME = 0x200000  #: of OpenSSL: who has expired may be given a new certificate while it runs
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PLAIN = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/problem+json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s"
)
_PROBLEM = (
    b'{"title":"this port speaks TLS","status":400,"code":"tls_needed","detail":"this port speaks TLS: say https:// '
    b"and give the certificate of the cluster's authority (--ca, DEPALMA_CA)\"}"
)
REASONS = ("plain_text", "wrong_ca", "expired", "wrong_name", "protocol", "refused_us", "timeout", "closed", "crowded")


class ServerKeys:
    """What the API shows: the master's certificate, and whose certificates of agents it believes.

    `trust`, what this master believes as a client of the others, is kept up to date along with it. Errors: ConfigError.
    """

    def __init__(self, files: CertificateFiles, trust: Trust) -> None:
        self._files = files
        self._trust = trust
        self._seen = self._look()
        self.context = self._read()

    async def watch(self) -> None:
        """Follows the files, for ever. What cannot be used is told in the log, and nothing changes."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await asyncio.get_running_loop().run_in_executor(None, self._follow)
            except ConfigError as error:
                log.error("the API goes on with the certificate that it has: %s", error)

    def _follow(self) -> None:
        self._trust.refresh()
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            self.context = self._read()

    def _look(self) -> object:
        return [fingerprint(file) for file in (self._files.member, self._files.hosts, self._files.authority)]

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.num_tickets = 0  # a resumed session would be taken without a look at its certificate
        hosts = self._files.hosts
        try:
            if hosts is not None and hosts.exists():
                context.load_verify_locations(cafile=hosts)
                context.verify_mode = ssl.CERT_OPTIONAL  # an agent may show one; who shows a wrong one is refused
            context.load_cert_chain(self._files.member)
            self._rehearse(context)
        except (OSError, BadAuthority) as error:
            raise ConfigError(f"{self._files.member}, {hosts}: cannot be used: {error}") from error
        return context

    def _rehearse(self, serving: ssl.SSLContext) -> None:
        """Returns if our clients would believe it, at some time. Errors: OSError, BadAuthority."""
        asking = context_of(self._files.authority)
        asking.verify_flags = ssl.VerifyFlags(asking.verify_flags | _NO_CHECK_TIME)
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = asking.wrap_bio(to_client, to_server)
        server = serving.wrap_bio(to_server, to_client, server_side=True)
        for side in (client, server, client):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()


class Listener:
    """Accepts connections for `make`, which makes the HTTP server's protocol. Without `keys` nothing speaks TLS.

    They take no more than half of the process's descriptors: with none left for its journal, a master would stop.
    """

    def __init__(self, make: Connections, keys: ServerKeys | None, *, plain: bool) -> None:
        self._make = make
        self._keys = keys
        self._plain = plain
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.refused = dict.fromkeys(REASONS, 0)  #: connections, by reason
        self._told_s: dict[str, float] = {}

    async def start(self, host: str, port: int) -> None:
        """Listens on all addresses of a name. Errors: OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, kind, protocol, _, address in dict.fromkeys(found):
                self._sockets.append(_listen(family, kind, protocol, address))
        except BaseException:
            await self.close()
            raise
        for each in self._sockets:
            loop.add_reader(each, self._accept, each)
        if self._keys is not None:
            self._spawn(self._keys.watch())

    @property
    def ports(self) -> list[int]:
        """The ports that it listens on: those of the system's choice, for port 0."""
        return [each.getsockname()[1] for each in self._sockets]

    async def close(self) -> None:
        """Takes no more connections; those that the HTTP server has are its own."""
        for each in self._sockets:
            asyncio.get_running_loop().remove_reader(each)
            each.close()
        self._sockets.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(BACKLOG):
            try:
                connection, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _SHORTAGES:
                    raise
                loop.remove_reader(listening)  # it passes; until then nobody spins
                loop.call_later(_AGAIN_S, self._resume, listening)
                loop.call_exception_handler({"message": "accepting a connection", "exception": error})
                return
            if self._is_crowded():
                connection.close()
                self._refuse("crowded", str(address[0]), "half of this process's descriptors are connections")
                continue
            connection.setblocking(False)
            self._spawn(self._greet(connection, str(address[0])))

    def _is_crowded(self) -> bool:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return limit != resource.RLIM_INFINITY and len(self._tasks) + len(self._make) >= limit // 2

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    async def _greet(self, connection: socket.socket, address: str) -> None:
        """Hands one connection to the HTTP server, or refuses it."""
        taken = False
        try:
            try:
                async with asyncio.timeout(HANDSHAKE_S):
                    first = await _first_byte(connection)
            except TimeoutError:
                self._refuse("timeout", address, f"not a word in {HANDSHAKE_S:g} s")
                return
            if not first:
                return  # nobody's business: probes do that
            tls = self._keys is not None and first[0] == _HANDSHAKE_BYTE
            if not (tls or self._plain):
                self._refuse("plain_text", address, "it does not speak TLS")
                await _tell(connection)
                return
            taken = True
            await self._hand_over(connection, self._keys.context if tls and self._keys else None)
        except ConnectionAbortedError:
            self._refuse("timeout", address, f"no handshake in {HANDSHAKE_S:g} s")
        except ConnectionError as error:
            self._refuse("closed", address, str(error) or "it hung up")
        except ssl.SSLError as error:
            self._refuse(_reason(error), address, getattr(error, "verify_message", "") or error.reason or str(error))
        except OSError as error:
            log.info("a connection from %s: %s", address, error)
        finally:
            if not taken:
                connection.close()

    async def _hand_over(self, connection: socket.socket, context: ssl.SSLContext | None) -> None:
        limit_s = None if context is None else HANDSHAKE_S
        await asyncio.get_running_loop().connect_accepted_socket(
            self._make, connection, ssl=context, ssl_handshake_timeout=limit_s
        )

    def _refuse(self, reason: str, address: str, why: str) -> None:
        self.refused[reason] += 1
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._told_s.get(reason, 0.0):
            self._told_s[reason] = now_s + TELL_S
            count = self.refused[reason]
            log.warning("refused a connection of the API from %s: %s (%s, %d so far)", address, why, reason, count)


def _listen(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # No SO_REUSEPORT: a second master on the same port is a mistake that must be seen.
        made.bind(address)
        made.listen(BACKLOG)
        made.setblocking(False)
    except OSError as error:
        made.close()
        raise OSError(error.errno, f"cannot listen on {address}: {(error.strerror or str(error)).lower()}") from None
    return made


async def _first_byte(connection: socket.socket) -> bytes:
    """Returns the first byte that comes, and leaves it there; empty if the other side hung up."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return connection.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            readable = loop.create_future()
            loop.add_reader(connection, _set, readable)
            try:
                await readable
            finally:
                loop.remove_reader(connection)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _tell(connection: socket.socket) -> None:
    """Answers plain HTTP so that a person sees what is wrong, and a program too."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(1.0):
            await loop.sock_recv(connection, 65_536)  # with bytes unread, closing would take the answer away
            await loop.sock_sendall(connection, _PLAIN % (len(_PROBLEM), _PROBLEM))
    except TimeoutError:
        return


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return {9: "expired", 10: "expired", 26: "wrong_name"}.get(error.verify_code, "wrong_ca")
    return "refused_us" if "_ALERT_" in (error.reason or "") else "protocol"
