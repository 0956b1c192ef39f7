"""/v1/jobs/{id}/tasks and /v1/tasks/{id}: tasks, their output, their results."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import cast

from aiohttp import web

from depalma.api.archived import archive_line, or_archived, output_gone, result_gone
from depalma.api.blobs_routes import send_file
from depalma.api.context import Api
from depalma.api.inputs import integer, query_choice, query_integer, query_wait_s
from depalma.api.jobs import find_job
from depalma.api.listing import MAX_PAGE, STATES
from depalma.api.problems import Problem, shown
from depalma.api.route import READ_QUERY, Mode, Route
from depalma.api.shapes import Lines, TaskList
from depalma.model import FINAL_STATES, TaskState, TaskView
from depalma.protocol import Output
from depalma.state.explain import explain
from depalma.state.jobs import Job
from depalma.state.views import task_view, task_views
from depalma.state.why import why as whole_answer

#: Most output bytes in one answer; larger pieces would hold up the agent's other frames.
MAX_LOG_BYTES = 1024 * 1024
#: How long an agent may take to answer.
ASK_S = 5.0
#: A blocked reader of output looks again after this long; it grows to the second value while nothing comes.
_POLL_S = (0.05, 0.25)


def find_task(api: Api, text: str) -> tuple[Job, int]:
    """Returns job and index of `42.7`. Errors: Problem unknown_job, unknown_task, bad_field; Gone."""
    job_text, dot, _ = text.partition(".")
    if not dot:
        raise Problem("bad_field", f"task: {shown(text)} given; allowed: JOB.INDEX, like 42.7")
    job = find_job(api, job_text)
    return job, _index(job, text)


def _index(job: Job, text: str) -> int:
    index = integer(text.partition(".")[2], "task")
    if not job.has(index):
        last = job.first + job.total - 1
        raise Problem("unknown_task", f"job {job.id} has no task {index}; it has {job.first} to {last}")
    return index


async def of_job(api: Api, request: web.Request) -> web.StreamResponse:
    """Lists tasks of a job, by index."""
    return await of_archived(api, request, find_job(api, request.match_info["job"]))


async def of_archived(api: Api, request: web.Request, job: Job) -> web.StreamResponse:
    """Lists tasks of a job that was found."""
    state = cast(TaskState | None, query_choice(request, "state", STATES) or None)
    after = query_integer(request, "after", -1, least=-1)
    limit = query_integer(request, "limit", 1000, least=1, most=MAX_PAGE)
    found = list(task_views(api.state, job, state, after, limit + 1))
    return api.reply(request, TaskList(found[:limit], len(found) > limit))


async def show(api: Api, request: web.Request) -> web.StreamResponse:
    """Shows a task, or waits until it has ended."""
    job, index = find_task(api, request.match_info["task"])
    if query_choice(request, "until", ("final",)):

        def ready() -> bool:
            job_now = api.state.jobs.get(job.id)
            return job_now is None or job_now.outcome(index) is not None

        await api.wait_until(ready, (("job", job.id),), query_wait_s(request))
        job, index = find_task(api, f"{job.id}.{index}")
    return api.reply(request, task_view(api.state, job, index))


async def show_archived(api: Api, request: web.Request, job: Job) -> web.StreamResponse:
    """Shows a task of a job that the state has forgotten."""
    return api.reply(request, task_view(api.state, job, _index(job, request.match_info["task"])))


async def why(api: Api, request: web.Request) -> web.StreamResponse:
    """Explains why a task is as it is."""
    job, index = find_task(api, request.match_info["task"])
    return api.reply(request, Lines(whole_answer(api.state, job, index)))


async def why_archived(api: Api, request: web.Request, job: Job) -> web.StreamResponse:
    """Explains how a task ended of a job that the state has forgotten."""
    lines = explain(api.state, job, _index(job, request.match_info["task"]))
    return api.reply(request, Lines([*lines, archive_line(api, job)]))


async def result(api: Api, request: web.Request) -> web.StreamResponse:
    """Gives the bytes of a task's result."""
    job, index = find_task(api, request.match_info["task"])
    done = job.outcome(index)
    if done is None:
        raise Problem("not_finished", f"task {job.id}.{index} is {job.state_of(index)}; it has no result yet")
    payload = done.result
    if payload is None:
        raise Problem("no_result", f"task {job.id}.{index} {done.state} without a result value")
    headers = {"Depalma-State": done.state, "Depalma-Index": str(api.state.version)}
    if payload.digest:
        return await send_file(api, payload.digest, headers)
    headers["Content-Type"] = "application/octet-stream"
    return web.Response(body=payload.inline, headers=headers)


async def no_result(api: Api, request: web.Request, job: Job) -> web.StreamResponse:
    """Says that a result went with its job."""
    raise result_gone(api, f"task {job.id}.{_index(job, request.match_info['task'])}", job)


# ---------------------------------------------------------------- output


async def logs(api: Api, request: web.Request) -> web.StreamResponse:
    """Gives output bytes of an attempt from an offset on, as its host has them."""
    job, index = find_task(api, request.match_info["task"])
    stream = query_choice(request, "stream", ("stdout", "stderr"), "stdout")
    number = query_integer(request, "attempt", 0)
    offset = query_integer(request, "offset", 0)
    limit = query_integer(request, "limit", MAX_LOG_BYTES, least=1, most=MAX_LOG_BYTES)
    reader = _Reader(api, job.id, index, number, stream)
    data, ended = await reader.read(offset, limit, query_wait_s(request))
    headers = {
        "Content-Type": "application/octet-stream",
        "Depalma-Attempt": str(reader.attempt),
        "Depalma-Next-Offset": str(offset + len(data)),
        "Depalma-Ended": "true" if ended else "false",
        "Depalma-Index": str(api.state.version),
    }
    return web.Response(body=data, headers=headers)


async def no_logs(api: Api, request: web.Request, job: Job) -> web.StreamResponse:
    """Says that output went with its job."""
    raise output_gone(api, f"task {job.id}.{_index(job, request.match_info['task'])}", job)


class _Reader:
    """One request for output: finds the attempt and asks its host until there is something to give."""

    def __init__(self, api: Api, job: int, index: int, attempt: int, stream: str) -> None:
        self._api = api
        self._job = job
        self._index = index
        self._stream = stream
        self._asked = attempt  #: 0: the last one
        self.attempt = attempt

    async def read(self, offset: int, limit: int, wait_s: float) -> tuple[bytes, bool]:
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
                    return b"", True  # it never ran, and never will
            else:
                output = await self._ask(host, offset, limit)
                ended = output.ended and offset + len(output.data) >= output.size_bytes
                if output.data or ended:
                    return output.data, ended
            left_s = deadline - loop.time()
            if left_s <= 0:
                return b"", False
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

    async def _ask(self, host: str, offset: int, limit: int) -> Output:
        ref = (self._job, self._index, self.attempt)
        output = await self._api.services.sessions.questions.output(host, ref, self._stream, offset, limit, ASK_S)
        where = f"{self._stream} of task {self._job}.{self._index}, attempt {self.attempt}"
        if output is None:
            raise Problem("log_unavailable", f"{where} is on host {host}, which does not answer now")
        if output.error:
            raise Problem("log_unavailable", f"{where}: host {host} says: {output.error}")
        return output


def _host_of(view: TaskView, attempt: int) -> str:
    if attempt == view.attempt and view.host:
        return view.host
    found = next((one.host for one in view.attempts if one.number == attempt), "")
    if attempt and not found and attempt < view.attempt:
        raise Problem("log_unavailable", f"attempt {attempt} of task {view.id} is no longer remembered")
    return found


_LIST_QUERY = READ_QUERY | {"state", "after", "limit"}
_LOG_QUERY = READ_QUERY | {"stream", "attempt", "offset", "limit"}

ROUTES = (
    Route("GET", "/v1/jobs/{job}/tasks", or_archived(of_job, of_archived), Mode.READ,
          "List tasks of a job, by index", query=_LIST_QUERY, returns=TaskList),
    Route("GET", "/v1/tasks/{task}", or_archived(show, show_archived), Mode.READ, "Show a task, or wait for its end",
          query=READ_QUERY | {"until"}, returns=TaskView),
    Route("GET", "/v1/tasks/{task}/explain", or_archived(why, why_archived), Mode.READ,
          "Explain the state of a task", query=READ_QUERY, returns=Lines),
    Route("GET", "/v1/tasks/{task}/logs", or_archived(logs, no_logs), Mode.READ, "Read output of a task",
          query=_LOG_QUERY),
    Route("GET", "/v1/tasks/{task}/result", or_archived(result, no_result), Mode.READ,
          "Read the result bytes of a task", query=READ_QUERY),
)  # fmt: skip
