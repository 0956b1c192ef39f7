"""What one call of depalmactl sends when it has to send it again."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from depalma.client import connections, transport
from depalma.client.transport import Request
from depalma.ctl import session as ctl_session
from depalma.ctl.session import Session
from depalma.errors import NoLeader, Rejected


class Master:
    """Answers every write with the same status and code, and notes its key."""

    def __init__(self) -> None:
        self.answer: tuple[int, str] = (503, "outcome_unknown")
        self.asked: list[tuple[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.asked.append((self.headers["Idempotency-Key"], self.headers["Depalma-Seen"]))
                status, code = outer.decide(self.headers["Idempotency-Key"])
                body = json.dumps({"code": code, "title": code, "detail": code}).encode()
                self.send_response(status)
                self.send_header("Depalma-Index", str(100 + len(outer.asked)))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.decide: Callable[[str], tuple[int, str]] = lambda key: self.answer
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})


@pytest.fixture
def master() -> Iterator[Master]:
    made = Master()
    made.thread.start()
    yield made
    made.server.shutdown()
    made.thread.join()
    made.server.server_close()


@pytest.fixture
def session(master: Master, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.setattr(ctl_session, "NOBODY_S", 0.3)
    monkeypatch.setenv("DEPALMA_TOKEN", "t" * 43)
    made = Session(masters=(master.url,), timeout_s=4.0)
    yield made
    made.close()


def between(session: Session, monkeypatch: pytest.MonkeyPatch, work: Callable[[], None], left_s: float) -> None:
    """Does something after the first part of a call, and has the second last so long, however slow the machine is."""

    def then(started: float) -> float:
        work()
        return left_s

    monkeypatch.setattr(session, "_left_s", then)


def test_it_is_the_same_request_to_the_end_and_nobody_knows_what_came_of_it(
    session: Session, master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_first: list[int] = []
    between(session, monkeypatch, lambda: in_first.append(len(master.asked)), 0.5)
    with pytest.raises(NoLeader, match="whether it was done is not known; see: depalmactl doctor"):
        session.call(Request("POST", "/v1/jobs"))
    assert len(master.asked) > in_first[0] > 0
    assert set(master.asked) == {(master.asked[0][0], "0")}


def test_what_may_have_been_done_in_the_first_part_is_not_new_in_the_second(
    session: Session, master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    between(session, monkeypatch, lambda: setattr(master, "answer", (409, "request_forgotten")), 60.0)
    with pytest.raises(Rejected, match="request_forgotten"):
        session.call(Request("POST", "/v1/jobs"))
    assert len(set(master.asked)) == 1


def test_what_got_another_key_in_the_first_part_keeps_it_in_the_second(
    session: Session, master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The masters have forgotten what was there at the beginning of the cluster, and this call has looked at nothing
    before; then the leader dies."""
    ahead_s = 0.0

    def decide(key: str) -> tuple[int, str]:
        nonlocal ahead_s
        if key == master.asked[0][0]:
            return 409, "request_forgotten"
        if master.answer[0] == 503:
            ahead_s = 1000.0  # the first part is over with this answer, and not before
        return master.answer

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead_s, sleep=time.sleep)
    monkeypatch.setattr(connections, "time", clock)
    monkeypatch.setattr(transport, "ATTEMPT_S", 60.0)
    monkeypatch.setattr(ctl_session, "NOBODY_S", 500.0)
    session.timeout_s = 500.0
    monkeypatch.setattr(master, "decide", decide)
    between(session, monkeypatch, lambda: setattr(master, "answer", (201, "")), 60.0)
    assert session.call(Request("POST", "/v1/jobs")).status == 201
    assert len({key for key, _ in master.asked[1:]}) == 1
    assert len(master.asked) == 3
