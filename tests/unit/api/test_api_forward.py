"""A follower that passes requests on to a leader which answers, refuses, is silent, or is not there.

The leader is a socket server of the test's: the follower's side is what is tested.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from depalma.api.app import API
from depalma.config import MasterConfig

if TYPE_CHECKING:
    from conftest import Bench  # type: ignore[import-not-found]

BODY = {"kind": "command", "argv": ["true"]}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Leader:
    """What `m2` does with requests; set `answer`."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.answer: Handler = self.silent
        self.release = asyncio.Event()
        self.port = 0
        self.runner: web.AppRunner

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.bodies.append(await request.read())
        return await self.answer(request)

    async def silent(self, request: web.Request) -> web.StreamResponse:
        await self.release.wait()
        return web.Response()


@pytest.fixture
async def leader(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Leader]:
    monkeypatch.setattr("depalma.api.forward._CONNECT_S", 30.0)  # both ends are in this process, which may stand still
    leader = Leader()
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", leader.serve)
    leader.runner = web.AppRunner(app, shutdown_timeout=0.1)
    await leader.runner.setup()
    site = web.TCPSite(leader.runner, "127.0.0.1", 0)
    await site.start()
    leader.port = leader.runner.addresses[0][1]
    yield leader
    leader.release.set()
    await leader.runner.cleanup()


@pytest.fixture
def others(leader: Leader) -> tuple[MasterConfig, ...]:
    return (MasterConfig(id="m2", host="127.0.0.1", port=leader.port, dir="unused"),)


@pytest.fixture
async def follower(bench: Bench) -> Bench:
    bench.master.replica.is_leader, bench.master.replica.leader_id = False, "m2"
    return bench


def answering(status: int = 200, body: bytes = b"{}", headers: dict[str, str] | None = None) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers=headers)

    return answer


async def test_a_write_arrives_with_what_matters_and_nothing_else(follower: Bench, leader: Leader) -> None:
    leader.answer = answering(201, b'{"id": 7}', {"Depalma-Master": "m2", "Depalma-Index": "99", "Location": "/x"})
    passed = {"Idempotency-Key": "k", "Depalma-Session": "s", "Depalma-Seen": "7"}
    headers = {**passed, "X-Other": "no", "Cookie": "no", "Connection": "close"}
    async with follower.http.post(f"{follower.url}/v1/jobs?", json=BODY, headers=headers) as answer:
        assert (answer.status, await answer.read()) == (201, b'{"id": 7}')
        # Who really answered, and how new that is; who leads as this one knows it.
        assert (answer.headers["Depalma-Master"], answer.headers["Depalma-Index"]) == ("m2", "99")
        assert answer.headers["Depalma-Leader"] == f"http://127.0.0.1:{leader.port}"
        assert answer.headers["Location"] == "/x"
    (request,) = leader.requests
    assert (request.method, request.path) == ("POST", "/v1/jobs")
    assert request.headers["Depalma-Forwarded"] == "1"
    assert passed.items() <= request.headers.items()
    assert request.headers["Authorization"] == "Bearer " + "u" * 40
    assert not {"X-Other", "Cookie"} & set(request.headers)
    assert leader.bodies == [b'{"kind": "command", "argv": ["true"]}']


async def test_a_read_arrives_with_its_query(follower: Bench, leader: Leader) -> None:
    leader.answer = answering(body=b'{"jobs": []}')
    assert await follower.get("/v1/jobs?name=a%20b&tag=%26x") == {"jobs": []}
    assert dict(leader.requests[0].query) == {"name": "a b", "tag": "&x"}


async def test_large_bodies_and_large_answers_pass(follower: Bench, leader: Leader) -> None:
    large = bytes(range(256)) * 20_000

    async def in_pieces(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for start in range(0, len(large), 100_000):
            await response.write(large[start : start + 100_000])
        return response

    for answer in (answering(body=large), in_pieces):
        leader.answer = answer
        async with follower.http.get(f"{follower.url}/v1/tasks/1.0/result") as result:
            assert await result.read() == large
    leader.answer = answering(400)
    limit = follower.master.config.settings.max_body_bytes
    body = b"x" * limit
    async with follower.http.post(f"{follower.url}/v1/jobs", data=body):
        assert leader.bodies[-1] == body
    await follower.call("POST", "/v1/jobs", 413, data=b"x" * (limit + 1))
    assert len(leader.requests) == 3


async def test_problems_of_the_leader_pass_unchanged(follower: Bench, leader: Leader) -> None:
    problem = b'{"code":"unknown_job","status":404}'
    leader.answer = answering(404, problem, {"Content-Type": "application/problem+json"})
    assert await follower.get("/v1/jobs/5", 404) == {"code": "unknown_job", "status": 404}


async def test_redirects_are_not_followed(follower: Bench, leader: Leader) -> None:
    leader.answer = answering(302, b"", {"Location": "http://127.0.0.1:1/"})
    async with follower.http.get(f"{follower.url}/v1/jobs", allow_redirects=False) as answer:
        assert answer.status == 302
    assert len(leader.requests) == 1


async def test_a_leader_that_is_not_there_changed_nothing(follower: Bench, leader: Leader) -> None:
    await leader.runner.cleanup()
    problem = await follower.post("/v1/jobs", BODY, 503)
    assert (problem["code"], "nothing was changed" in problem["detail"]) == ("no_leader", True)


@pytest.mark.parametrize("new_leader", ["m1", None])
@pytest.mark.parametrize(("method", "code"), [("POST", "outcome_unknown"), ("GET", "no_leader")])
async def test_a_leader_that_is_replaced_while_it_is_silent(
    follower: Bench,
    leader: Leader,
    wait_until: Any,
    method: str,
    code: str,
    new_leader: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("depalma.api.forward._NO_LEADER_S", 0.2)
    body = {"json": BODY} if method == "POST" else {}
    asking = asyncio.create_task(follower.call(method, "/v1/jobs", 503, **body))
    await wait_until(lambda: leader.requests)
    assert not asking.done()
    follower.master.replica.leader_id = new_leader
    problem = await asyncio.wait_for(asking, 30)
    assert problem["code"] == code
    if code == "outcome_unknown":
        assert "same Idempotency-Key" in problem["detail"]


@pytest.mark.parametrize(("method", "code"), [("POST", "outcome_unknown"), ("GET", "no_leader")])
async def test_a_leader_that_hangs_up(follower: Bench, leader: Leader, method: str, code: str) -> None:
    async def hang_up(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    leader.answer = hang_up
    body = {"json": BODY} if method == "POST" else {}
    assert (await follower.call(method, "/v1/jobs", 503, **body))["code"] == code


async def test_a_leader_that_dies_over_a_kept_connection_may_have_done_it(follower: Bench, leader: Leader) -> None:
    """aiohttp sends a DELETE again by itself, and then finds nobody who listens: that says nothing of the first."""

    async def fine(request: web.Request) -> web.StreamResponse:
        return web.json_response({})

    async def dies(request: web.Request) -> web.StreamResponse:
        for site in list(leader.runner.sites):
            await site.stop()
        assert request.transport is not None
        request.transport.abort()
        raise ConnectionResetError

    leader.answer = fine
    await follower.call("DELETE", "/v1/hosts/h1", 200)
    leader.answer = dies
    problem = await follower.call("DELETE", "/v1/hosts/h2", 503)
    assert problem["code"] == "outcome_unknown"
    assert [request.path for request in leader.requests] == ["/v1/hosts/h1", "/v1/hosts/h2"]


async def test_an_answer_that_breaks_off_is_not_passed_as_whole(follower: Bench, leader: Leader) -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 2_000_000
        await response.prepare(request)
        await response.write(b"x" * 500_000)
        assert request.transport is not None
        request.transport.close()
        return response

    leader.answer = half
    async with follower.http.get(f"{follower.url}/v1/tasks/1.0/result") as answer:
        with pytest.raises(Exception, match=r"payload|Connection|closed"):
            await answer.read()


async def test_an_election_that_the_old_leader_wins_disturbs_nobody(
    follower: Bench, leader: Leader, wait_until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("depalma.api.forward._NO_LEADER_S", 60.0)
    asking = asyncio.create_task(follower.post("/v1/jobs", BODY, 200))
    await wait_until(lambda: leader.requests)
    follower.master.replica.leader_id = None
    forwarder = follower.app[API].forwarder
    looked = forwarder._looking
    await wait_until(lambda: forwarder._looking is not looked)
    follower.master.replica.leader_id = "m2"
    leader.release.set()
    await asking


async def test_nothing_goes_on_looking_when_nothing_is_asked(follower: Bench, leader: Leader, wait_until: Any) -> None:
    leader.answer = answering()
    for _ in range(20):
        await follower.get("/v1/jobs")
    await wait_until(lambda: follower.app[API].forwarder._looking is None)
