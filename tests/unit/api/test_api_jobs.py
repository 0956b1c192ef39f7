"""Jobs over HTTP: what is accepted, what is answered, what a bad request is told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from depalma import items
from depalma.model import JobSpec, Payload
from depalma.state import requests as state_requests
from depalma.state.commands import CancelJobs, SubmitJob

if TYPE_CHECKING:
    from conftest import Bench  # type: ignore[import-not-found]

COMMAND = {"kind": "command", "argv": ["make", "-j2"]}


async def test_submit_answers_the_id_and_show_gives_the_job(bench: Bench) -> None:
    created = await bench.post("/v1/jobs", {**COMMAND, "name": "build", "user": "ann", "tags": ["ci"]}, 201)
    assert created == {"id": 1}
    job = await bench.get("/v1/jobs/1")
    assert (job["name"], job["user"], job["state"], job["tags"], job["command"]) == (
        "build", "ann", "queued", ["ci"], "make -j2",
    )  # fmt: skip
    assert job["tasks"] == {
        "total": 1, "queued": 1, "running": 0, "succeeded": 0, "failed": 0, "cancelled": 0, "lost": 0,
    }  # fmt: skip
    assert await bench.get("/v1/jobs/last") == job


async def test_answers_carry_index_leader_and_master(bench: Bench) -> None:
    async with bench.http.post(f"{bench.url}/v1/jobs", json=COMMAND) as answer:
        assert answer.headers["Depalma-Index"] == str(bench.master.state.version) == "1"
        assert answer.headers["Depalma-Leader"] == bench.url
        assert answer.headers["Depalma-Master"] == "m1"
        assert answer.headers["Location"] == "/v1/jobs/1"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Server"] == "depalma"


async def test_msgpack_both_ways(bench: Bench) -> None:
    headers = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
    spec = JobSpec(kind="command", argv=("true",))
    async with bench.http.post(f"{bench.url}/v1/jobs", data=msgspec.msgpack.encode(spec), headers=headers) as answer:
        assert (answer.status, answer.content_type) == (201, "application/msgpack")
        assert msgspec.msgpack.decode(await answer.read()) == {"id": 1}


async def test_the_same_key_gives_the_same_job(bench: Bench) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = await bench.post("/v1/jobs", COMMAND, 201, headers=headers)
    assert await bench.post("/v1/jobs", COMMAND, 201, headers=headers) == first
    assert await bench.post("/v1/jobs", COMMAND, 201) != first
    assert len(bench.master.state.jobs) == 2


async def test_what_was_done_too_long_ago_is_refused_rather_than_done_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_requests, "LIMIT", 6)
    seen = str(bench.master.state.version)
    first = {"Idempotency-Key": "first", "Depalma-Seen": seen}
    made = await bench.post("/v1/jobs", COMMAND, 201, headers=first)
    for _ in range(3):
        await bench.post("/v1/jobs", COMMAND, 201)
    assert await bench.post("/v1/jobs", COMMAND, 201, headers=first) == made
    for _ in range(6):
        await bench.post("/v1/jobs", COMMAND, 201)
    problem = await bench.post("/v1/jobs", COMMAND, 409, headers=first)
    assert problem["code"] == "request_forgotten"
    assert "Look, and send it as a new one if it was not" in problem["detail"]
    assert len(bench.master.state.jobs) == 10
    now = {"Idempotency-Key": "new", "Depalma-Seen": str(bench.master.state.version)}
    assert await bench.post("/v1/jobs", COMMAND, 201, headers=now) == {"id": 11}


@pytest.mark.parametrize("seen", ["", "-1", "1.0", "x", "²", "9" * 19])
async def test_what_was_seen_must_be_an_index(bench: Bench, seen: str) -> None:
    problem = await bench.post("/v1/jobs", COMMAND, 400, headers={"Depalma-Seen": seen})
    assert problem["detail"].startswith("Depalma-Seen: ")
    assert problem["detail"].endswith("allowed: a Depalma-Index that came with an answer")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({**COMMAND, "retrys": 1}, "object contains unknown field `retrys`; allowed: kind, name, user"),
        ({**COMMAND, "retries": "1"}, "retries: expected `int`, got `str`; '1' given"),
        ({**COMMAND, "tags": ["a", 2]}, "tags.1: expected `str`, got `int`; 2 given"),
        ({**COMMAND, "arguments": {"inlin": ""}}, "arguments: object contains unknown field `inlin`; allowed: inline"),
        ({"argv": ["true"]}, "missing required field `kind`"),
        ({**COMMAND, "kind": "shell"}, "kind: 'shell' given; allowed: command, function"),
        ({"kind": "command"}, "argv: [] given"),
        ({**COMMAND, "cpus": 0}, "cpus: 0"),
        ({**COMMAND, "count": -1}, "count: -1 given"),
        ({**COMMAND, "env": {"A=B": "c"}}, "env: 'A=B' given"),
        ({**COMMAND, "code_index": 7}, "code_index: 7 given"),
        ({**COMMAND, "arguments": {"inline": "AAAA"}}, "arguments: packed arguments are shorter than their header"),
        ({**COMMAND, "arguments": {"digest": "xyz"}}, "arguments.digest: 'xyz' given; allowed: a SHA-256"),
        ([], "body: expected `object`, got `array`"),
    ],
)  # fmt: skip
async def test_a_bad_spec_is_refused_by_the_name_of_the_field(bench: Bench, body: Any, said: str) -> None:
    problem = await bench.post("/v1/jobs", body, 400)
    assert problem["code"] == "bad_field"
    assert said in problem["detail"], problem["detail"]
    assert (problem["type"], problem["title"], problem["status"]) == ("about:blank", "Bad Request", 400)
    assert not bench.master.state.jobs
    assert bench.master.state.version <= 1  # at most the refusal itself is in the log


async def test_broken_json_and_broken_msgpack(bench: Bench) -> None:
    problem = await bench.call("POST", "/v1/jobs", 400, data=b'{"kind": ')
    assert problem["code"] == "bad_json"
    assert "truncated" in problem["detail"]
    headers = {"Content-Type": "application/msgpack"}
    problem = await bench.call("POST", "/v1/jobs", 400, data=b"\xc1", headers=headers)
    assert problem["code"] == "bad_json"


async def test_deeply_nested_json_is_only_a_bad_request(bench: Bench) -> None:
    problem = await bench.call("POST", "/v1/jobs", 400, data=b"[" * 100_000)
    assert problem["code"] in ("bad_json", "bad_field")


async def test_an_oversized_body_is_refused_before_it_is_read(bench: Bench) -> None:
    limit = bench.master.config.settings.max_body_bytes
    problem = await bench.call("POST", "/v1/jobs", 413, data=b"x" * (limit + 1))
    assert problem["code"] == "too_large"
    assert f"{limit + 1} bytes given; allowed: up to {limit} bytes" in problem["detail"]

    async def unknown_length() -> Any:
        for _ in range(limit // 1024 + 2):
            yield b"x" * 1024

    problem = await bench.call("POST", "/v1/jobs", 413, data=unknown_length())
    assert problem["code"] == "too_large"


async def test_a_compressed_body_is_refused(bench: Bench) -> None:
    problem = await bench.call("POST", "/v1/jobs", 415, data=b"x", headers={"Content-Encoding": "gzip"})
    assert problem["code"] == "unsupported_encoding"


async def test_a_bad_key_is_refused(bench: Bench) -> None:
    problem = await bench.post("/v1/jobs", COMMAND, 400, headers={"Idempotency-Key": "k" * 129})
    assert problem["detail"].startswith("Idempotency-Key: ")


@pytest.mark.parametrize(
    ("path", "status", "code", "said"),
    [
        ("/v1/jobs/77", 404, "unknown_job", "there is no job 77"),
        ("/v1/jobs/last", 404, "unknown_job", "there is no job yet"),
        ("/v1/jobs/seven", 400, "bad_field", "job: 'seven' given; allowed: a whole number, 1 or more"),
        ("/v1/jobs/77/tasks", 404, "unknown_job", "there is no job 77"),
        ("/v1/jobs/77/explain", 404, "unknown_job", "there is no job 77"),
        ("/v1/tasks/77.0", 404, "unknown_job", "there is no job 77"),
        ("/v1/tasks/77", 400, "bad_field", "task: '77' given; allowed: JOB.INDEX"),
        ("/v1/archive?x=1", 400, "bad_field", "unknown query parameter 'x'; allowed: none here"),
        ("/v1/jobs?stat=queued", 400, "bad_field", "unknown query parameter 'stat'; allowed: all, before"),
        ("/v1/jobs?state=done", 400, "bad_field", "state: 'done' given; allowed: held"),
        ("/v1/jobs?limit=0", 400, "bad_field", "limit: '0' given; allowed: a whole number, 1 to 10000"),
        ("/v1/jobs?wait=soon&index=1", 400, "bad_field", "wait: 'soon' given; allowed: a duration like 30s"),
        ("/v1/jobs?consistency=weak", 400, "bad_field", "consistency: 'weak' given; allowed: linearizable, stale"),
        ("/v1/hosts/h9", 404, "unknown_host", "there is no host 'h9'; there are: none"),
        ("/v1/code/3", 404, "unknown_code", "there is no code index 3; the newest is 0"),
        ("/v1/nothing", 404, "not_found", "there is nothing at '/v1/nothing'"),
    ],
)
async def test_a_bad_read_says_what_is_wrong(bench: Bench, path: str, status: int, code: str, said: str) -> None:
    problem = await bench.get(path, status)
    assert problem["code"] == code
    assert said in problem["detail"], problem["detail"]


async def test_a_wrong_method_names_the_right_ones(bench: Bench) -> None:
    problem = await bench.call("DELETE", "/v1/jobs", 405)
    assert (problem["code"], problem["detail"]) == (
        "method_not_allowed", "DELETE given for '/v1/jobs'; allowed: GET, POST",
    )  # fmt: skip


async def test_packed_arguments_must_be_as_many_as_count(bench: Bench) -> None:
    packed = base64.b64encode(items.pack([b"a", b"b"])).decode()
    body = {**COMMAND, "count": 3, "arguments": {"inline": packed}}
    problem = await bench.post("/v1/jobs", body, 400)
    assert "2 packed items" in problem["detail"]
    await bench.post("/v1/jobs", {**body, "count": 2}, 201)


async def test_large_inline_arguments_go_to_the_blobs(bench: Bench) -> None:
    packed = items.pack([b"x" * 5000])
    body = {**COMMAND, "arguments": {"inline": base64.b64encode(packed).decode()}}
    await bench.post("/v1/jobs", body, 201)
    digest = hashlib.sha256(packed).hexdigest()
    assert bench.master.state.jobs[1].spec.arguments == Payload(digest=digest, size_bytes=len(packed))
    assert await bench.master.blobs.item(digest, 0) == b"x" * 5000


async def test_damaged_arguments_beside_the_log_are_refused(bench: Bench) -> None:
    """Offsets in the middle, which nobody looks at before the task is given out: as a blob, and as what becomes one."""
    good = items.pack([b"x" * 5000, b"y"])
    bad = good[:16] + bytes(7) + b"\x80" + good[24:]
    digest = await bench.master.blobs.put_bytes(bad)
    for arguments in ({"digest": digest}, {"inline": base64.b64encode(bad).decode()}):
        problem = await bench.post("/v1/jobs", {**COMMAND, "count": 2, "arguments": arguments}, 400)
        assert "offsets of item 0 are damaged" in problem["detail"]
    assert not bench.master.state.jobs


async def test_arguments_in_a_blob_that_nobody_has_are_refused(bench: Bench) -> None:
    problem = await bench.post("/v1/jobs", {**COMMAND, "arguments": {"digest": "0" * 64}}, 404)
    assert problem["code"] == "unknown_blob"
    assert "PUT /v1/blobs/" in problem["detail"]


async def test_listing_filters_and_pages(bench: Bench) -> None:
    for number in range(5):
        bench.submit(name=f"n{number % 2}", tags=("odd",) if number % 2 else (), user="ann")
    page = await bench.get("/v1/jobs?limit=2")
    assert ([job["id"] for job in page["jobs"]], page["more"]) == ([5, 4], True)
    page = await bench.get("/v1/jobs?limit=3&before=4")
    assert ([job["id"] for job in page["jobs"]], page["more"]) == ([3, 2, 1], False)
    assert [job["id"] for job in (await bench.get("/v1/jobs?tag=odd"))["jobs"]] == [4, 2]
    assert [job["id"] for job in (await bench.get("/v1/jobs?name=n0"))["jobs"]] == [5, 3, 1]
    assert (await bench.get("/v1/jobs?user=bob"))["jobs"] == []
    await bench.post("/v1/jobs/cancel", {"jobs": [1]})
    assert [job["id"] for job in (await bench.get("/v1/jobs?state=cancelled,lost"))["jobs"]] == [1]


async def test_jobs_that_ended_long_ago_are_listed_only_with_all(bench: Bench) -> None:
    spec = JobSpec(kind="command", argv=("true",))
    bench.master.apply(SubmitJob("", spec, 1000.0))
    bench.master.apply(CancelJobs("", (1,), 1001.0))
    bench.submit()
    assert [job["id"] for job in (await bench.get("/v1/jobs"))["jobs"]] == [2]
    assert [job["id"] for job in (await bench.get("/v1/jobs?all=1"))["jobs"]] == [2, 1]


async def test_waiting_for_the_end_of_a_job(bench: Bench) -> None:
    bench.host_up()
    job = bench.submit()
    bench.assign(job, 0)
    waiting = asyncio.create_task(bench.get(f"/v1/jobs/{job}?wait=20s&until=final"))
    started = asyncio.create_task(bench.get(f"/v1/jobs/{job}?wait=20s&until=started"))
    await asyncio.sleep(0)
    bench.start(job, 0)
    assert (await started)["state"] == "running"
    assert not waiting.done()
    bench.finish(job, 0, exit_code=0)
    assert (await waiting)["state"] == "succeeded"


async def test_waiting_ends_with_the_time(bench: Bench) -> None:
    job = bench.submit()
    view = await bench.get(f"/v1/jobs/{job}?wait=30ms&until=final")
    assert view["state"] == "queued"


async def test_any_read_can_wait_for_a_newer_index(bench: Bench) -> None:
    bench.submit()
    version = bench.master.state.version
    waiting = asyncio.create_task(bench.get(f"/v1/jobs?wait=20s&index={version}"))
    assert len((await bench.get(f"/v1/jobs?wait=20s&index={version - 1}"))["jobs"]) == 1
    assert not waiting.done()
    bench.submit()
    assert len((await waiting)["jobs"]) == 2


async def test_cancel_is_all_or_nothing(bench: Bench) -> None:
    one, two = bench.submit(), bench.submit()
    problem = await bench.post("/v1/jobs/cancel", {"jobs": [one, 9]}, 404)
    assert (problem["code"], problem["detail"]) == ("unknown_job", "there is no job 9")
    assert (await bench.get(f"/v1/jobs/{one}"))["state"] == "queued"
    assert await bench.post("/v1/jobs/cancel", {"jobs": [one, two], "by": "ann"}) == {"cancelled": [one, two]}
    assert await bench.post("/v1/jobs/cancel", {"jobs": [one]}) == {"cancelled": []}
    assert "by ann" in (await bench.get(f"/v1/jobs/{one}"))["reason"]
    problem = await bench.post("/v1/jobs/cancel", {"jobs": []}, 400)
    assert problem["detail"].startswith("jobs: ")


async def test_an_open_job_takes_tasks_until_it_is_closed(bench: Bench) -> None:
    created = await bench.post("/v1/jobs", {"kind": "function", "open": True, "count": 0}, 201)
    job = created["id"]
    packed = base64.b64encode(items.pack([b"a", b"b"])).decode()
    body = {"arguments": {"inline": packed}, "count": 2}
    assert await bench.post(f"/v1/jobs/{job}/tasks", body) == {"first": 0}
    assert await bench.post(f"/v1/jobs/{job}/tasks", body) == {"first": 2}
    assert await bench.post(f"/v1/jobs/{job}/close") == {}
    problem = await bench.post(f"/v1/jobs/{job}/tasks", body, 409)
    assert problem["code"] == "job_closed"
    problem = await bench.post("/v1/jobs/99/close", status=404)
    assert problem["code"] == "unknown_job"
    problem = await bench.post(f"/v1/jobs/{job}/tasks", {"count": 2}, 400)
    assert "missing required field `arguments`" in problem["detail"]


async def test_explain_says_why_a_job_waits(bench: Bench) -> None:
    job = bench.submit()
    lines = (await bench.get(f"/v1/jobs/{job}/explain"))["lines"]
    assert lines
    assert all(isinstance(line, str) and line for line in lines)
    assert (await bench.get(f"/v1/tasks/{job}.0/explain"))["lines"]
