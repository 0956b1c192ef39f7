"""Tasks over HTTP: views, output from their host, results."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from depalma import items
from depalma.model import Payload, ProcessView
from depalma.state.commands import HostLost
from depalma.tails import OutputTail, Tail, pack

if TYPE_CHECKING:
    from conftest import Agent, Bench  # type: ignore[import-not-found]


async def test_tasks_are_listed_by_index_and_paged(bench: Bench) -> None:
    bench.host_up()
    job = bench.submit(count=5)
    bench.assign(job, 1)
    page = await bench.get(f"/v1/jobs/{job}/tasks?limit=2")
    assert ([task["id"] for task in page["tasks"]], page["more"]) == ([f"{job}.0", f"{job}.1"], True)
    page = await bench.get(f"/v1/jobs/{job}/tasks?after=2")
    assert ([task["index"] for task in page["tasks"]], page["more"]) == ([3, 4], False)
    assert [task["index"] for task in (await bench.get(f"/v1/jobs/{job}/tasks?state=assigned"))["tasks"]] == [1]
    task = await bench.get(f"/v1/tasks/{job}.1")
    assert (task["state"], task["host"], task["attempt"]) == ("assigned", "h1", 1)


async def test_a_task_outside_the_job_is_unknown(bench: Bench) -> None:
    job = bench.submit(count=5, first_index=10)
    problem = await bench.get(f"/v1/tasks/{job}.15", 404)
    assert (problem["code"], problem["detail"]) == ("unknown_task", f"job {job} has no task 15; it has 10 to 14")
    assert (await bench.get(f"/v1/tasks/{job}.14"))["index"] == 14
    empty = bench.submit(count=0)
    assert (await bench.get(f"/v1/tasks/{empty}.0", 404))["detail"] == f"job {empty} has no task 0; it has none"


async def test_waiting_for_the_end_of_a_task(bench: Bench) -> None:
    bench.host_up()
    job = bench.submit(count=2)
    bench.assign(job, 0, 1)
    waiting = asyncio.create_task(bench.get(f"/v1/tasks/{job}.1?wait=20s&until=final"))
    bench.finish(job, 0)
    await bench.get(f"/v1/tasks/{job}.0")
    assert not waiting.done()
    bench.finish(job, 1, outcome="failed", exit_code=3)
    assert (await waiting)["exit_code"] == 3


# ---------------------------------------------------------------- results


async def test_result_bytes_come_from_the_log_or_from_a_blob(bench: Bench) -> None:
    bench.host_up()
    job = bench.submit(kind="function", argv=(), function="m:f", count=4)
    bench.assign(job, 0, 1, 2, 3)
    problem = await bench.get(f"/v1/tasks/{job}.0/result", 409)
    assert (problem["code"], problem["detail"]) == (
        "not_finished", f"task {job}.0 is assigned; it has no result yet",
    )  # fmt: skip
    large = b"y" * 10_000
    digest = await bench.master.blobs.put_bytes(large)
    bench.finish(job, 0, result=Payload(inline=b"pickle", size_bytes=6))
    bench.finish(job, 1, result=Payload(digest=digest, size_bytes=10_000))
    bench.finish(job, 2, outcome="failed", result=Payload(inline=b"error", size_bytes=5))
    bench.finish(job, 3)
    for index, state, data in ((0, "succeeded", b"pickle"), (1, "succeeded", large), (2, "failed", b"error")):
        async with bench.http.get(f"{bench.url}/v1/tasks/{job}.{index}/result") as answer:
            assert (answer.status, answer.headers["Depalma-State"]) == (200, state)
            assert answer.content_type == "application/octet-stream"
            assert await answer.read() == data
    problem = await bench.get(f"/v1/tasks/{job}.3/result", 404)
    assert problem["code"] == "no_result"


# ---------------------------------------------------------------- output


async def read(bench: Bench, path: str) -> tuple[bytes, Any]:
    async with bench.http.get(f"{bench.url}/v1/tasks/{path}") as answer:
        assert answer.status == 200, await answer.text()
        assert answer.content_type == "application/octet-stream"
        return await answer.read(), answer.headers


async def test_output_comes_from_the_host_piece_by_piece(bench: Bench, agent: Agent) -> None:
    job = bench.submit()
    bench.assign(job, 0)
    bench.start(job, 0)
    agent.output = b"hello world"
    data, headers = await read(bench, f"{job}.0/logs?limit=5")
    assert (data, headers["Depalma-Next-Offset"], headers["Depalma-Ended"]) == (b"hello", "5", "false")
    assert headers["Depalma-Attempt"] == "1"
    agent.ended = True
    data, headers = await read(bench, f"{job}.0/logs?offset=5&stream=stderr")
    assert (data, headers["Depalma-Next-Offset"], headers["Depalma-Ended"]) == (b" world", "11", "true")
    assert [ask.stream for ask in agent.asked] == ["stdout", "stderr"]
    assert (agent.asked[1].job, agent.asked[1].task, agent.asked[1].attempt) == (job, 0, 1)


async def test_ended_is_said_only_with_the_last_bytes(bench: Bench, agent: Agent) -> None:
    job = bench.submit()
    bench.assign(job, 0)
    bench.finish(job, 0)
    agent.output, agent.ended = b"hello world", True
    _, headers = await read(bench, f"{job}.0/logs?limit=5")
    assert headers["Depalma-Ended"] == "false"
    data, headers = await read(bench, f"{job}.0/logs?offset=11")
    assert (data, headers["Depalma-Ended"]) == (b"", "true")


async def test_reading_blocks_until_there_is_output(bench: Bench, agent: Agent, wait_until: Any) -> None:
    job = bench.submit()
    reading = asyncio.create_task(read(bench, f"{job}.0/logs?wait=20s"))
    bench.assign(job, 0)
    bench.start(job, 0)
    await wait_until(lambda: agent.asked)
    assert not reading.done()
    agent.output = b"now"
    assert (await reading)[0] == b"now"


async def test_reading_returns_empty_when_the_wait_is_over(bench: Bench, agent: Agent) -> None:
    job = bench.submit()
    data, headers = await read(bench, f"{job}.0/logs?wait=20ms")
    assert (data, headers["Depalma-Ended"], headers["Depalma-Attempt"]) == (b"", "false", "0")
    bench.assign(job, 0)
    data, headers = await read(bench, f"{job}.0/logs?wait=20ms")
    assert (data, headers["Depalma-Ended"], headers["Depalma-Attempt"]) == (b"", "false", "1")


async def test_a_task_that_never_ran_has_ended_output(bench: Bench) -> None:
    job = bench.submit()
    await bench.post("/v1/jobs/cancel", {"jobs": [job]})
    data, headers = await read(bench, f"{job}.0/logs?wait=20s")
    assert (data, headers["Depalma-Ended"]) == (b"", "true")


async def test_output_of_an_earlier_attempt(bench: Bench, agent: Agent) -> None:
    job = bench.submit(retries=1)
    bench.assign(job, 0)
    bench.finish(job, 0, outcome="failed", exit_code=1)
    bench.assign(job, 0)
    agent.output = b"x"
    _, headers = await read(bench, f"{job}.0/logs?attempt=1")
    assert headers["Depalma-Attempt"] == "1"
    _, headers = await read(bench, f"{job}.0/logs")
    assert headers["Depalma-Attempt"] == "2"
    assert [ask.attempt for ask in agent.asked] == [1, 2]
    problem = await bench.get(f"/v1/tasks/{job}.0/logs?attempt=3", 404)
    assert (problem["code"], problem["detail"]) == (
        "log_unavailable", f"task {job}.0 has no attempt 3; its last is 2",
    )  # fmt: skip


async def test_output_on_a_host_that_is_gone_names_the_host(bench: Bench) -> None:
    bench.host_up("h7")
    job = bench.submit()
    bench.assign(job, 0, host="h7")
    problem = await bench.get(f"/v1/tasks/{job}.0/logs", 404)
    assert problem["code"] == "log_unavailable"
    assert "is on host h7, which does not answer now" in problem["detail"]


async def ended_elsewhere(bench: Bench, tail: OutputTail | None, host: str = "h7", **spec: Any) -> str:
    """A task that ended on a host which was lost then."""
    bench.host_up(host)
    job = bench.submit(**spec)
    bench.assign(job, 0, host=host)
    bench.finish(job, 0, host=host, outcome="failed", tail=tail)
    bench.master.apply(HostLost(host, f"{host}-1", "cut off", time.time()))
    return f"{job}.0"


async def test_the_kept_end_is_given_when_the_host_is_lost(bench: Bench) -> None:
    """From the blob, item by item and piece by piece; a reader who had the rest already misses nothing."""
    tail = Tail(b"0123456789", 1010, b"", 0)
    digest = await bench.master.blobs.put_bytes(items.pack([b"other", pack(tail)]))
    task = await ended_elsewhere(bench, OutputTail(digest=digest, item=1))

    data, headers = await read(bench, f"{task}/logs?limit=4")
    assert (data, headers["Depalma-Next-Offset"], headers["Depalma-Ended"]) == (b"0123", "1004", "false")
    assert headers["Depalma-Kept"] == "1000"
    note = f"stdout of task {task}, attempt 1: only the last 10 of 1010 bytes are kept: host h7 is lost"
    assert headers["Depalma-Note"] == note
    data, headers = await read(bench, f"{task}/logs?offset=1004")
    assert (data, headers["Depalma-Next-Offset"], headers["Depalma-Ended"]) == (b"456789", "1010", "true")
    assert "Depalma-Note" not in headers
    data, headers = await read(bench, f"{task}/logs?stream=stderr")
    assert (data, headers["Depalma-Ended"], "Depalma-Note" in headers) == (b"", "true", False)


async def test_a_short_end_is_all_there_was(bench: Bench) -> None:
    task = await ended_elsewhere(bench, OutputTail(pack(Tail(b"all", 3, b"", 0))))
    data, headers = await read(bench, f"{task}/logs")
    assert (data, headers["Depalma-Ended"], "Depalma-Note" in headers) == (b"all", "true", False)


async def test_the_kept_end_of_an_earlier_attempt(bench: Bench) -> None:
    task = await ended_elsewhere(bench, OutputTail(pack(Tail(b"first", 5, b"", 0))), retries=1)
    bench.host_up("h8")
    bench.assign(int(task.partition(".")[0]), 0, host="h8")
    assert (await read(bench, f"{task}/logs?attempt=1"))[0] == b"first"
    problem = await bench.get(f"/v1/tasks/{task}/logs", 404)
    assert "attempt 2 is on host h8, which does not answer now" in problem["detail"]


async def test_why_nothing_is_kept_is_said(bench: Bench) -> None:
    task = await ended_elsewhere(bench, OutputTail(lost="no master was there"))
    problem = await bench.get(f"/v1/tasks/{task}/logs", 404)
    assert problem["detail"].endswith("host h7 is lost, and its end is not kept: no master was there")
    task = await ended_elsewhere(bench, OutputTail(digest="f" * 64), "h8")
    assert "cannot be had" in (await bench.get(f"/v1/tasks/{task}/logs", 404))["detail"]
    data, headers = await read(bench, f"{await ended_elsewhere(bench, None, 'h9')}/logs")
    assert (data, headers["Depalma-Ended"]) == (b"", "true")
    assert headers["Depalma-Note"].endswith("host h9 is lost; the masters have nothing that it wrote")


async def test_an_attempt_that_was_lost_kept_nothing(bench: Bench) -> None:
    bench.host_up("h7")
    job = bench.submit()
    bench.assign(job, 0, host="h7")
    bench.master.apply(HostLost("h7", "h7-1", "cut off", time.time()))
    problem = await bench.get(f"/v1/tasks/{job}.0/logs?attempt=1", 404)
    assert "host h7 is lost, and the attempt was lost before" in problem["detail"]


async def test_what_its_host_keeps_no_longer_comes_from_the_masters(bench: Bench, agent: Agent) -> None:
    job = bench.submit()
    bench.assign(job, 0)
    bench.finish(job, 0, tail=OutputTail(pack(Tail(b"end", 9, b"", 0))))
    agent.ended, agent.error = True, "it is no longer kept: older than 7 days"
    data, headers = await read(bench, f"{job}.0/logs")
    assert data == b"end"
    assert headers["Depalma-Note"].endswith(
        "only the last 3 of 9 bytes are kept: host h1 says: it is no longer kept: older than 7 days"
    )


@pytest.mark.parametrize("query", ["stream=both", "offset=-1", "limit=9999999", "attempt=x"])
async def test_bad_parameters_are_named(bench: Bench, query: str) -> None:
    job = bench.submit()
    problem = await bench.get(f"/v1/tasks/{job}.0/logs?{query}", 400)
    assert problem["detail"].startswith(query.partition("=")[0] + ": ")


# ---------------------------------------------------------------- processes


@pytest.mark.usefixtures("patience")
async def test_ps_asks_the_hosts(bench: Bench, agent: Agent) -> None:
    process = ProcessView(
        task="1.0", host="h1", pid=7, ppid=1, user="ann", state="R", cpu_percent=1.5, rss_bytes=4096, threads=1,
        elapsed_s=0.5, command="make",
    )  # fmt: skip
    agent.processes = (process,)
    answer = await bench.get("/v1/ps")
    assert answer["missing"] == []
    assert answer["processes"][0]["pid"] == 7
    problem = await bench.get("/v1/ps?job=5", 404)
    assert problem["code"] == "unknown_job"


async def test_ps_names_the_hosts_that_do_not_answer(bench: Bench, agent: Agent) -> None:
    """Also one that is not connected, as long as its tasks may live; not one on which nothing runs."""
    for host in ("h2", "h3"):
        bench.host_up(host)
    job = bench.submit()
    bench.assign(job, 0, host="h2")
    agent.silent = True
    assert await bench.get("/v1/ps") == {"processes": [], "missing": ["h1", "h2"]}
    assert (await bench.get(f"/v1/ps?job={job}"))["missing"] == ["h1", "h2"]
    assert (await bench.get(f"/v1/ps?job={bench.submit()}"))["missing"] == ["h1"]


@pytest.mark.usefixtures("patience")
async def test_ps_waits_for_a_host_that_is_on_its_way_to_a_new_leader(
    bench: Bench, connect: Callable[..., Any], wait_until: Callable[..., Any]
) -> None:
    bench.host_up()
    bench.assign(bench.submit(), 0)
    asked = asyncio.create_task(bench.get("/v1/ps"))
    await wait_until(lambda: bench.master.barriers)  # it was asked for before the host is there
    async with connect(bench):
        assert await asked == {"processes": [], "missing": []}


async def test_digest_of_a_large_result_is_what_was_stored(bench: Bench) -> None:
    digest = await bench.master.blobs.put_bytes(b"z" * 300_000)
    assert digest == hashlib.sha256(b"z" * 300_000).hexdigest()
