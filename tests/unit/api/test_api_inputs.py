"""Durations, numbers and frames: strict, and told by name."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from depalma.api.inputs import duration_s, integer, read_body
from depalma.api.problems import Problem
from depalma.client.wire import KEEP_ALIVE, BadFrame, FrameReader, ResultBatch, TaskResult, frame
from depalma.model import Payload


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("500ms", 0.5), ("5", 5), ("0.25", 0.25), ("1.5s", 1.5), ("2m", 120), ("0", 0), ("0.1h", 360)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text, "wait") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "s", "-1s", "1 s", "1S", "1d", "nan", "inf", "1e3", "601", "11m", "1s2", ".5", "5.", "0x10", "1_0"]
)
def test_what_is_no_duration_is_named(text: str) -> None:
    with pytest.raises(Problem, match=r"^wait: .* given; allowed: a duration like 30s, 500ms, 2m or 5"):
        duration_s(text, "wait")


@pytest.mark.parametrize("text", ["", "x", "1.0", "-1", "1e3", " 1", "1_0", "99999999999999999"])
def test_what_is_no_whole_number_is_named(text: str) -> None:
    with pytest.raises(Problem, match=r"^limit: .* given; allowed: a whole number, 0 or more"):
        integer(text, "limit")


def batches() -> list[ResultBatch]:
    results = (TaskResult(1, "succeeded", result=Payload(inline=b"x" * 300)), TaskResult(2, "failed", 3, None, "é"))
    return [ResultBatch(7, 2, results, "running", False), ResultBatch(8, 0, (), "unknown", True)]


@given(st.lists(st.integers(min_value=1, max_value=200)))
def test_frames_are_found_however_the_bytes_are_cut(cuts: list[int]) -> None:
    one, two = batches()
    data = KEEP_ALIVE + frame(one) + KEEP_ALIVE + KEEP_ALIVE + frame(two)
    reader = FrameReader()
    found = []
    for cut in [*cuts, len(data)]:
        found += reader.feed(data[:cut])
        data = data[cut:]
    assert found == [one, two]


@pytest.mark.parametrize(
    "data", [struct.pack("<I", 2**31), struct.pack("<I", 1) + b"\xc1", struct.pack("<I", 2) + b"\x91\x01"]
)
def test_a_damaged_stream_is_an_error(data: bytes) -> None:
    with pytest.raises(BadFrame):
        FrameReader().feed(data)


async def test_a_body_of_unknown_length_ends_at_the_limit_of_its_path() -> None:
    """Strangers may send some: to them the server's limit for all bodies is no limit."""
    taken = asyncio.get_running_loop().create_future()

    async def handler(request: web.Request) -> web.Response:
        try:
            await read_body(request, 1000)
        except Problem as problem:
            taken.set_result(problem.code)
            return problem.response("")
        return web.Response()

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield bytes(1000)

    app = web.Application(client_max_size=2**30)
    app.router.add_post("/", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    async with aiohttp.ClientSession() as http, asyncio.timeout(10):
        sending = asyncio.create_task(http.post(url, data=pieces()))
        assert await taken == "too_large"
        sending.cancel()
    await runner.cleanup()
