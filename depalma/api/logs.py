"""/v1/tasks/{id}/logs: what attempts wrote, from their hosts, or what the masters keep of it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import NamedTuple

from aiohttp import web

from depalma.api.archived import or_archived
from depalma.api.context import Api
from depalma.api.inputs import query_choice, query_integer, query_wait_s
from depalma.api.problems import Problem
from depalma.api.route import READ_QUERY, Mode, Route
from depalma.api.tasks import find_task, no_logs
from depalma.blobs import UnknownBlob
from depalma.model import FINAL_STATES, TaskView
from depalma.state.views import task_view
from depalma.tails import OutputTail, Tail, unpack

#: Most output bytes in one answer; larger pieces would hold up the agent's other frames.
MAX_LOG_BYTES = 1024 * 1024
#: How long an agent may take to answer.
ASK_S = 5.0
#: A blocked reader of output looks again after this long; it grows to the second value while nothing comes.
_POLL_S = (0.05, 0.25)


class Piece(NamedTuple):
    """Output bytes. `ended`: these are the last."""

    data: bytes
    ended: bool
    offset: int  #: of the first of them; later than was asked for if what comes before is not kept
    kept: bool = False  #: the masters have it, the host is out of reach
    note: str = ""  #: what is missing, and why


async def logs(api: Api, request: web.Request) -> web.StreamResponse:
    """Gives output bytes of an attempt from an offset on, as its host has them, or as they are kept."""
    job, index = find_task(api, request.match_info["task"])
    stream = query_choice(request, "stream", ("stdout", "stderr"), "stdout")
    number = query_integer(request, "attempt", 0)
    offset = query_integer(request, "offset", 0)
    limit = query_integer(request, "limit", MAX_LOG_BYTES, least=1, most=MAX_LOG_BYTES)
    reader = _Reader(api, job.id, index, number, stream)
    piece = await reader.read(offset, limit, query_wait_s(request))
    headers = {
        "Content-Type": "application/octet-stream",
        "Depalma-Attempt": str(reader.attempt),
        "Depalma-Next-Offset": str(piece.offset + len(piece.data)),
        "Depalma-Ended": "true" if piece.ended else "false",
        "Depalma-Index": str(api.state.version),
    }
    if piece.kept:
        headers["Depalma-Kept"] = str(piece.offset)
    if piece.note:
        headers["Depalma-Note"] = piece.note.encode("ascii", "replace").decode()
    return web.Response(body=piece.data, headers=headers)


class _Reader:
    """One request for output: finds the attempt and asks its host until there is something to give."""

    def __init__(self, api: Api, job: int, index: int, attempt: int, stream: str) -> None:
        self._api = api
        self._job = job
        self._index = index
        self._stream = stream
        self._asked = attempt  #: 0: the last one
        self.attempt = attempt

    async def read(self, offset: int, limit: int, wait_s: float) -> Piece:
        """Returns bytes, and whether these are the last. Errors: Problem log_unavailable, unknown_task, no_leader."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        pause_s = _POLL_S[0]
        while True:
            view = self._view()
            self.attempt = self._asked or view.attempt
            host = _host_of(view, self.attempt)
            if not host:
                if view.state in FINAL_STATES:
                    return Piece(b"", True, offset)  # it never ran, and never will
            else:
                piece = await self._piece(host, offset, limit)
                if piece.data or piece.ended:
                    return piece
            left_s = deadline - loop.time()
            if left_s <= 0:
                return Piece(b"", False, offset)
            mark = self._mark()
            # What runs writes without any change of the state, so its host is asked again after a pause.
            await self._api.wait_until(
                partial(self._moved, mark), (("job", self._job),), min(left_s, pause_s) if host else left_s
            )
            pause_s = min(2 * pause_s, _POLL_S[1])

    def _mark(self) -> tuple[str, int] | None:
        job = self._api.state.jobs.get(self._job)
        return None if job is None else (job.state_of(self._index), job.last_attempt(self._index))

    def _moved(self, mark: tuple[str, int] | None) -> bool:
        return self._mark() != mark

    def _view(self) -> TaskView:
        job, index = find_task(self._api, f"{self._job}.{self._index}")
        view = task_view(self._api.state, job, index)
        if self._asked > view.attempt:
            raise Problem("log_unavailable", f"task {view.id} has no attempt {self._asked}; its last is {view.attempt}")
        return view

    @property
    def _where(self) -> str:
        return f"{self._stream} of task {self._job}.{self._index}, attempt {self.attempt}"

    async def _piece(self, host: str, offset: int, limit: int) -> Piece:
        """Asks the host; of an attempt that is over, the masters have something to give without it."""
        ref = (self._job, self._index, self.attempt)
        known = self._api.state.hosts.get(host)
        here = known is not None and known.state not in ("lost", "down")
        patient = here and self._is_over()  # it may be on its way to this leader, and has all of it
        ask = self._api.services.sessions.questions.output
        output = await ask(host, ref, self._stream, offset, limit, ASK_S, patient=patient)
        if output is not None and not output.error:
            ended = output.ended and offset + len(output.data) >= output.size_bytes
            return Piece(output.data, ended, offset)
        if output is not None:
            problem, there = f"host {host} says: {output.error}", f"host {host} says: {output.error}"
        else:
            problem = "does not answer now" if here else "is lost" if known is not None else "is not in the cluster"
            problem, there = f"host {host} {problem}", f"is on host {host}, which {problem}"
        if not self._is_over():
            raise Problem("log_unavailable", f"{self._where} {there}")
        return await self._kept(problem, offset, limit)

    def _is_over(self) -> bool:
        job = self._api.state.jobs.get(self._job)
        live = job.running.get(self._index) if job is not None else None
        return live is None or live.number != self.attempt

    async def _kept(self, problem: str, offset: int, limit: int) -> Piece:
        """Returns what the masters keep. Errors: Problem log_unavailable."""
        job, index = find_task(self._api, f"{self._job}.{self._index}")
        state, found = job.end_of(index, self.attempt)
        if found is None and state == "lost":
            text = (
                "and the attempt was lost before it could hand over what it wrote; it is there if the host comes back"
            )
            raise Problem("log_unavailable", f"{self._where}: {problem}, {text}")
        if found is None:
            return Piece(b"", True, offset, True, f"{self._where}: {problem}; the masters have nothing that it wrote")
        if found.lost:
            raise Problem("log_unavailable", f"{self._where}: {problem}, and its end is not kept: {found.lost}")
        data, begin = (await self._tail(found)).of(self._stream)
        start = max(begin, min(offset, begin + len(data)))
        some = data[start - begin : start - begin + limit]
        note = ""
        if start > offset:
            whole = begin + len(data)
            note = f"{self._where}: only the last {len(data)} of {whole} bytes are kept: {problem}"
        return Piece(some, start + len(some) == begin + len(data), start, True, note)

    async def _tail(self, found: OutputTail) -> Tail:
        try:
            data = found.inline or await self._api.services.blobs.item(found.digest, found.item)
            return unpack(data)
        except (UnknownBlob, ValueError, IndexError, OSError) as error:
            raise Problem("log_unavailable", f"{self._where}: its end was kept, and cannot be had: {error}") from error


def _host_of(view: TaskView, attempt: int) -> str:
    if attempt == view.attempt and view.host:
        return view.host
    found = next((one.host for one in view.attempts if one.number == attempt), "")
    if attempt and not found and attempt < view.attempt:
        raise Problem("log_unavailable", f"attempt {attempt} of task {view.id} is no longer remembered")
    return found


_LOG_QUERY = READ_QUERY | {"stream", "attempt", "offset", "limit"}

ROUTES = (
    Route("GET", "/v1/tasks/{task}/logs", or_archived(logs, no_logs), Mode.READ, "Read output of a task",
          query=_LOG_QUERY),
)  # fmt: skip
