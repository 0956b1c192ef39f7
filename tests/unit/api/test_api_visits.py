"""Entering a running task over HTTP: who is let in, what passes the leader, and how it ends. The host is the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from depalma import protocol, visits
from depalma.leader import visits as leader_visits
from depalma.protocol import CloseVisit, Hello, InVisit, OpenVisit, VisitOver
from depalma.visits import MAX_MESSAGE_BYTES, PER_HOST, PER_LEADER, WINDOW_BYTES, Over

if TYPE_CHECKING:
    from conftest import Bench  # type: ignore[import-not-found]

Wait = Callable[..., Any]


class Host:
    """The agent of a host, as far as visits go."""

    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self.websocket = websocket
        self.frames: list[Any] = []

    async def listen(self) -> None:
        async for message in self.websocket:
            frame = protocol.decode_to_agent(message.data)
            if isinstance(frame, protocol.ToVisit):
                self.frames.append(frame)

    async def say(self, *frames: Any) -> None:
        for frame in frames:
            await self.websocket.send_bytes(protocol.encode(frame))


@asynccontextmanager
async def connected(bench: Bench, name: str = "h1", *, takes_visits: bool = True) -> AsyncIterator[Host]:
    headers = {"Authorization": f"Bearer {'a' * 40}", protocol.HOST_HEADER: name}
    async with bench.http.ws_connect(f"{bench.url}/v1/agent", headers=headers) as websocket:
        facts = bench.master.state.hosts[name].facts
        assert facts is not None
        hello = Hello(1, name, f"{name}-1", facts, 0, ((1, 0, 1),), (), takes_visits=takes_visits)
        await websocket.send_bytes(protocol.encode(hello))
        host = Host(websocket)
        assert isinstance(protocol.decode_to_agent((await websocket.receive()).data), protocol.Welcome)
        listening = asyncio.create_task(host.listen())
        yield host
        listening.cancel()


@pytest.fixture
async def host(bench: Bench) -> AsyncIterator[Host]:
    """A host with the running tasks 1.0 and 1.1."""
    bench.host_up()
    bench.submit(count=3)
    bench.assign(1, 0, 1)
    bench.start(1, 0)
    bench.start(1, 1)
    async with connected(bench) as host:
        yield host


@asynccontextmanager
async def visiting(bench: Bench, **wanted: Any) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    granted = await bench.post("/v1/jobs/1/exec", {"task": 0, "argv": ["ls"], **wanted})
    async with bench.http.ws_connect(bench.url + granted["path"], max_msg_size=0) as user:
        yield user


async def last_word(user: aiohttp.ClientWebSocketResponse) -> str:
    """Returns the error with which the visit ends; nothing comes after it."""
    async with asyncio.timeout(30):
        over = visits.from_task((await user.receive()).data)
        assert isinstance(over, Over), over
        assert over.exit_code is None
        assert (await user.receive()).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
    return over.error


async def test_what_is_said_passes_unread_both_ways(bench: Bench, host: Host, wait_until: Wait) -> None:
    wanted = {"task": 1, "argv": ["sh", "-c", "ls"], "tty": True, "rows": 9, "columns": 10, "terminal": "vt100"}
    granted = await bench.post("/v1/jobs/1/exec", {**wanted, "by": "ann"}, headers={"Idempotency-Key": "k1"})
    assert granted == {"visit": "k1", "path": "/v1/exec/k1", "task": "1.1", "attempt": 1, "host": "h1"}
    async with bench.http.ws_connect(f"{bench.url}/v1/exec/k1") as user:
        (opened,) = await wait_until(lambda: host.frames)
        assert opened == OpenVisit(1, 1, 1, 1, ("sh", "-c", "ls"), True, 9, 10, "vt100")
        await user.send_bytes(b"no message \xff")
        assert (await wait_until(lambda: host.frames[1:])) == [InVisit(1, b"no message \xff")]
        await host.say(InVisit(1, b"neither \0"), InVisit(7, b"of another"), InVisit(1, b"last"), VisitOver(1))
        assert (await user.receive()).data == b"neither \0"
        assert (await user.receive()).data == b"last"
        assert (await user.receive()).type is aiohttp.WSMsgType.CLOSE
    event = (await bench.get("/v1/events"))["events"][-1]
    assert (event["kind"], event["job"], event["task"], event["host"]) == ("task.visited", 1, 1, "h1")
    assert event["detail"] == {"attempt": 1, "by": "ann", "command": "sh -c ls", "tty": True}
    assert CloseVisit(1) not in host.frames


async def test_each_is_let_in_once(bench: Bench, host: Host) -> None:
    async with visiting(bench) as user:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
            await bench.http.ws_connect(bench.url + user._response.url.path)
        assert refusal.value.status == 404
    problem = await bench.get("/v1/exec/nobody", 400)
    assert "is a WebSocket" in problem["detail"]


async def test_who_comes_too_late_is_not_let_in(bench: Bench, host: Host) -> None:
    granted = await bench.post("/v1/jobs/1/exec", {"task": 0})
    late = asyncio.get_running_loop().time() + leader_visits.COME_WITHIN_S + 1
    bench.master.sessions.visits.clock = lambda: late
    with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
        await bench.http.ws_connect(bench.url + granted["path"])
    assert refusal.value.status == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "said"),
    [
        ("9", {}, 404, "unknown_job", "there is no job 9"),
        ("1", {"task": 7}, 404, "unknown_task", "job 1 has no task 7; it has 0 to 2"),
        ("1", {"task": 2}, 409, "not_running", "task 1.2 is queued"),
        ("1", {}, 409, "which_task", "2 tasks of job 1 run: name one of 1.0, 1.1"),
        ("1", {"task": 0, "argv": ["", "x"]}, 400, "bad_field", "argv: "),
        ("1", {"task": 0, "argv": ["x" * 70_000]}, 400, "bad_field", "argv: "),
        ("1", {"task": 0, "argv": "ls"}, 400, "bad_field", "argv: expected `array`"),
        ("1", {"task": 0, "rows": 0}, 400, "bad_field", "rows: 0 given; allowed: a whole number, 1 to 10000"),
        ("1", {"task": 0, "columns": 10_001}, 400, "bad_field", "columns: 10001 given"),
        ("1", {"task": 0, "terminal": "x\0"}, 400, "bad_field", "terminal: "),
        ("1", {"task": 0, "by": "x" * 201}, 400, "bad_field", "by: "),
        ("1", {"task": 0, "user": "x"}, 400, "bad_field", "unknown field `user`"),
    ],
)
async def test_refusals(
    bench: Bench, host: Host, path: str, body: dict[str, Any], status: int, code: str, said: str
) -> None:
    problem = await bench.post(f"/v1/jobs/{path}/exec", body, status)
    assert problem["code"] == code
    assert said in problem["detail"]
    assert all(event["kind"] != "task.visited" for event in (await bench.get("/v1/events"))["events"])


async def test_a_key_that_fits_no_path_is_refused(bench: Bench, host: Host) -> None:
    problem = await bench.post("/v1/jobs/1/exec", {"task": 0}, 400, headers={"Idempotency-Key": "a/b"})
    assert problem["detail"].startswith("Idempotency-Key: 'a/b' given; allowed: letters and digits")


async def test_a_host_that_is_away_or_too_old_is_said_so(bench: Bench, host: Host, wait_until: Wait) -> None:
    await host.websocket.close()
    await wait_until(lambda: not bench.master.sessions.by_host)
    assert (await bench.post("/v1/jobs/1/exec", {"task": 0}, 409))["code"] == "host_away"
    async with connected(bench, takes_visits=False):
        assert (await bench.post("/v1/jobs/1/exec", {"task": 0}, 409))["code"] == "host_too_old"


async def test_only_so_many_at_once(bench: Bench, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(PER_HOST):
        await bench.post("/v1/jobs/1/exec", {"task": 0})
    problem = await bench.post("/v1/jobs/1/exec", {"task": 0}, 409)
    assert (problem["code"], problem["detail"]) == (
        "too_many", f"there are {PER_HOST} visits on host h1 already, the most at once",
    )  # fmt: skip
    assert PER_HOST < PER_LEADER
    monkeypatch.setattr(leader_visits, "PER_LEADER", PER_HOST)
    monkeypatch.setattr(leader_visits, "PER_HOST", PER_HOST + 1)
    assert "in the cluster already" in (await bench.post("/v1/jobs/1/exec", {"task": 0}, 409))["detail"]
    bench.master.sessions.visits.clock = lambda: 1e9
    await bench.post("/v1/jobs/1/exec", {"task": 0})


async def test_a_user_who_leaves_is_told_to_the_host(bench: Bench, host: Host, wait_until: Wait) -> None:
    async with visiting(bench):
        await wait_until(lambda: host.frames)
    assert (await wait_until(lambda: host.frames[1:])) == [CloseVisit(1)]
    await host.say(InVisit(1, b"too late"), VisitOver(1))


async def test_a_host_that_is_lost_ends_it_with_a_word(bench: Bench, host: Host, wait_until: Wait) -> None:
    async with visiting(bench) as user:
        await wait_until(lambda: host.frames)
        await host.websocket.close()
        assert await last_word(user) == "the connection to host h1 is lost; what ran there is ended with it"


async def test_a_leader_that_leads_no_more_ends_it_with_a_word(bench: Bench, host: Host, wait_until: Wait) -> None:
    await bench.post("/v1/jobs/1/exec", {"task": 0}, headers={"Idempotency-Key": "k2"})
    async with visiting(bench) as user:
        await wait_until(lambda: host.frames)
        bench.master.sessions.close_all()
        assert await last_word(user) == "master m1 leads no more; what ran on host h1 is ended with it"
    assert bench.master.sessions.visits.take("k2") is None


async def test_a_host_that_says_too_much_is_not_listened_to(bench: Bench, host: Host, wait_until: Wait) -> None:
    """The user does not read: the leader keeps no more than two windows, and his connection's own buffers."""
    async with visiting(bench) as user:
        await wait_until(lambda: host.frames)
        transport = user._conn.transport  # type: ignore[union-attr]
        transport.pause_reading()
        for _ in range(3000):
            await host.say(InVisit(1, b"x" * 32_768))
            if CloseVisit(1) in host.frames:
                break
        await wait_until(lambda: CloseVisit(1) in host.frames)
        (visit,) = bench.master.sessions.visits._open.values()
        assert sum(map(len, visit._queue)) <= 2 * WINDOW_BYTES + 1000
        transport.resume_reading()
        while (message := await user.receive()).data == b"x" * 32_768:
            pass
        over = visits.from_task(message.data)
        assert over == Over(None, "more was on the way from host h1 than may be")


async def test_a_message_that_is_too_long_ends_it(bench: Bench, host: Host, wait_until: Wait) -> None:
    async with visiting(bench) as user:
        await wait_until(lambda: host.frames)
        await host.say(InVisit(1, b"x" * (MAX_MESSAGE_BYTES + 1)))
        assert "more was on the way" in await last_word(user)
    host.frames.clear()
    async with visiting(bench) as user:
        await wait_until(lambda: host.frames)
        await user.send_bytes(b"x" * (MAX_MESSAGE_BYTES + 1))
        await wait_until(lambda: host.frames[1:] == [CloseVisit(2)])
    host.frames.clear()
    async with visiting(bench) as user:
        await wait_until(lambda: host.frames)
        await user.send_str("text")
        await wait_until(lambda: host.frames[1:] == [CloseVisit(3)])


async def test_a_host_cannot_speak_in_visits_of_another(bench: Bench, host: Host, wait_until: Wait) -> None:
    bench.host_up("h2")
    async with connected(bench, "h2") as other, visiting(bench) as user:
        await wait_until(lambda: host.frames)
        await other.say(InVisit(1, b"from h2"), VisitOver(1))
        await other.websocket.close()
        await wait_until(lambda: list(bench.master.sessions.by_host) == ["h1"])
        await host.say(InVisit(1, b"from h1"))
        assert (await user.receive()).data == b"from h1"
