"""/v1/snapshot: the whole state at one moment, as a file."""

from __future__ import annotations

import asyncio
import os

from aiohttp import web

from depalma.api.context import Api
from depalma.api.problems import Problem
from depalma.api.route import Mode, Route
from depalma.consensus import SnapshotFailed
from depalma.consensus.snapshot_format import SnapshotReader

CHUNK_BYTES = 1 << 20
#: A reader that takes nothing for so long is cut off.
STUCK_S = 60.0
#: Large values that it names stay for so long, whatever is forgotten meanwhile.
BLOBS_HELD_S = 3600.0


async def snapshot(api: Api, request: web.Request) -> web.StreamResponse:
    """Gives everything that was acknowledged before the request, from the leader's disk."""
    await api.services.barrier()
    api.services.blobs.hold(BLOBS_HELD_S)  # what the snapshot names is fetched after it
    try:
        path = await api.services.replica.snapshot()
    except SnapshotFailed as error:
        raise Problem("snapshot_failed", str(error), status=500) from error
    # Opened at once: when the next one takes its place, this one is still ours.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return await _send(request, descriptor, str(path))
    finally:
        # If the file has been replaced meanwhile, this is what frees its space.
        await asyncio.get_running_loop().run_in_executor(None, os.close, descriptor)


async def _send(request: web.Request, descriptor: int, path: str) -> web.StreamResponse:
    header = SnapshotReader(lambda offset, size: os.pread(descriptor, size, offset), path).header
    response = web.StreamResponse(
        headers={
            "Content-Type": "application/octet-stream",
            "Depalma-Index": str(header.sequence),
            "Depalma-Snapshot-Entry": str(header.index),
        }
    )
    size = response.content_length = os.fstat(descriptor).st_size
    await response.prepare(request)
    loop = asyncio.get_running_loop()
    for offset in range(0, size, CHUNK_BYTES):
        data = await loop.run_in_executor(None, os.pread, descriptor, CHUNK_BYTES, offset)
        try:
            async with asyncio.timeout(STUCK_S):
                await response.write(data)
        except TimeoutError:
            raise ConnectionResetError(f"the reader took nothing for {STUCK_S:g} s") from None
    await response.write_eof()
    return response


ROUTES = (
    Route("GET", "/v1/snapshot", snapshot, Mode.LEADER, "Save the whole state: a file that `snapshot restore` takes"),
)
