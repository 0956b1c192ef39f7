"""Small real HTTP servers that play masters, with faults that a real master shows only on bad days."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Seen:
    """A request as a master got it."""

    master: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int  #: port of the other end: tells connections apart


@dataclass
class Reply:
    """What to answer; `drop` closes the connection without a word."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    chunks: Iterator[bytes] | None = None  #: an endless answer
    close: bool = False  #: close the connection after the answer


Script = Callable[[Seen], Reply]


def answer(value: object, status: int = 200, **headers: str) -> Reply:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json", **named})


def problem(status: int, code: str, detail: str = "", **more: Any) -> Reply:
    body = {"type": "about:blank", "title": code, "status": status, "detail": detail, "code": code, **more}
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/problem+json"})


class FakeMaster:
    """One HTTP server on loopback that answers as its script says."""

    def __init__(self, name: str, script: Script) -> None:
        self.name = name
        self.script = script
        self.seen: list[Seen] = []
        self._open: set[Any] = set()
        self._start(0)

    def _start(self, port: int) -> None:
        master = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                master._open.add(self.connection)

            def finish(self) -> None:
                master._open.discard(self.connection)
                super().finish()

            def answer_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                seen = Seen(master.name, self.command, self.path, headers, body, self.client_address[1])
                master.seen.append(seen)
                reply = master.script(seen)
                if reply.drop:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                self.send_header("Depalma-Master", master.name)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.chunks is not None:
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    self.stream(reply.chunks)
                    return
                self.send_header("Content-Length", str(len(reply.body)))
                if reply.close:
                    self.close_connection = True
                self.end_headers()
                self.wfile.write(reply.body)

            def stream(self, chunks: Iterator[bytes]) -> None:
                self.close_connection = True
                try:
                    for chunk in chunks:
                        self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
                        self.wfile.flush()
                    self.wfile.write(b"0\r\n\r\n")
                except OSError:  # the client went away, as it may
                    return

            do_GET = do_POST = do_PUT = answer_any

            def log_message(self, format: str, *args: object) -> None:
                """Tests look at `seen` instead."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """Clients go away in the middle here, and it is not worth a word."""

        self._server = Server(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Dies: listening and open connections end."""
        self._server.shutdown()
        self._thread.join()
        for connection in list(self._open):
            with contextlib.suppress(OSError):  # its own thread ended it in the same moment
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    def restart(self) -> None:
        self._start(self.port)


class Play:
    """What tests of this folder use: makes masters and answers."""

    Reply = Reply
    answer = staticmethod(answer)
    problem = staticmethod(problem)

    def __init__(self) -> None:
        self.masters: list[FakeMaster] = []

    def master(self, script: Script) -> FakeMaster:
        self.masters.append(FakeMaster(f"m{len(self.masters) + 1}", script))
        return self.masters[-1]

    def stop(self) -> None:
        for master in self.masters:
            master.stop()


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    """Its masters are never slow, whenever this process stands still: nothing is sent again because of that."""
    monkeypatch.setattr("depalma.client.transport.ATTEMPT_S", 30.0)
    made = Play()
    yield made
    made.stop()
