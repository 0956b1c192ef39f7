"""One call of `depalmactl`: what the global options say, and the connections made from them."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click

from depalma.ctl.failures import USAGE, Failure
from depalma.errors import ConfigError, DepalmaError, NoLeader

if TYPE_CHECKING:
    from depalma.client.connections import Connections
    from depalma.client.contexts import Connection
    from depalma.client.transport import Answer, Request
    from depalma.client.verbs import Verb

T = TypeVar("T")
FORMATS = ("table", "wide", "json", "jsonl", "yaml", "name")
#: When not one master accepts a connection for this long, the cluster is not there; nobody waits out --timeout.
NOBODY_S = 1.5
#: What waits for a job, or follows something, bears a time without any leader for so long, as the Python client does.
PATIENCE_S = 300.0


class Session:
    """Global options, and the connections of this call (made at the first use)."""

    def __init__(
        self,
        *,
        context: str | None = None,
        masters: tuple[str, ...] = (),
        token_file: str | None = None,
        ca: str | None = None,
        output: str = "table",
        quiet: bool = False,
        color: bool = True,
        timeout_s: float = 10.0,
    ) -> None:
        self.context = context
        self.masters = masters
        self.token_file = token_file
        self.ca = ca
        self.output = output
        self.quiet = quiet
        self.color = color
        self.timeout_s = timeout_s
        self._connection: Connection | None = None
        self._connections: Connections | None = None
        self._patient = False
        self._patient_until: float | None = None
        self._without = False  #: nobody answers, and that was said

    def be_patient(self, until: float | None = None) -> None:
        """Has calls from now on bear a time without any leader, at most to `until` (monotonic seconds).

        For what was answered already: that the cluster is there is known.
        """
        self._patient, self._patient_until = True, until

    @property
    def structured(self) -> bool:
        """Whether a program reads stdout."""
        return self.output in ("json", "jsonl", "yaml")

    def narrate(self, text: str) -> None:
        """Prints a line for people on stderr, unless -q was given."""
        if not self.quiet:
            click.echo(text, err=True)

    def warn(self, text: str) -> None:
        """Prints a line on stderr that -q does not silence: data is missing from what was asked for."""
        click.echo(f"warning: {text}", err=True)

    # ------------------------------------------------------------ the cluster

    @property
    def connection(self) -> Connection:
        """Which cluster is meant, and who says so. Errors: Failure, a wrong option or variable says nothing usable."""
        if self._connection is None:
            from depalma.client.contexts import resolve

            masters = self.masters or None
            try:
                self._connection = resolve(
                    masters=masters, token_file=self.token_file, context=self.context, ca=self.ca
                )
            except ConfigError as error:
                raise Failure(str(error), exit_code=USAGE, code="usage") from error
        return self._connection

    def connect_to(self, connection: Connection) -> None:
        """Uses this cluster, whatever the options say."""
        self._connection = connection

    @property
    def connections(self) -> Connections:
        """The HTTP connections of this call. Errors: Failure."""
        if self._connections is None:
            from depalma.client.connections import Connections
            from depalma.client.transport import Endpoints

            connection = self.connection
            self._connections = Connections(
                Endpoints(connection.masters), connection.token, deadline_s=self.timeout_s, trust=connection.trust
            )
        return self._connections

    def close(self) -> None:
        """Closes the connections."""
        if self._connections is not None:
            self._connections.close()

    def call(self, request: Request) -> Answer:
        """Returns the cluster's answer. Errors: NoLeader, Rejected.

        A request that no master answers is tried until --timeout; but when nobody even listens, not so long, and of
        what is patient longer.
        """
        connections = self.connections
        exchange = connections.exchange(request, deadline_s=min(NOBODY_S, self.timeout_s))
        started = time.monotonic()
        try:
            return connections.carry(exchange)
        except NoLeader as error:
            first = error
        left_s = self._left_s(started)
        if left_s <= 0:
            raise _with_advice(first)
        try:
            answer = connections.call(exchange.again, deadline_s=left_s)
        except NoLeader as error:
            raise _with_advice(error) from error
        if self._without:
            self._without = False
            self.narrate("a master answers again")
        return answer

    def _left_s(self, started: float) -> float:
        """Returns for how long a call is still tried that had no answer at first."""
        now = time.monotonic()
        if not self._patient:
            left_s = self.timeout_s - (now - started)
            return left_s if any(_listens(url) for url in self.connection.masters) else 0.0
        left_s = max(PATIENCE_S, self.timeout_s) if self._patient_until is None else self._patient_until - now
        if left_s > 0 and not self._without:
            self._without = True
            self.narrate(f"no master answers; asking for up to {left_s:.0f} s")
        return left_s

    def run(self, verb: Verb[T]) -> T:
        """Returns what a verb of the client returns. Errors: NoLeader, Rejected."""
        try:
            request = next(verb)
            while True:
                try:
                    answer = self.call(request)
                except DepalmaError as error:
                    request = verb.throw(error)
                else:
                    request = verb.send(answer)
        except StopIteration as done:
            value: T = done.value
            return value

    def ask(self, path: str, *, raw: bool = False, **params: Any) -> Answer:
        """Returns the answer to a read; `wait` among the params is how long the server may block (`30s`)."""
        from depalma.client.transport import Request, with_query

        wait = params.get("wait")
        wait_s = float(str(wait).removesuffix("s")) if wait else 0.0
        return self.call(Request("GET", with_query(path, params), raw=raw, wait_s=wait_s))

    def get(self, path: str, **params: Any) -> Any:
        """Returns the decoded answer to a read."""
        return self.ask(path, **params).json()

    def post(self, path: str, body: object) -> Any:
        """Returns the decoded answer to a write, done once however often it had to be sent."""
        return self.send("POST", path, body)

    def send(self, method: str, path: str, body: object = None, **params: Any) -> Any:
        """Returns the decoded answer to a write of any method, done once however often it had to be sent."""
        import json

        from depalma.client.transport import JSON, Request, with_query

        data = b"" if body is None else json.dumps(body, ensure_ascii=False).encode()
        content_type = JSON if data else ""
        return self.call(Request(method, with_query(path, params), data, content_type=content_type)).json()

    def put_blob(self, digest: str, data: bytes) -> None:
        """Stores a blob on a majority of masters."""
        from depalma.client.transport import BYTES, Request

        self.call(Request("PUT", f"/v1/blobs/{digest}", data, content_type=BYTES))


def _with_advice(error: NoLeader) -> NoLeader:
    """Says what to do next."""
    return NoLeader(f"{error}; see: depalmactl doctor")


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout=0.5):
            return True
    except OSError:
        return False
