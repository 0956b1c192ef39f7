"""Who may do what: each route with each token; no secret in logs or answers; forwarding rules of a follower."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from depalma.api.app import ROUTES
from depalma.api.route import Mode, Route
from depalma.blobs import master_token

if TYPE_CHECKING:
    from conftest import Bench  # type: ignore[import-not-found]

TOKENS = {"user": "u" * 40, "agent": "a" * 40, "master": master_token(b"r" * 40)}


def expected_roles(route: Route) -> set[str]:
    """The rule as it is promised, written down a second time."""
    if route.path in ("/healthz", "/readyz", "/v1/authority", "/v1/join"):
        return {"user", "agent", "master", "wrong", "none"}
    if route.path.startswith("/internal/"):
        return {"master"}
    if route.path.startswith("/v1/blobs/"):
        return {"user", "agent"}
    return {"agent"} if route.path.startswith("/v1/agent") else {"user"}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_each_route_with_each_token(bench: Bench, route: Route) -> None:
    names = {
        "job": 1,
        "task": "1.0",
        "digest": "0" * 64,
        "index": 1,
        "host": "h1",
        "master": "m1",
        "group": "g",
        "webhook": "w",
        "kind": "tag",
        "name": "db",
        "user": "ann",
        "schedule": "s",
        "visit": "k",
    }
    path = route.path.format(**names) if "{" in route.path else route.path
    for role in ("user", "agent", "master", "wrong", "none"):
        token = TOKENS.get(role, "x" * 40)
        # An empty value: no such header at all comes from the session's default otherwise.
        headers = {"Authorization": "" if role == "none" else f"Bearer {token}"}
        async with bench.http.request(route.method, bench.url + path, headers=headers, json={"x": 1}) as answer:
            allowed = answer.status not in (401, 403)
            assert allowed == (role in expected_roles(route)), (role, answer.status)
            if role in ("wrong", "none") and not allowed:
                assert answer.status == 401
                assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            elif not allowed:
                assert answer.status == 403


@pytest.mark.parametrize(
    "header", ["Basic " + "u" * 40, "u" * 40, "Bearer", "Bearer ", "Bearer " + "u" * 39, "Bearer " + "u" * 41]
)
async def test_only_the_exact_token_counts(bench: Bench, header: str) -> None:
    problem = await bench.get("/v1/jobs", 401, headers={"Authorization": header})
    assert problem["code"] == "not_authenticated"


async def test_no_secret_is_shown_or_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    canary = "canary-0123456789-canary-0123456789"
    body = {"kind": "command", "argv": ["true"], "env": {"PASSWORD": f"{canary}\0"}}
    problem = await bench.post("/v1/jobs", body, 400)
    await bench.get("/v1/jobs", 401, headers={"Authorization": f"Bearer {canary}"})
    shown = caplog.text + str(problem)
    for secret in (canary, *TOKENS.values()):
        assert secret not in shown


async def test_a_defect_is_told_without_details_and_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.master.state.jobs[1] = None  # type: ignore[assignment]
    problem = await bench.get("/v1/jobs", 500)
    assert (problem["code"], problem["detail"]) == ("internal", "AttributeError in this master; its log says more")
    assert "GET '/v1/jobs' failed" in caplog.text


# ---------------------------------------------------------------- reads, leaders and followers


async def test_reads_go_through_a_barrier_unless_stale_is_enough(bench: Bench) -> None:
    await bench.get("/v1/jobs")
    assert bench.master.barriers == 1
    await bench.get("/v1/jobs?consistency=stale")
    assert bench.master.barriers == 1


async def test_a_follower_answers_stale_reads_and_what_is_local(bench: Bench) -> None:
    bench.submit()
    bench.master.stop_leading()
    assert len((await bench.get("/v1/jobs?consistency=stale"))["jobs"]) == 1
    assert (await bench.get("/v1/masters"))["masters"][0]["role"] == "candidate"
    assert await bench.get("/healthz") == {"ok": True, "detail": ""}
    async with bench.http.get(f"{bench.url}/readyz") as answer:
        assert answer.status == 503


async def test_without_a_leader_the_answer_comes_after_a_moment(bench: Bench) -> None:
    bench.master.stop_leading()
    body = {"kind": "command", "argv": ["true"]}
    problem = await bench.post("/v1/jobs", body, 503)
    assert (problem["code"], problem.get("leader", "")) == ("no_leader", "")
    assert problem["retry_after_s"] > 0


async def test_a_request_waits_for_the_leader_that_comes(bench: Bench) -> None:
    bench.master.stop_leading()
    waiting = asyncio.create_task(bench.post("/v1/jobs", {"kind": "command", "argv": ["true"]}, 201))
    reading = asyncio.create_task(bench.get("/v1/jobs"))
    await bench.get("/healthz")
    bench.master.replica.is_leader, bench.master.replica.leader_id = True, "m1"
    assert (await waiting)["id"] == 1
    await reading


async def test_a_wait_on_a_leader_that_is_deposed_ends_at_once(bench: Bench) -> None:
    job = bench.submit()
    waiting = asyncio.create_task(bench.get(f"/v1/jobs/{job}?wait=30s&until=final", 503))
    await bench.get("/v1/jobs")
    bench.master.stop_leading()
    assert (await waiting)["code"] == "no_leader"


async def test_a_forwarded_request_is_not_forwarded_again(bench: Bench) -> None:
    bench.master.replica.is_leader, bench.master.replica.leader_id = False, "m2"
    problem = await bench.get("/v1/jobs", 503, headers={"Depalma-Forwarded": "1"})
    assert problem["code"] == "no_leader"


async def test_agents_and_streams_are_sent_to_the_leader(bench: Bench) -> None:
    bench.master.replica.is_leader, bench.master.replica.leader_id = False, "m2"
    agent = {"Authorization": f"Bearer {TOKENS['agent']}", "Depalma-Host": "h1"}
    assert (await bench.get("/v1/agent", 421, headers=agent))["code"] == "not_leader"
    lines = {"Accept": "application/x-ndjson"}
    assert (await bench.get("/v1/events?follow=1", 421, headers=lines))["code"] == "not_leader"


# ---------------------------------------------------------------- connections


async def test_a_body_that_does_not_come_ends_the_request(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("depalma.api.inputs.BODY_TIMEOUT_S", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(bench.url.rpartition(":")[2]))
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKENS['user']}\r\nContent-Length: 100\r\n\r\n"
    writer.write(head.encode())
    answer = await asyncio.wait_for(reader.readline(), 30)
    assert answer.split()[1] == b"408"
    writer.close()
    await writer.wait_closed()


async def test_garbage_is_a_bad_request(bench: Bench) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(bench.url.rpartition(":")[2]))
    writer.write(b"\x16\x03\x01\x02\x00 hello\r\n\r\n")
    answer = await asyncio.wait_for(reader.readline(), 30)
    assert answer.split()[1] == b"400"
    writer.close()
    await writer.wait_closed()


def test_routes_that_take_no_token_are_only_the_health_checks_and_joining() -> None:
    """Who joins has no token yet; what it says is checked inside the talk."""
    assert {route.path for route in ROUTES if not route.access} == {"/healthz", "/readyz", "/v1/authority", "/v1/join"}
    assert all(route.mode is Mode.LOCAL or route.path == "/v1/join" for route in ROUTES if not route.access)
