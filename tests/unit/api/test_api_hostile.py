"""What no well-meaning client sends: garbage in every place that a request has. Never a 500, never a hanging answer."""

from __future__ import annotations

import asyncio
import errno
import gc
import hashlib
import io
import random
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from aiohttp.test_utils import make_mocked_request

from depalma.api import joining
from depalma.api.app import ROUTES
from depalma.api.joining import AT_ONCE, join_by_tls
from depalma.api.problems import Problem

if TYPE_CHECKING:
    from conftest import Bench  # type: ignore[import-not-found]

TOKEN = b"u" * 40


async def send(bench: Bench, request: bytes) -> tuple[int, bytes]:
    """Sends raw bytes; returns status and all that came until the connection closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(bench.url.rpartition(":")[2]))
    try:
        async with asyncio.timeout(30):
            writer.write(request)
            answer = await reader.read()
    finally:
        writer.close()
    return int(answer.split(b" ", 2)[1]), answer


def head(method: bytes, path: bytes, *more: bytes) -> bytes:
    lines = [method + b" " + path + b" HTTP/1.1", b"Host: x", b"Connection: close"]
    return b"\r\n".join([*lines, b"Authorization: Bearer " + TOKEN, *more]) + b"\r\n\r\n"


@pytest.mark.parametrize(
    "path",
    [b"/v1/hosts/%ff%fe", b"/v1/hosts/%00", b"/v1/hosts/%0d%0aX-Evil:1", b"/v1/jobs/%ff", b"/%ff", b"/v1/tasks/1.%ff"],
)
async def test_bytes_that_are_no_text_in_a_path(bench: Bench, path: bytes) -> None:
    status, answer = await send(bench, head(b"GET", path))
    assert status in (400, 404), answer
    headers, _, body = answer.partition(b"\r\n\r\n")
    assert b"X-Evil" not in headers
    assert msgspec.json.decode(body)["status"] == status


@pytest.mark.parametrize(
    "header",
    [
        b"Idempotency-Key: \xff\xfe", b"Idempotency-Key: a\tb", b"Authorization: Bearer \xff", b"Depalma-Session: \xff",
        b"Depalma-Seen: \xff",
        b"Content-Type: \xff", b"Accept: \xff", b"Content-Encoding: \xff", b"Expect: miracles",
        b"Content-Length: -1", b"Content-Length: x", b"Transfer-Encoding: nonsense",
    ],
)  # fmt: skip
async def test_bytes_that_are_no_text_in_a_header(bench: Bench, header: bytes) -> None:
    body = b'{"kind":"command","argv":["true"]}'
    length = () if header.startswith((b"Content-Length", b"Transfer")) else (b"Content-Length: %d" % len(body),)
    status, answer = await send(bench, head(b"POST", b"/v1/jobs", header, *length) + body)
    assert status < 500, answer


@pytest.mark.parametrize(
    "address", [b"http://[::1]:80@/a", b"http://xn--\xc2\x80/", b"http://xn--a/", b"http://xn--zz--/"]
)
async def test_an_address_that_the_parser_falls_over_ends_its_connection_only(bench: Bench, address: bytes) -> None:
    """The loop's handler stops the master: nothing that a stranger sends may reach it."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    reader, writer = await asyncio.open_connection("127.0.0.1", int(bench.url.rpartition(":")[2]))
    try:
        writer.write(b"GET " + address + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(30):  # it does not stay open either
            await reader.read()
    finally:
        writer.close()
    await bench.get("/v1/jobs")
    gc.collect()  # a task that failed is told about when it goes
    assert told == []


async def test_garbage_without_end_does_not_fill_the_log(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(20):
        status, _ = await send(bench, b"POST /a HTTConnection: x\r\n\r\n")
        assert status == 400
    assert len(caplog.records) <= 1


async def test_an_absolute_url_is_not_followed(bench: Bench) -> None:
    bench.master.replica.is_leader, bench.master.replica.leader_id = False, "m1"
    status, _ = await send(bench, head(b"GET", b"http://127.0.0.1:9/v1/jobs?consistency=stale"))
    assert status == 200


async def test_a_host_that_is_no_text_is_a_stranger(bench: Bench) -> None:
    request = head(b"POST", b"/v1/agent/gone", b"Depalma-Host: \xff", b"Content-Length: 2").replace(TOKEN, b"x" * 40)
    status, answer = await send(bench, request + b"{}")
    assert status == 401, answer


@pytest.mark.parametrize("text", ['"\\ud800"', '"\\u0000"', '"a\\nb"'])
async def test_strange_characters_in_a_name(bench: Bench, text: str) -> None:
    body = b'{"kind":"command","argv":["true"],"name":' + text.encode() + b"}"
    async with bench.http.post(f"{bench.url}/v1/jobs", data=body) as answer:
        assert answer.status in (201, 400), await answer.text()
    await bench.get("/v1/jobs")


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("PATCH", "/v1/hosts/h1", '{"gpus":NUMBER}', "gpus"),
        ("PATCH", "/v1/hosts/h1", '{"resources":{"tape":NUMBER}}', "resources"),
        ("POST", "/v1/code/rollback", '{"index":NUMBER}', "rollback_of"),
        ("PUT", "/v1/limits/user/ann", '{"limit":NUMBER}', "limit"),
        ("POST", "/v1/jobs/retry", '{"jobs":[NUMBER]}', "jobs"),
        ("POST", "/v1/jobs/cancel", '{"jobs":[NUMBER]}', "jobs"),
    ],
)
@pytest.mark.parametrize("number", [str(10**30), str(2**64)])
async def test_a_number_that_the_log_cannot_hold_is_refused_by_name(
    bench: Bench, method: str, path: str, body: str, field: str, number: str
) -> None:
    headers = {"Authorization": "Bearer " + TOKEN.decode()}
    data = body.replace("NUMBER", number)
    async with bench.http.request(method, bench.url + path, data=data, headers=headers) as answer:
        problem = await answer.json(content_type=None)
    assert (answer.status, problem["code"]) == (400, "bad_field"), problem
    assert problem["detail"].startswith(f"{field}: "), problem


async def test_markup_stays_data(bench: Bench) -> None:
    bench.submit(name="<script>alert(1)</script>")
    async with bench.http.get(f"{bench.url}/v1/jobs") as answer:
        assert answer.content_type == "application/json"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"


async def test_random_values_in_bodies_and_queries_are_never_a_defect(bench: Bench) -> None:
    chance = random.Random(7)
    values: list[Any] = [
        None, True, -1, 0, 2**31, 2**63 - 1, 1e308, -0.5, "", "x", "last", "1.0", "é\u202e", [], [1], {}, {"a": 1},
        {"inline": "AA=="}, {"digest": "0" * 64}, "9" * 30, ["a", "b"], {"1": 1},
    ]  # fmt: skip
    fields = {
        route: list(getattr(route.body.type, "__struct_fields__", ())) for route in ROUTES if route.body is not None
    }
    for _ in range(600):
        route = chance.choice(ROUTES)
        if route.path == "/v1/results":
            continue  # a good one is answered without end
        path = route.path
        for name in ("job", "task", "digest", "index", "host"):
            path = path.replace(f"{{{name}}}", chance.choice(["1", "1.0", "0", "x", "-1", "last", "9" * 16, "0" * 64]))
        query = {name: str(chance.choice(values)) for name in route.query if chance.random() < 0.3}
        query.pop("wait", None)
        body: Any = {name: chance.choice(values) for name in fields.get(route, ()) if chance.random() < 0.5}
        if route.path == "/v1/jobs" and chance.random() < 0.7:
            body |= {"kind": "command", "argv": ["true"]}
        token = {"agent": "a" * 40}.get(next(iter(route.access), ""), "u" * 40)
        headers = {"Authorization": f"Bearer {token}"}
        async with bench.http.request(
            route.method, bench.url + path, params=query, json=body, headers=headers
        ) as answer:
            text = await answer.read()
            assert answer.status < 500, (route.method, path, query, body, text)


async def test_a_refused_body_is_not_even_asked_for(bench: Bench) -> None:
    limit = bench.master.config.settings.max_blob_bytes
    path = b"/v1/blobs/" + b"0" * 64
    status, answer = await send(bench, head(b"PUT", path, b"Expect: 100-continue", b"Content-Length: %d" % (limit + 1)))
    assert (status, b"100 Continue" in answer) == (413, False)
    request = head(b"PUT", path, b"Expect: 100-continue", b"Content-Length: 5").replace(TOKEN, b"x" * 40)
    status, answer = await send(bench, request)
    assert (status, b"100 Continue" in answer) == (401, False)


async def test_a_body_that_is_welcome_is_asked_for(bench: Bench) -> None:
    data = b"some bytes" * 1000
    digest = hashlib.sha256(data).hexdigest()
    async with bench.http.put(f"{bench.url}/v1/blobs/{digest}", data=io.BytesIO(data), expect100=True) as answer:
        assert answer.status == 201, await answer.text()


async def test_a_full_disk_is_told_and_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("depalma.blobstore._Writer._write", full)
    digest = hashlib.sha256(b"data").hexdigest()
    problem = await bench.call("PUT", f"/v1/blobs/{digest}", 507, data=b"data")
    assert problem["code"] == "disk_full"
    assert not bench.master.blobs.has(digest)


async def test_many_slow_clients_do_not_slow_the_others(bench: Bench) -> None:
    port = int(bench.url.rpartition(":")[2])
    slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]
    try:
        for _, writer in slow:
            writer.write(b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Le")
        async with asyncio.timeout(30):
            for _ in range(20):
                await bench.get("/v1/jobs")
    finally:
        for _, writer in slow:
            writer.close()


async def test_strangers_that_join_are_no_more_than_some_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By TLS of the API too: each may send a body."""
    monkeypatch.setattr("depalma.api.joining._talking", set(range(AT_ONCE)))
    request = make_mocked_request("POST", "/v1/join").clone(scheme="https")
    with pytest.raises(Problem, match="32 machines are joining at this moment") as caught:
        await join_by_tls(Any, request)  # type: ignore[arg-type]
    assert caught.value.code == "crowded"


async def test_who_joins_by_tls_counts_as_long_as_he_talks(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what cannot be read is refused in words."""
    seen = []

    async def read(_: object, most_bytes: int) -> bytes:
        seen.append(len(joining._talking))
        return b"no JSON"

    monkeypatch.setattr(joining, "read_body", read)
    request = make_mocked_request("POST", "/v1/join").clone(scheme="https")
    with pytest.raises(Problem, match="not what a machine says that joins"):
        await join_by_tls(Any, request)  # type: ignore[arg-type]
    assert (seen, joining._talking) == ([1], set())
