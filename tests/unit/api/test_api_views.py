"""Hosts, code, masters, events, overview, metrics, blobs: what reads of the cluster give."""

from __future__ import annotations

import asyncio
import hashlib
import io
from base64 import b64encode
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from depalma.api.app import API, ROUTES
from depalma.codetree import sign, tree_at, tree_digest
from depalma.model import CodeView, EventView, HostView, LoadFigures, LoadHistory, LoadPoint, MasterView, Report
from depalma.state.commands import AckCode

if TYPE_CHECKING:
    from conftest import Agent, Bench  # type: ignore[import-not-found]

AGENT = {"Authorization": "Bearer " + "a" * 40}
MASTER_ONLY = "/internal/"


# ---------------------------------------------------------------- hosts


async def test_hosts_groups_and_load(bench: Bench) -> None:
    bench.host_up("h1", ("render", "fast"))
    bench.host_up("h2", ("render",))
    hosts = (await bench.get("/v1/hosts"))["hosts"]
    assert [(host["name"], host["state"], host["slots"]) for host in hosts] == [("h1", "up", 4), ("h2", "up", 4)]
    msgspec.convert(await bench.get("/v1/hosts/h2"), HostView)
    assert (await bench.get("/v1/groups"))["groups"] == [
        {"name": "fast", "hosts": ["h1"], "slots": 4, "free_slots": 4},
        {"name": "render", "hosts": ["h1", "h2"], "slots": 8, "free_slots": 8},
    ]
    loads = (await bench.get("/v1/load"))["hosts"]
    assert [load["host"] for load in loads] == ["h1", "h2"]
    assert set(loads[0]["load"]) >= {"load1", "cpu_percent", "memory_percent"}


async def test_the_load_of_the_last_time_is_asked_of_the_agents(
    bench: Bench, agent: Agent, connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("depalma.api.hosts.ASK_S", 3.0)  # h2 is waited for so long, and h1 may stand still meanwhile
    figures = LoadFigures(cpu_percent=50.0)
    agent.history = LoadHistory(100.0, 5.0, (LoadPoint(105.0, 5, figures, figures),))
    bench.host_up("h2")
    bench.host_up("h3")
    async with connect(bench, "h3", tells_history=False):  # of an older version: it would not understand
        answer = await bench.get("/v1/load?history=5m")
    assert answer["missing"] == ["h2", "h3"]
    histories = {row["host"]: row["history"] for row in answer["hosts"]}
    assert msgspec.convert(histories.pop("h1"), LoadHistory) == agent.history
    assert histories == {"h2": None, "h3": None}
    one = await bench.get("/v1/load?host=h1&history=1h")
    assert ([row["host"] for row in one["hosts"]], one["missing"]) == (["h1"], [])
    assert [frame.last_s for frame in agent.asked] == [300.0, 3600.0]


@pytest.mark.parametrize(("query", "status", "words"), [
    ("history=2h", 400, "history: '2h' given; allowed: a duration like 30s"),
    ("history=", 400, "history: '' given"),
    ("host=h9", 404, "there is no host 'h9'"),
])  # fmt: skip
async def test_load_names_what_is_wrong(bench: Bench, query: str, status: int, words: str) -> None:
    problem = await bench.get(f"/v1/load?{query}", status)
    assert words in problem["detail"]


async def test_a_supervisor_may_tell_that_an_agent_is_gone(bench: Bench) -> None:
    bench.host_up()
    body = {"host": "h1", "incarnation": "h1-1", "reason": "killed"}
    for _ in range(2):  # the second time it is so already
        assert await bench.post("/v1/agent/gone", body, headers=AGENT) == {}
    host = await bench.get("/v1/hosts/h1")
    assert host["state"] == "lost"
    problem = await bench.post("/v1/agent/gone", {"host": "h1"}, 400, headers=AGENT)
    assert "missing required field `incarnation`" in problem["detail"]


async def test_a_supervisor_tells_along_what_had_ended(bench: Bench) -> None:
    """It is recorded before the rest is lost: nothing is run again that had finished."""
    bench.host_up()
    job = bench.submit(count=2)
    bench.assign(job, 0, 1)
    record = msgspec.msgpack.encode((Report(job, 0, 1, "succeeded", 0, started_at=1.0, finished_at=2.0),))
    body = {"host": "h1", "incarnation": "h1-1", "reason": "killed", "reports": [b64encode(record).decode()]}
    await bench.post("/v1/agent/gone", body, headers=AGENT)
    tasks = (await bench.get(f"/v1/jobs/{job}/tasks"))["tasks"]
    assert [task["state"] for task in tasks] == ["succeeded", "queued"]
    problem = await bench.post("/v1/agent/gone", {**body, "reports": ["AAAA"]}, 400, headers=AGENT)
    assert problem["detail"].startswith("reports: ")


async def test_an_agent_must_say_its_name_and_upgrade(bench: Bench) -> None:
    problem = await bench.get("/v1/agent", 400, headers=AGENT)
    assert problem["detail"].startswith("Depalma-Host: ")
    problem = await bench.get("/v1/agent", 400, headers={**AGENT, "Depalma-Host": "h1"})
    assert "WebSocket" in problem["detail"]


async def test_an_agent_connection_is_served(bench: Bench, agent: Agent) -> None:
    assert bench.master.sessions.by_host["h1"].incarnation == "h1-1"
    assert (await bench.get("/v1/hosts/h1"))["last_seen_s"] is not None


# ---------------------------------------------------------------- code


def signed(bench: Bench, index: int, key: str | None = None, **more: Any) -> AckCode:
    tree = bench.master.state.tree_digest(index)
    signature = sign(key or bench.master.secrets.agent_token, "h1", index, tree)
    return AckCode("h1", "h1-1", index, tree, signature, 5.0, **more)


async def test_signatures_are_checked_when_they_are_shown(bench: Bench) -> None:
    bench.host_up()
    body = {"name": "pkg", "kind": "folder", "digest": await upload(bench, b"archive"), "size_bytes": 7}
    await bench.post("/v1/code", body, 201)
    bench.master.apply(signed(bench, 1))
    assert (await bench.get("/v1/code/status"))["hosts"][0]["signature"] == "valid"
    await bench.post("/v1/code/run", {"argv": ["uname"], "timeout_s": 5.0}, 201)
    bench.master.apply(signed(bench, 2, key="k" * 40, exit_code=0, output="Linux"))
    assert (await bench.get("/v1/code/status"))["hosts"][0]["signature"] == "invalid"
    said = {"host": "h1", "signature": "invalid", "exit_code": 0, "output": "Linux"}
    assert (await bench.get("/v1/code/2/hosts"))["hosts"] == [said]
    assert (await bench.get("/v1/code/1/hosts"))["hosts"][0]["signature"] == "valid"


async def test_a_rollback_and_a_command_are_entries(bench: Bench) -> None:
    for data in (b"one", b"two"):
        body = {"name": "pkg", "kind": "folder", "digest": await upload(bench, data), "size_bytes": 3}
        await bench.post("/v1/code", body, 201)
    assert await bench.post("/v1/code/rollback", {"index": 1, "by": "ann"}, 201) == {"index": 3}
    assert await bench.post("/v1/code/run", {"argv": ["true"]}, 201) == {"index": 4}
    entries = (await bench.get("/v1/code"))["entries"]
    assert [(entry["kind"], entry["rollback_of"]) for entry in entries] == [
        ("folder", 0), ("folder", 0), ("folder", 1), ("command", 0),
    ]  # fmt: skip
    for path, bad, status, said in (
        ("rollback", {"index": 9}, 404, "there is no code index 9; the newest is 4"),
        ("rollback", {"index": 0}, 400, "index: 0 given"),
        ("run", {"argv": []}, 400, "argv: [] given; allowed: at least the program's name"),
        ("run", {"argv": ["x"], "timeout_s": -1}, 400, "timeout_s: -1"),
        ("retry", {"hosts": ["h9"]}, 404, "there is no host h9"),
    ):
        assert said in (await bench.post(f"/v1/code/{path}", bad, status))["detail"]


async def upload(bench: Bench, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    await bench.call("PUT", f"/v1/blobs/{digest}", 201, data=data)
    return digest


async def test_code_is_added_listed_and_waited_for(bench: Bench) -> None:
    bench.host_up()
    digest = await upload(bench, b"archive")
    body = {"name": "pkg", "kind": "folder", "digest": digest, "size_bytes": 7, "by": "ann"}
    assert await bench.post("/v1/code", body, 201) == {"index": 1}
    entry = msgspec.convert(await bench.get("/v1/code/1"), CodeView)
    assert (entry.name, entry.size, entry.added_by, entry.missing) == ("pkg", 7, "ann", ("h1",))
    status = await bench.get("/v1/code/status")
    h1 = {"host": "h1", "state": "up", "code_index": 0, "lag": 1, "reason": "", "since": None, "signature": "none"}
    assert status == {"index": 1, "hosts": [h1]}
    waiting = asyncio.create_task(bench.get("/v1/code/1?wait=20s&until=acknowledged"))
    await bench.get("/v1/code")
    assert not waiting.done()
    tree = tree_digest(tree_at(bench.master.state.code, 1))
    bench.master.apply(AckCode("h1", "h1-1", 1, tree, "signature", 5.0))
    assert (await waiting)["acknowledged"] == ["h1"]
    assert len((await bench.get("/v1/code"))["entries"]) == 1


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"name": "../x"}, 400, "name: '../x' given"),
        ({"kind": "thing"}, 400, "kind: 'thing' given; allowed: module, folder, wheel"),
        ({"requirements": "abc"}, 400, "requirements: 'abc' given"),
        ({"requirements": "0" * 64}, 404, "requirements: no reachable master has blob"),
        ({"digest": "abc"}, 400, "digest: 'abc' given"),
        ({"digest": "0" * 64}, 404, "digest: no reachable master has blob"),
        ({"size_bytes": 8}, 400, "digest.size_bytes: 8 given; allowed: the blob's size (7)"),
        ({"colour": 1}, 400, "unknown field `colour`"),
    ],
)
async def test_bad_code_is_named(bench: Bench, change: dict[str, Any], status: int, said: str) -> None:
    body = {"name": "pkg", "kind": "folder", "digest": await upload(bench, b"archive"), "size_bytes": 7}
    problem = await bench.post("/v1/code", {**body, **change}, status)
    assert said in problem["detail"], problem["detail"]
    assert bench.master.state.code_index == 0


# ---------------------------------------------------------------- blobs


async def test_blobs_go_in_and_out(bench: Bench) -> None:
    data = bytes(range(256)) * 4000
    digest = hashlib.sha256(data).hexdigest()
    assert (await bench.call("PUT", f"/v1/blobs/{digest}", 201, data=data))["size_bytes"] == len(data)
    await bench.call("PUT", f"/v1/blobs/{digest}", 200, data=data)
    async with bench.http.get(f"{bench.url}/v1/blobs/{digest}") as answer:
        assert await answer.read() == data
        assert answer.content_type == "application/octet-stream"
    async with bench.http.get(f"{bench.url}/v1/blobs/{digest}", headers={"Range": "bytes=256-257"}) as answer:
        assert (answer.status, await answer.read()) == (206, b"\x00\x01")
    async with bench.http.head(f"{bench.url}/v1/blobs/{digest}", headers=AGENT) as answer:
        assert (answer.status, answer.content_length) == (200, len(data))
    async with bench.http.head(f"{bench.url}/v1/blobs/{'0' * 64}") as answer:
        assert answer.status == 404


async def test_bad_blobs_are_refused_and_not_kept(bench: Bench) -> None:
    digest = hashlib.sha256(b"data").hexdigest()
    problem = await bench.call("PUT", f"/v1/blobs/{digest}", 400, data=b"other")
    assert problem["code"] == "bad_digest"
    problem = await bench.call("PUT", "/v1/blobs/xyz", 400, data=b"other")
    assert problem["detail"].startswith("digest: 'xyz' given")
    limit = bench.master.config.settings.max_blob_bytes
    problem = await bench.call("PUT", f"/v1/blobs/{digest}", 413, data=io.BytesIO(b"x" * (limit + 1)))
    assert problem["code"] == "too_large"

    async def unknown_length() -> Any:
        for _ in range(limit // 65536 + 2):
            yield b"x" * 65536

    problem = await bench.call("PUT", f"/v1/blobs/{digest}", 413, data=unknown_length())
    assert problem["code"] == "too_large"
    assert not bench.master.blobs.has(digest)
    problem = await bench.get(f"/v1/blobs/{digest}", 404)
    assert problem["code"] == "unknown_blob"


# ---------------------------------------------------------------- events


async def test_events_are_resumed_after_an_index(bench: Bench) -> None:
    job = bench.submit()
    page = await bench.get("/v1/events")
    assert (page["oldest"], page["latest"]) == (1, len(page["events"]))
    first = msgspec.convert(page["events"][0], EventView)
    assert (first.index, first.kind, first.job) == (1, "job.submitted", job)
    latest = page["latest"]
    waiting = asyncio.create_task(bench.get(f"/v1/events?after={latest}&wait=20s"))
    assert (await bench.get(f"/v1/events?after={latest}"))["events"] == []
    assert not waiting.done()
    bench.submit()
    assert [event["index"] for event in (await waiting)["events"]] == [latest + 1]


async def test_events_no_longer_kept_are_not_passed_over_in_silence(bench: Bench) -> None:
    for _ in range(3):
        bench.submit()
    bench.master.state.events.records.popleft()
    oldest = bench.master.state.events.records[0].first
    problem = await bench.get("/v1/events?after=0", 410)
    assert (problem["code"], problem["oldest"]) == ("events_gone", oldest)
    assert (await bench.get(f"/v1/events?after={oldest - 1}"))["events"][0]["index"] == oldest


async def test_events_as_a_stream_of_lines(bench: Bench) -> None:
    bench.submit()
    headers = {"Accept": "application/x-ndjson"}
    async with bench.http.get(f"{bench.url}/v1/events?follow=1", headers=headers) as answer, asyncio.timeout(30):
        assert answer.content_type == "application/x-ndjson"
        assert msgspec.json.decode(await answer.content.readline())["index"] == 1
        bench.submit()
        assert msgspec.json.decode(await answer.content.readline())["index"] == 2
        bench.master.stop_leading()
        assert await answer.content.read() == b""
    async with bench.http.get(f"{bench.url}/v1/events?consistency=stale", headers=headers) as answer:
        assert len((await answer.text()).splitlines()) == 2


# ---------------------------------------------------------------- the cluster


async def test_masters_and_overview(bench: Bench) -> None:
    bench.host_up()
    job = bench.submit(count=3)
    bench.assign(job, 0)
    (master,) = (await bench.get("/v1/masters"))["masters"]
    view = msgspec.convert(master, MasterView)
    assert (view.id, view.url, view.role, view.state_hash) == (
        "m1", bench.url, "leader", bench.master.machine.state_hash,
    )  # fmt: skip
    overview = await bench.get("/v1/overview")
    assert (overview["leader"], overview["index"]) == ("m1", bench.master.state.version)
    assert overview["jobs"] == {"running": 1}
    assert (overview["tasks"]["queued"], overview["tasks"]["running"]) == (2, 1)
    assert [host["name"] for host in overview["hosts"]] == ["h1"]
    assert set(overview["rates"]) == {"finished_per_s", "submitted_per_s"}
    assert 0 < len(overview["events"]) <= 20


async def test_totals_follow_jobs_that_are_retried(bench: Bench) -> None:
    totals = bench.app[API].totals

    async def counted() -> dict[str, int]:
        totals._fresh_until = 0.0
        await totals.refresh(bench.master.state)
        return {name: count for name, count in [*totals.jobs.items(), *totals.tasks.items()] if count}

    bench.host_up()
    job = bench.submit()
    bench.assign(job, 0)
    bench.finish(job, 0, outcome="failed", exit_code=1)
    assert await counted() == {"failed": 1}
    await bench.post("/v1/jobs/retry", {"jobs": [job]})
    assert await counted() == {"queued": 1}
    bench.assign(job, 0)
    bench.finish(job, 0)
    assert await counted() == {"succeeded": 1}


async def test_totals_follow_jobs_to_their_end_and_out_of_history(bench: Bench) -> None:
    from depalma.api.totals import Totals
    from depalma.state.commands import ForgetJobs

    async def counted() -> tuple[dict[str, int], int]:
        totals._fresh_until = 0.0
        await totals.refresh(bench.master.state)
        return dict(totals.jobs), totals.tasks["cancelled"]

    totals = Totals()
    jobs = [bench.submit(count=2) for _ in range(3)]
    assert await counted() == ({"queued": 3}, 0)
    await bench.post("/v1/jobs/cancel", {"jobs": jobs[:2]})
    assert await counted() == ({"queued": 1, "cancelled": 2}, 4)
    assert await counted() == ({"queued": 1, "cancelled": 2}, 4)
    bench.master.apply(ForgetJobs((jobs[0],), 1.0))
    bench.submit()
    assert await counted() == ({"queued": 2, "cancelled": 1}, 2)


async def test_counting_many_jobs_gives_the_loop_its_turn(bench: Bench) -> None:
    from depalma.api import totals as module

    many = 5 * module._SLICE
    for _ in range(many):
        bench.submit()
    totals, turns = module.Totals(), 0
    counting = asyncio.create_task(totals.refresh(bench.master.state))
    while not counting.done():
        turns += 1
        await asyncio.sleep(0)
    assert totals.jobs == {"queued": many}
    assert turns >= 5


async def test_metrics_are_prometheus_text(bench: Bench) -> None:
    bench.submit(count=2)
    await bench.get("/v1/jobs/9", 404)
    async with bench.http.get(f"{bench.url}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        lines = (await answer.text()).splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values["depalma_leader"] == "1"
    assert values['depalma_tasks{state="queued"}'] == "2"
    assert values['depalma_http_requests_total{status="404"}'] == "1"
    assert values['depalma_raft_refused_total{reason="plain_text"}'] == "2"
    assert values['depalma_raft_refused_total{reason="expired"}'] == "0"
    assert values["depalma_raft_certificate_seconds_left"] == "86400"
    assert all(" " not in name for name in values)


async def test_openapi_names_every_public_route(bench: Bench) -> None:
    document = await bench.get("/v1/openapi.json")
    public = [route for route in ROUTES if not route.path.startswith(MASTER_ONLY)]
    assert {(path, method) for path, methods in document["paths"].items() for method in methods} == {
        (route.path, route.method.lower()) for route in public
    }
    schema = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/JobSpec"}
    assert "retries" in document["components"]["schemas"]["JobSpec"]["properties"]
    text = msgspec.json.encode(document).decode()
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in document["components"]["schemas"], name
