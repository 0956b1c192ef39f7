"""What one call of depalmactl sends when it has to send it again."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

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
    made = Session(masters=(master.url,), timeout_s=0.9)
    yield made
    made.close()


def test_it_is_the_same_request_to_the_end_and_nobody_knows_what_came_of_it(session: Session, master: Master) -> None:
    with pytest.raises(NoLeader, match="whether it was done is not known; see: depalmactl doctor"):
        session.call(Request("POST", "/v1/jobs"))
    assert len(master.asked) > 3
    assert set(master.asked) == {(master.asked[0][0], "0")}


def test_what_may_have_been_done_in_the_first_part_is_not_new_in_the_second(
    session: Session, master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_s = session._left_s

    def then(started: float) -> float:
        master.answer = (409, "request_forgotten")
        return left_s(started)

    monkeypatch.setattr(session, "_left_s", then)
    with pytest.raises(Rejected, match="request_forgotten"):
        session.call(Request("POST", "/v1/jobs"))
    assert len(set(master.asked)) == 1


def test_what_got_another_key_in_the_first_part_keeps_it_in_the_second(
    session: Session, master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The masters have forgotten what was there at the beginning of the cluster, and this call has looked at nothing
    before; then the leader dies."""
    forgotten, left_s = master.decide, session._left_s

    def decide(key: str) -> tuple[int, str]:
        return (409, "request_forgotten") if key == master.asked[0][0] else forgotten(key)

    def then(started: float) -> float:
        master.answer = (201, "")
        return left_s(started)

    monkeypatch.setattr(master, "decide", decide)
    monkeypatch.setattr(session, "_left_s", then)
    assert session.call(Request("POST", "/v1/jobs")).status == 201
    assert len({key for key, _ in master.asked[1:]}) == 1
