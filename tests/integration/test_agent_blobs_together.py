"""One blob that several want at once."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import aiohttp
from aiohttp import web

from depalma.agent.blobs import Blobs
from depalma.testing.fake_leader import wait_until

_PIECE_BYTES = 200_000


async def test_a_blob_that_several_tasks_want_at_once_comes_once_and_whole(tmp_path: Path) -> None:
    """It happened: each wrote into the same file, and what each had heard was right, so nobody noticed."""
    data = os.urandom(4 * _PIECE_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    asked: list[asyncio.Event] = []

    async def give(request: web.Request) -> web.StreamResponse:
        """Each answer stops half way, until it is let go."""
        asked.append(go_on := asyncio.Event())
        begin = request.http_range.start or 0
        answer = web.StreamResponse(status=206 if begin else 200)
        answer.content_length = len(data) - begin
        await answer.prepare(request)
        await answer.write(data[begin : begin + _PIECE_BYTES])
        await go_on.wait()
        await answer.write(data[begin + _PIECE_BYTES :])
        return answer

    app = web.Application()
    app.router.add_get("/v1/blobs/{digest}", give)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with aiohttp.ClientSession() as http:
            store = Blobs(tmp_path, http, lambda: [f"http://127.0.0.1:{port}"], 10**9)
            part = tmp_path / "blobs/cache" / f"{digest}.part"
            first = asyncio.create_task(store.have(digest, 10.0))
            await wait_until(lambda: part.exists() and part.stat().st_size > 0, "the first piece")
            second = asyncio.create_task(store.have(digest, 10.0))
            third = asyncio.create_task(store.fetch(digest, tmp_path / "blobs/cache" / digest, 10.0))
            for task in (second, third):
                await asyncio.wait([task], timeout=0.2)
            for go_on in reversed(asked):  # the last one first
                go_on.set()
                await asyncio.wait([second, third], timeout=0.2)

            path = await first
            assert path.read_bytes() == data
            assert await second == path
            await third
            assert path.read_bytes() == data
            assert len(asked) == 1
    finally:
        for go_on in asked:
            go_on.set()
        await runner.cleanup()
