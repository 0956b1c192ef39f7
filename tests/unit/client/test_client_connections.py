"""Calls over real sockets: connections kept, leaders followed, answers lost and asked for again."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from depalma.client import verbs
from depalma.client.aio import AsyncClient
from depalma.client.connections import Connections
from depalma.client.transport import Endpoints, Request
from depalma.errors import DepalmaError, NoLeader, Rejected

Connect = Callable[..., Connections]


@pytest.fixture
def connect() -> Iterator[Connect]:
    made: list[Connections] = []

    def make(*masters: Any, deadline_s: float = 30.0) -> Connections:
        made.append(Connections(Endpoints([master.url for master in masters]), "secret", deadline_s=deadline_s))
        return made[-1]

    yield make
    for connections in made:
        connections.close()


def test_calls_share_one_connection_and_carry_the_token(play: Any, connect: Connect) -> None:
    master = play.master(lambda seen: play.answer({"path": seen.path}))
    connections = connect(master)
    for n in range(5):
        assert connections.call(Request("GET", f"/{n}")).json() == {"path": f"/{n}"}
    assert len({seen.connection for seen in master.seen}) == 1
    assert {seen.headers["authorization"] for seen in master.seen} == {"Bearer secret"}


def test_headers_and_body_leave_in_one_send(connect: Connect) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    got: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            got.append(connection.recv(65536))
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    thread = threading.Thread(target=serve)
    thread.start()
    with listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        connections = Connections(Endpoints([url]), "t", deadline_s=30.0)
        connections.call(Request("POST", "/v1/jobs", b"x" * 1000))
        thread.join()
        connections.close()
    assert got[0].startswith(b"POST /v1/jobs HTTP/1.1\r\n")
    assert got[0].endswith(b"x" * 1000)


def test_large_bodies_arrive_whole(play: Any, connect: Connect) -> None:
    master = play.master(lambda seen: play.answer(len(seen.body)))
    assert connect(master).call(Request("PUT", "/", b"x" * 3_000_000)).json() == 3_000_000


def test_a_kept_connection_that_the_server_has_closed_is_replaced_unseen(play: Any, connect: Connect) -> None:
    master = play.master(lambda seen: play.answer({}))
    connections = connect(master)
    connections.call(Request("POST", "/a"))
    master.stop()
    master.restart()
    connections.call(Request("POST", "/b"))
    assert [seen.path for seen in master.seen] == ["/a", "/b"]


def test_a_lost_answer_is_asked_for_again_elsewhere_with_the_same_key(play: Any, connect: Connect) -> None:
    first = play.master(lambda seen: play.Reply(drop=True))
    second = play.master(lambda seen: play.answer({"id": 1}, 201))
    assert connect(first, second).call(Request("POST", "/v1/jobs")).json() == {"id": 1}
    keys = [seen.headers["idempotency-key"] for seen in [*first.seen, *second.seen]]
    assert len(keys) == 2
    assert len(set(keys)) == 1


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[bytes]]]:
    """A master that answers one request, and dies over the next one of the same connection: its URL, what it got."""
    monkeypatch.setattr("depalma.client.transport.ATTEMPT_S", 30.0)
    listener = socket.create_server(("127.0.0.1", 0))
    got: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            got.append(connection.recv(65536))
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            got.append(connection.recv(65536))
            listener.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", got
    thread.join()


def test_a_master_that_died_over_a_kept_connection_may_have_done_it(dying: tuple[str, list[bytes]]) -> None:
    """It looks like an idle connection that was closed; the next attempt finds nobody who listens."""
    connections = Connections(Endpoints([dying[0]]), "t", deadline_s=3.0)
    connections.call(Request("DELETE", "/a"))
    with pytest.raises(NoLeader, match="whether it was done is not known"):
        connections.call(Request("DELETE", "/b"))
    connections.close()
    assert dying[1][1].startswith(b"DELETE /b")


async def test_the_same_by_asyncio(dying: tuple[str, list[bytes]]) -> None:
    async with AsyncClient([dying[0]], token="t", deadline_s=3.0) as client:
        await client._run(verbs.send("DELETE", "/a", None))
        with pytest.raises(NoLeader, match="whether it was done is not known"):
            await client._run(verbs.send("DELETE", "/b", None))
    assert dying[1][1].startswith(b"DELETE /b")


def test_the_call_follows_the_leader_through_its_death(play: Any, connect: Connect) -> None:
    first = play.master(lambda seen: play.answer(1, Depalma_Leader=first.url))
    second = play.master(lambda seen: play.answer(2, Depalma_Leader=second.url))
    connections = connect(second, first)
    connections.endpoints.leader = first.url
    assert connections.call(Request("GET", "/")).json() == 1
    first.stop()
    assert connections.call(Request("GET", "/")).json() == 2
    assert connections.endpoints.leader == second.url


def test_no_leader_is_waited_for_and_then_found(play: Any, connect: Connect) -> None:
    answers = iter([play.problem(503, "no_leader"), play.problem(503, "outcome_unknown"), play.answer({"id": 9})])
    master = play.master(lambda seen: next(answers))
    assert connect(master).call(Request("POST", "/v1/jobs")).json() == {"id": 9}
    assert len({seen.headers["idempotency-key"] for seen in master.seen}) == 1


def test_the_deadline_ends_in_no_leader(play: Any, connect: Connect) -> None:
    master = play.master(lambda seen: play.problem(503, "no_leader"))
    with pytest.raises(NoLeader, match="503 no_leader"):
        connect(master, deadline_s=3.0).call(Request("GET", "/"))
    assert len(master.seen) > 2


def test_a_refusal_raises_and_keeps_the_connection(play: Any, connect: Connect) -> None:
    master = play.master(lambda seen: play.problem(404, "unknown_job", "there is no job 7"))
    connections = connect(master)
    for _ in range(2):
        with pytest.raises(Rejected, match="there is no job 7"):
            connections.call(Request("GET", "/v1/jobs/7"))
    assert len({seen.connection for seen in master.seen}) == 1


def test_a_closed_client_says_so(play: Any, connect: Connect) -> None:
    connections = connect(play.master(lambda seen: play.answer({})))
    connections.close()
    with pytest.raises(DepalmaError, match="closed"):
        connections.call(Request("GET", "/"))


def test_a_stream_is_read_as_it_comes_and_can_be_stopped_from_another_thread(play: Any, connect: Connect) -> None:
    go, over = threading.Event(), threading.Event()

    def endless() -> Iterator[bytes]:
        yield b"first"
        go.wait(30)
        yield b"second"
        over.wait(30)

    master = play.master(lambda seen: play.Reply(chunks=endless()))
    stream = connect(master).open_stream(Request("POST", "/v1/results", stream=True), deadline_s=30.0)
    assert stream.read() == b"first"
    go.set()
    assert stream.read() == b"second"
    threading.Timer(0.05, stream.stop).start()
    with pytest.raises(Exception, match="IncompleteRead"):
        stream.read()
    over.set()
    stream.close()


def test_a_silent_stream_times_out(play: Any, connect: Connect) -> None:
    over = threading.Event()

    def silent() -> Iterator[bytes]:
        yield b"x"
        over.wait(30)

    stream = connect(play.master(lambda seen: play.Reply(chunks=silent()))).open_stream(
        Request("POST", "/", stream=True), deadline_s=30.0
    )
    assert stream.read() == b"x"
    stream.read_timeout(0.05)
    with pytest.raises(TimeoutError):
        stream.read()
    over.set()
    stream.close()


def test_a_forked_child_does_not_use_its_parents_connection(play: Any, connect: Connect) -> None:
    master = play.master(lambda seen: play.answer({}))
    connections = connect(master)
    connections.call(Request("GET", "/parent"))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            connections.call(Request("GET", "/child"))
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0
    connections.call(Request("GET", "/parent"))
    used = {seen.path: set() for seen in master.seen}  # type: dict[str, set[int]]
    for seen in master.seen:
        used[seen.path].add(seen.connection)
    assert len(used["/parent"]) == 1
    assert used["/parent"].isdisjoint(used["/child"])
