"""Graphs and dependencies over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Bench  # type: ignore[import-not-found]

COMMAND = {"kind": "command", "argv": ["make"]}


async def test_a_graph_is_created_in_one_piece(bench: Bench) -> None:
    jobs = [{**COMMAND, "name": "b", "after": [{"job": -2, "when": "any"}]}, {**COMMAND, "name": "a", "count": 2}]
    headers = {"Idempotency-Key": "k"}
    assert await bench.post("/v1/graphs", {"jobs": jobs}, 201, headers=headers) == {"ids": [1, 2]}
    assert await bench.post("/v1/graphs", {"jobs": jobs}, 201, headers=headers) == {"ids": [1, 2]}
    job = await bench.get("/v1/jobs/1")
    assert (job["state"], job["reason"]) == ("blocked", "waits for job 2 to end")
    assert [row["id"] for row in (await bench.get("/v1/jobs?state=blocked"))["jobs"]] == [1]
    tasks = await bench.get("/v1/jobs/1/tasks?state=blocked")
    assert [task["state"] for task in tasks["tasks"]] == ["blocked"]


async def test_a_cycle_is_named_and_nothing_is_created(bench: Bench) -> None:
    jobs = [
        {**COMMAND, "name": "a", "after": [{"job": -2}]},
        {**COMMAND, "name": "b", "after": [{"job": -1}]},
    ]
    problem = await bench.post("/v1/graphs", {"jobs": jobs}, 400)
    assert problem["detail"].startswith("after: a cycle: a after b after a; allowed: ")
    assert not bench.master.state.jobs
    assert bench.master.state.version == 0, "it went into the log"


async def test_bad_members_are_named(bench: Bench) -> None:
    problem = await bench.post("/v1/graphs", {"jobs": [COMMAND, {**COMMAND, "name": "x", "retries": -1}]}, 400)
    assert problem["detail"].startswith("x: retries: -1 given")
    problem = await bench.post("/v1/graphs", {"jobs": [{**COMMAND, "after": [{"job": 4}]}]}, 404)
    assert problem["detail"] == "jobs.0: after: there is no job 4 (or it is no longer kept)"
    problem = await bench.post("/v1/graphs", {"jobs": [{**COMMAND, "after": [{"job": 4, "when": "never"}]}]}, 400)
    assert "jobs.0.after.0.when: 'never' given; allowed: any, fail, ok" in problem["detail"]


async def test_a_job_after_another(bench: Bench) -> None:
    await bench.post("/v1/jobs", COMMAND, 201)
    await bench.post("/v1/jobs", {**COMMAND, "after": [{"job": 1, "each": True}]}, 201)
    assert (await bench.get("/v1/tasks/2.0"))["state"] == "blocked"
    await bench.post("/v1/jobs/cancel", {"jobs": [1]})
    job = await bench.get("/v1/jobs/2")
    assert job["state"] == "cancelled"
    assert (await bench.get("/v1/tasks/2.0"))["reason"] == "waited for task 1.0 to succeed; it was cancelled"
    problem = await bench.post("/v1/jobs", {**COMMAND, "after": [{"job": 9}]}, 404)
    assert problem["code"] == "unknown_job"
