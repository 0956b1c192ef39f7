"""Requests of threads: keep-alive connections on stdlib `http.client`, and the loop that drives an `Exchange`."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import threading
import time
from urllib.parse import urlsplit

from depalma.client.transport import Answer, Attempt, Endpoints, Exchange, Pause, Request
from depalma.errors import ConfigError, DepalmaError
from depalma.trust import Trust

NEEDS_AUTHORITY = "https needs the certificate of the cluster's authority: give ca=… or --ca, or set DEPALMA_CA"
#: Idle connections kept per master.
KEPT_PER_MASTER = 8
#: Bodies up to this size leave in one send with their headers (one packet, one wake-up of the master).
_JOIN_BYTES = 256 * 1024
#: What a server that closed an idle connection looks like from here: most likely the request was not processed.
_STALE = (
    http.client.RemoteDisconnected,
    ConnectionResetError,
    BrokenPipeError,
    ssl.SSLEOFError,
    ssl.SSLZeroReturnError,
)
FAILURES = (OSError, http.client.HTTPException)


class HttpConnection(http.client.HTTPConnection):
    """`HTTPConnection` (which sets TCP_NODELAY) that sends headers and a small body together."""

    _held: list[bytes] | None = None
    trust: Trust | None = None

    @classmethod
    def to(cls, url: str, trust: Trust | None, *, timeout_s: float) -> HttpConnection:
        """Returns the connection to a base URL, not yet made. Errors: ConfigError, if it cannot be trusted."""
        parts = urlsplit(url)
        self = cls(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80), timeout=timeout_s)
        if parts.scheme == "https":
            if trust is None:
                raise ConfigError(f"{url}: {NEEDS_AUTHORITY}")
            self.trust = trust
        return self

    def send(self, data: object) -> None:
        """Sends, or holds back what belongs together."""
        if self._held is not None and isinstance(data, bytes):
            self._held.append(data)
        else:
            super().send(data)  # type: ignore[arg-type]

    def connect(self) -> None:
        """Connects; with a trust, returns when the other side has proven to be a master."""
        super().connect()
        if self.trust is not None:
            self.trust.refresh()
            self.sock = self.trust.context.wrap_socket(self.sock)

    def exchange(self, request: Request, headers: dict[str, str]) -> http.client.HTTPResponse:
        """Sends the request and returns the response, its body unread."""
        if len(request.body) <= _JOIN_BYTES:
            self._held = []
            try:
                self.request(request.method, request.path, request.body or None, headers)
                data = b"".join(self._held)
            finally:
                self._held = None
            self.send(data)
        else:
            self.request(request.method, request.path, request.body, headers)
        return self.getresponse()


class Stream:
    """An endless answer: `read` it until it ends; `stop` from any thread ends it."""

    def __init__(
        self, url: str, answer: Answer, connection: HttpConnection, response: http.client.HTTPResponse
    ) -> None:
        self.url = url  #: of the master that serves it
        self.answer = answer
        self._connection = connection
        self._response = response
        self._socket = connection.sock

    def read(self) -> bytes:
        """Returns what has come, empty at the end. Errors: TimeoutError and other FAILURES."""
        return self._response.read1(262_144)

    def read_timeout(self, seconds: float) -> None:
        """Sets how long a read may wait."""
        if self._socket is not None:
            self._socket.settimeout(seconds)

    def stop(self) -> None:
        """Makes a read in another thread return."""
        try:
            if self._socket is not None:
                # Of the socket below TLS: the thread that reads finds an end, instead of TLS taken away under it.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        except OSError:  # it ended by itself in the same moment
            return

    def close(self) -> None:
        """Frees the connection; for the reading thread."""
        self._response.close()
        self._connection.close()


class Connections:
    """All connections of one client. Safe for threads; a forked child begins with none of its parent's."""

    def __init__(self, endpoints: Endpoints, token: str, *, deadline_s: float, trust: Trust | None = None) -> None:
        self.endpoints = endpoints
        self.trust = trust
        self.deadline_s = deadline_s
        self.token = token
        # Re-entrant: a client may be collected, and so closed, at any point of a thread.
        self._lock = threading.RLock()
        self._idle: dict[str, list[HttpConnection]] = {}
        self._process = os.getpid()
        self._closed = False

    def call(self, request: Request, *, deadline_s: float | None = None) -> Answer:
        """Returns the answer of the cluster. Errors: NoLeader after the deadline, Rejected."""
        return self.carry(self.exchange(request, deadline_s=self.deadline_s if deadline_s is None else deadline_s))

    def exchange(self, request: Request, *, deadline_s: float) -> Exchange:
        """Returns a call that begins now, for `carry`."""
        return Exchange(self.endpoints, request, now=time.monotonic(), deadline_s=deadline_s)

    def carry(self, exchange: Exchange) -> Answer:
        """Returns the answer of the cluster to a call. Errors: NoLeader after the deadline, Rejected."""
        answer = self._drive(exchange)
        assert isinstance(answer, Answer)
        return answer

    def open_stream(self, request: Request, *, deadline_s: float) -> Stream:
        """Returns the endless answer of the leader. Errors: NoLeader, Rejected."""
        stream = self._drive(self.exchange(request, deadline_s=deadline_s))
        assert isinstance(stream, Stream)
        return stream

    def _drive(self, exchange: Exchange) -> Answer | Stream:
        while True:
            if self._closed:
                raise DepalmaError("the client is closed")
            step = exchange.next(time.monotonic())
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                continue
            try:
                headers = {**dict(exchange.headers), "Authorization": f"Bearer {self.token}"}
                result = self._send(step, exchange.request, headers, exchange)
            except FAILURES as error:
                exchange.failed(step, error, time.monotonic())
                continue
            answer = result.answer if isinstance(result, Stream) else result
            if exchange.answered(step, answer, time.monotonic()):
                return result

    def _send(self, attempt: Attempt, request: Request, headers: dict[str, str], exchange: Exchange) -> Answer | Stream:
        connection = self._take(attempt.url)
        reused = connection is not None
        while True:
            if connection is None:
                connection = HttpConnection.to(attempt.url, self.trust, timeout_s=attempt.timeout_s)
            elif connection.sock is not None:
                connection.sock.settimeout(attempt.timeout_s)
            try:
                return self._converse(connection, attempt, request, headers)
            except _STALE:
                connection.close()
                if not reused:
                    raise
                exchange.unanswered()  # or the master did it, and died before it could answer
                connection, reused = None, False
            except BaseException:
                connection.close()
                raise

    def _converse(
        self, connection: HttpConnection, attempt: Attempt, request: Request, headers: dict[str, str]
    ) -> Answer | Stream:
        response = connection.exchange(request, headers)
        lowered = {name.lower(): value for name, value in response.getheaders()}
        if request.stream and response.status < 300:
            return Stream(attempt.url, Answer(response.status, lowered), connection, response)
        answer = Answer(response.status, lowered, response.read())
        if response.will_close:
            connection.close()
        else:
            self._put(attempt.url, connection)
        return answer

    def _take(self, url: str) -> HttpConnection | None:
        with self._lock:
            if self._process != os.getpid():
                self._idle.clear()
                self._process = os.getpid()
            idle = self._idle.get(url)
            return idle.pop() if idle else None

    def _put(self, url: str, connection: HttpConnection) -> None:
        with self._lock:
            idle = self._idle.setdefault(url, [])
            if not self._closed and len(idle) < KEPT_PER_MASTER:
                idle.append(connection)
                return
        connection.close()

    def refuse(self) -> None:
        """Ends calls that are under way at their next step; no new ones are taken."""
        self._closed = True

    def close(self) -> None:
        """Refuses calls and closes the idle connections."""
        self.refuse()
        with self._lock:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def after_fork(self) -> None:
        """Makes the copy in a forked child usable: the lock may have been held by a thread that is not there."""
        self._lock = threading.RLock()
        self._idle = {}
        self._process = os.getpid()
