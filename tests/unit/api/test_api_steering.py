"""Steering jobs over HTTP: hold, release, retry, set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Bench  # type: ignore[import-not-found]

COMMAND = {"kind": "command", "argv": ["make", "-j2"]}


async def test_hold_and_release(bench: Bench) -> None:
    await bench.post("/v1/jobs", COMMAND, 201)
    assert await bench.post("/v1/jobs/hold", {"jobs": [1], "by": "ann"}) == {"changed": [1]}
    job = await bench.get("/v1/jobs/1")
    assert (job["state"], job["reason"]) == ("held", "held until it is released")
    assert await bench.post("/v1/jobs/hold", {"jobs": [1]}) == {"changed": []}
    assert await bench.post("/v1/jobs/release", {"jobs": [1]}) == {"changed": [1]}
    assert (await bench.get("/v1/jobs/1"))["state"] == "queued"


async def test_set(bench: Bench) -> None:
    await bench.post("/v1/jobs", COMMAND, 201)
    assert await bench.post("/v1/jobs/set", {"jobs": [1], "priority": 7, "tags": ["a"], "name": "x"}) == {
        "changed": [1]
    }
    job = await bench.get("/v1/jobs/1")
    assert (job["priority"], job["tags"], job["name"]) == (7, ["a"], "x")
    assert [row["id"] for row in (await bench.get("/v1/jobs?tag=a&name=x"))["jobs"]] == [1]


async def test_retry_of_a_cancelled_job_is_refused(bench: Bench) -> None:
    await bench.post("/v1/jobs", COMMAND, 201)
    await bench.post("/v1/jobs/cancel", {"jobs": [1]})
    problem = await bench.post("/v1/jobs/retry", {"jobs": [1]}, 409)
    assert (problem["code"], problem["detail"]) == (
        "job_cancelled", "job 1 was cancelled: nothing of it runs again; submit it anew",
    )  # fmt: skip


async def test_the_same_key_steers_once(bench: Bench) -> None:
    await bench.post("/v1/jobs", COMMAND, 201)
    headers = {"Idempotency-Key": "k"}
    assert await bench.post("/v1/jobs/hold", {"jobs": [1]}, headers=headers) == {"changed": [1]}
    assert await bench.post("/v1/jobs/hold", {"jobs": [1]}, headers=headers) == {"changed": [1]}


@pytest.mark.parametrize("verb", ["hold", "release", "retry", "set"])
@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"jobs": []}, 400, "jobs: none given"),
        ({"jobs": [9], "name": "x"}, 404, "there is no job 9"),
        ({"jobs": ["a"]}, 400, "jobs.0: expected `int`, got `str`"),
        ({"jobs": [1], "by": "x" * 201}, 400, "up to 200 characters"),
        ({"jobs": [1] * 10_001}, 400, "jobs: '10001 ids' given; allowed: up to 10000 in one request"),
        ({"jobs": [1], "urgent": True}, 400, "object contains unknown field `urgent`"),
    ],
)
async def test_bad_requests(bench: Bench, verb: str, body: dict[str, Any], status: int, said: str) -> None:
    if verb != "set":
        body = {name: value for name, value in body.items() if name != "name"}
    problem = await bench.post(f"/v1/jobs/{verb}", body, status)
    assert said in problem["detail"]


async def test_nothing_to_set(bench: Bench) -> None:
    await bench.post("/v1/jobs", COMMAND, 201)
    problem = await bench.post("/v1/jobs/set", {"jobs": [1]}, 400)
    assert "allowed: at least one of priority, name, tags" in problem["detail"]
