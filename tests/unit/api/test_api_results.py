"""The stream of results: each result once, in order of completion, to the end, through every kind of interruption."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import pytest

from depalma.client.wire import FrameReader, ResultBatch
from depalma.model import Payload

if TYPE_CHECKING:
    from conftest import Bench  # type: ignore[import-not-found]


class Reader:
    """The client's end of a stream."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer
        self.batches: list[ResultBatch] = []
        self._frames = FrameReader()

    async def next(self) -> ResultBatch | None:
        """Returns the next batch, None at the end of the stream."""
        async with asyncio.timeout(30):
            while not self.batches:
                data = await self.answer.content.readany()
                if not data:
                    return None
                self.batches += self._frames.feed(data)
            return self.batches.pop(0)

    async def rest(self) -> list[ResultBatch]:
        found = []
        while (batch := await self.next()) is not None:
            found.append(batch)
        return found


@asynccontextmanager
async def stream(bench: Bench, cursors: dict[int, int], **body: Any) -> AsyncIterator[Reader]:
    wanted = {"cursors": {str(job): cursor for job, cursor in cursors.items()}, **body}
    async with bench.http.post(f"{bench.url}/v1/results", json=wanted) as answer:
        assert answer.status == 200, await answer.text()
        yield Reader(answer)


async def test_results_come_as_they_are_committed_and_the_last_batch_is_final(bench: Bench) -> None:
    bench.host_up()
    job = bench.submit(kind="function", argv=(), function="m:f", count=3)
    bench.assign(job, 0, 1, 2)
    async with stream(bench, {job: 0}) as reader:
        first = await reader.next()
        assert first == ResultBatch(job, 0, (), "running", False)
        bench.finish(job, 2, result=Payload(inline=b"two", size_bytes=3))
        batch = await reader.next()
        assert batch is not None
        assert (batch.cursor, batch.final) == (1, False)
        (only,) = batch.results
        assert (only.task, only.state, only.host, only.attempt) == (2, "succeeded", "h1", 1)
        assert only.result == Payload(inline=b"two", size_bytes=3)
        bench.finish(job, 0, outcome="failed", exit_code=3, error="boom")
        bench.finish(job, 1)
        batches = []
        while not batches or not batches[-1].final:
            batches.append(await reader.next())
        results = [result for batch in batches for result in batch.results]
        assert [(result.task, result.state, result.exit_code, result.error) for result in results] == [
            (0, "failed", 3, "boom"),
            (1, "succeeded", None, ""),
        ]
        assert (batches[-1].cursor, batches[-1].state) == (3, "failed")


async def test_a_reader_goes_on_from_its_cursor(bench: Bench) -> None:
    bench.host_up()
    job = bench.submit(count=4)
    bench.assign(job, 0, 1, 2, 3)
    bench.finish(job, 3, 1, 0, 2)
    async with stream(bench, {job: 2}, follow=False) as reader:
        (batch,) = await reader.rest()
    assert ([result.task for result in batch.results], batch.cursor, batch.final) == ([0, 2], 4, True)


async def test_without_follow_the_stream_ends_with_what_is_there(bench: Bench) -> None:
    bench.host_up()
    job = bench.submit(count=2)
    bench.assign(job, 0)
    bench.finish(job, 0)
    async with stream(bench, {job: 0, 99: 0}, follow=False) as reader:
        batches = await reader.rest()
    assert [(b.job, b.cursor, b.state, b.final) for b in batches] == [
        (job, 1, "queued", False),
        (99, 0, "unknown", True),
    ]


async def test_a_job_that_ended_before_gets_its_final_batch(bench: Bench) -> None:
    job = bench.submit(count=3)
    await bench.post("/v1/jobs/cancel", {"jobs": [job]})
    async with stream(bench, {job: 3}) as reader:
        assert await reader.next() == ResultBatch(job, 3, (), "cancelled", True)


async def test_many_results_come_in_few_batches_each_within_its_limits(bench: Bench) -> None:
    job = bench.submit(count=10_000)
    await bench.post("/v1/jobs/cancel", {"jobs": [job]})
    async with stream(bench, {job: 0}, follow=False) as reader:
        batches = await reader.rest()
    assert [len(batch.results) for batch in batches] == [2000] * 5
    assert [batch.final for batch in batches] == [False] * 4 + [True]
    assert [result.task for batch in batches for result in batch.results] == list(range(10_000))


async def test_large_results_are_split_by_size(bench: Bench) -> None:
    bench.host_up()
    job = bench.submit(kind="function", argv=(), function="m:f", count=600)
    bench.assign(job, *range(600))
    bench.finish(job, *range(600), result=Payload(inline=b"x" * 4000, size_bytes=4000))
    async with stream(bench, {job: 0}, follow=False) as reader:
        batches = await reader.rest()
    assert len(batches) > 1
    sizes = [len(msgspec.msgpack.encode(batch)) for batch in batches]
    assert max(sizes) < 1.1 * 2**20, sizes
    assert [result.task for batch in batches for result in batch.results] == list(range(600))


async def test_a_submission_joins_the_stream_of_its_session(bench: Bench) -> None:
    async with stream(bench, {}, session="s1") as reader:
        body = {"kind": "command", "argv": ["true"]}
        created = await bench.post("/v1/jobs", body, 201, headers={"Depalma-Session": "s1"})
        other = await bench.post("/v1/jobs", body, 201, headers={"Depalma-Session": "s2"})
        batch = await reader.next()
        assert batch is not None
        assert (batch.job, batch.state) == (created["id"], "queued")
        await bench.post("/v1/jobs/cancel", {"jobs": [created["id"], other["id"]]})
        batch = await reader.next()
        assert batch is not None
        assert (batch.job, batch.final, len(batch.results)) == (created["id"], True, 1)


async def test_a_second_stream_of_a_session_ends_the_first(bench: Bench) -> None:
    async with stream(bench, {}, session="s1") as first, stream(bench, {}, session="s1") as second:
        assert await first.rest() == []
        job = bench.submit()
        await bench.post("/v1/jobs", {"kind": "command", "argv": ["true"]}, 201, headers={"Depalma-Session": "s1"})
        batch = await second.next()
        assert batch is not None
        assert batch.job == job + 1


async def test_a_quiet_stream_is_kept_alive(bench: Bench) -> None:
    async with stream(bench, {}) as reader, asyncio.timeout(30):
        assert await reader.answer.content.readexactly(4) == b"\0\0\0\0"


async def test_the_stream_ends_when_the_master_stops_leading(bench: Bench) -> None:
    job = bench.submit()
    async with stream(bench, {job: 0}) as reader:
        assert await reader.next() is not None
        bench.master.stop_leading()
        assert await reader.rest() == []


async def test_another_master_than_the_leader_says_who_leads(bench: Bench) -> None:
    bench.master.replica.is_leader = False
    bench.master.replica.leader_id = "m2"
    problem = await bench.post("/v1/results", {"cursors": {}}, 421)
    assert problem["code"] == "not_leader"


async def test_a_reader_that_goes_away_leaves_nothing_behind(bench: Bench, wait_until: Any) -> None:
    job = bench.submit()
    async with stream(bench, {job: 0}, session="s1") as reader:
        await reader.next()
        assert ("job", job) in bench.master.hub._callbacks
        reader.answer.close()
    await wait_until(lambda: not bench.master.hub._callbacks)


async def test_shutting_down_ends_the_streams(bench: Bench) -> None:
    async with stream(bench, {}) as reader:
        await bench.app.shutdown()
        assert await reader.rest() == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"cursors": {"x": 0}}, "cursors: 'x' given"),
        ({"cursors": {"1": -1}}, "cursors.1: -1 given"),
        ({"cursors": {"1": "0"}}, "expected `int`, got `str`"),
        ({"cursor": {}}, "unknown field `cursor`; allowed: session, cursors, follow"),
        ({"session": "s" * 200}, "session: "),
    ],
)
async def test_a_bad_request_is_named(bench: Bench, body: Any, said: str) -> None:
    problem = await bench.post("/v1/results", body, 400)
    assert said in problem["detail"], problem["detail"]
