"""Result streams: tells clients how tasks ended, as soon as it is committed, in few frames.

A stream is woken by the hub, looks which of its jobs have new completions, and writes one batch a job and wake-up:
under load many completions share a frame, idle streams cost a keep-alive a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from aiohttp import web

from depalma.api.services import Services
from depalma.client.wire import (
    BATCH_BYTES,
    BATCH_RESULTS,
    KEEP_ALIVE,
    KEEP_ALIVE_S,
    RETRIED,
    ResultBatch,
    TaskResult,
    frame,
)
from depalma.leader.hub import LEADER
from depalma.state.jobs import Job

#: A client that does not read for so long is cut off.
STUCK_S = 60.0


class Streams:
    """The open result streams of this master, by session."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._by_session: dict[str, ResultStream] = {}
        self._open: set[ResultStream] = set()

    def __len__(self) -> int:
        return len(self._open)

    def open(self, session: str, cursors: Mapping[int, int]) -> ResultStream:
        """Returns a new stream; an older one of the same session ends."""
        stream = ResultStream(self._services, cursors)
        self._open.add(stream)
        if session:
            older = self._by_session.get(session)
            if older is not None:
                older.close()
            self._by_session[session] = stream
        return stream

    def forget(self, session: str, stream: ResultStream) -> None:
        """Drops a stream that ended."""
        stream.close()
        self._open.discard(stream)
        if self._by_session.get(session) is stream:
            del self._by_session[session]

    def attach(self, session: str, job: int) -> bool:
        """Adds a new job to the session's stream; returns whether there is one here."""
        stream = self._by_session.get(session)
        if stream is None:
            return False
        stream.add(job, 0)
        return True

    def close(self) -> None:
        """Ends all streams."""
        for stream in self._open:
            stream.close()


class ResultStream:
    """Completions of some jobs, from a position in each on."""

    def __init__(self, services: Services, cursors: Mapping[int, int]) -> None:
        self._services = services
        self._hub = services.hub
        self._jobs: dict[int, int] = {}  #: job → cursor
        self._told: set[int] = set()  #: jobs that have had a batch
        self._dirty: dict[int, None] = {}  #: in the order of their change
        self._unsubscribe: dict[int, Callable[[], None]] = {}
        self._wake = asyncio.Event()
        self._closed = False
        self._unsubscribe_leader = self._hub.subscribe(LEADER, self._leader_changed)
        for job, cursor in cursors.items():
            self.add(job, cursor)

    def add(self, job: int, cursor: int) -> None:
        """Adds a job whose first `cursor` completions are known to the reader."""
        if job not in self._jobs:
            self._jobs[job] = cursor
            self._unsubscribe[job] = self._hub.subscribe(("job", job), partial(self._changed, job))
            self._changed(job)

    def close(self) -> None:
        """Ends the stream at its next step."""
        self._closed = True
        self._wake.set()
        self._unsubscribe_leader()
        for unsubscribe in self._unsubscribe.values():
            unsubscribe()
        self._unsubscribe.clear()

    async def run(self, response: web.StreamResponse, *, follow: bool) -> None:
        """Writes frames until closed, or, without `follow`, until all there is now has been given.

        Errors: ConnectionError when the reader is gone or stuck.
        """
        while not self._closed:
            if self._dirty:
                await _write(response, self._collect())
                # Others must get their turn even when this reader takes everything at once.
                await asyncio.sleep(0)
            elif not follow:
                return
            elif not await self._woken():
                await _write(response, KEEP_ALIVE)

    def _changed(self, job: int) -> None:
        self._dirty[job] = None
        self._wake.set()

    def _leader_changed(self) -> None:
        if not self._services.replica.is_leader:
            self.close()

    async def _woken(self) -> bool:
        self._wake.clear()
        try:
            async with asyncio.timeout(KEEP_ALIVE_S):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True

    def _collect(self) -> bytes:
        """Returns frames of the jobs that changed, up to about the size of one batch."""
        frames: list[bytes] = []
        room = BATCH_BYTES
        while self._dirty and room > 0:
            job = next(iter(self._dirty))
            del self._dirty[job]
            batch = self._batch(job, room)
            if batch is not None:
                frames.append(frame(batch))
                room -= len(frames[-1])
        return b"".join(frames)

    def _batch(self, job_id: int, room: int) -> ResultBatch | None:
        """Returns the next batch of a job, or None if there is nothing to tell. A job with more stays dirty."""
        cursor = self._jobs.get(job_id)
        if cursor is None:
            return None
        job = self._services.machine.state.jobs.get(job_id)
        if job is None:
            self._drop(job_id)
            return ResultBatch(job_id, cursor, (), "unknown", True)
        results = _results(job, cursor, room)
        cursor += len(results)
        more = cursor < len(job.finished_order)
        final = job.is_final and not more
        if not results and not final and job_id in self._told:
            return None
        self._told.add(job_id)
        self._jobs[job_id] = cursor
        if more:
            self._dirty[job_id] = None
        if final:
            self._drop(job_id)
        return ResultBatch(job_id, cursor, tuple(results), job.state(), final)

    def _drop(self, job: int) -> None:
        del self._jobs[job]
        self._told.discard(job)
        self._dirty.pop(job, None)
        unsubscribe = self._unsubscribe.pop(job, None)
        if unsubscribe is not None:
            unsubscribe()


def _results(job: Job, cursor: int, room: int) -> list[TaskResult]:
    order = job.finished_order
    results: list[TaskResult] = []
    for place in range(cursor, min(len(order), cursor + BATCH_RESULTS)):
        index = order[place]
        if not order.counts_at(place):
            results.append(TaskResult(index, RETRIED))
            continue
        done = job.outcome(index)
        assert done is not None, f"task {job.id}.{index} is in the order of completion without an outcome"
        payload = done.result
        results.append(
            TaskResult(
                index,
                done.state,
                done.exit_code,
                done.signal,
                done.error,
                payload,
                done.host,
                done.attempt,
                done.error_code,
            )
        )
        room -= 48 + len(done.error) + (len(payload.inline) + len(payload.digest) if payload is not None else 0)
        if room <= 0:
            break
    return results


async def _write(response: web.StreamResponse, data: bytes) -> None:
    if data:
        try:
            async with asyncio.timeout(STUCK_S):
                await response.write(data)
        except TimeoutError:
            raise ConnectionResetError(f"the reader took nothing for {STUCK_S:g} s") from None
