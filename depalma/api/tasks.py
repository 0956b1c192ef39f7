"""/v1/jobs/{id}/tasks and /v1/tasks/{id}: tasks and their results; their output is in logs.py."""

from __future__ import annotations

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
from depalma.model import TaskState, TaskView
from depalma.policies.preempt import ending_lines
from depalma.state.explain import explain
from depalma.state.jobs import Job
from depalma.state.views import task_view, task_views
from depalma.state.why import why as whole_answer


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
        has = f"{job.first} to {job.first + job.total - 1}" if job.total else "none"
        raise Problem("unknown_task", f"job {job.id} has no task {index}; it has {has}")
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
    lines = whole_answer(api.state, job, index)
    lines[1:1] = ending_lines(api.state, job, index, api.services.sessions.why_ending)
    return api.reply(request, Lines(lines))


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


async def no_logs(api: Api, request: web.Request, job: Job) -> web.StreamResponse:
    """Says that output went with its job."""
    raise output_gone(api, f"task {job.id}.{_index(job, request.match_info['task'])}", job)


_LIST_QUERY = READ_QUERY | {"state", "after", "limit"}

ROUTES = (
    Route("GET", "/v1/jobs/{job}/tasks", or_archived(of_job, of_archived), Mode.READ,
          "List tasks of a job, by index", query=_LIST_QUERY, returns=TaskList),
    Route("GET", "/v1/tasks/{task}", or_archived(show, show_archived), Mode.READ, "Show a task, or wait for its end",
          query=READ_QUERY | {"until"}, returns=TaskView),
    Route("GET", "/v1/tasks/{task}/explain", or_archived(why, why_archived), Mode.READ,
          "Explain the state of a task", query=READ_QUERY, returns=Lines),
    Route("GET", "/v1/tasks/{task}/result", or_archived(result, no_result), Mode.READ,
          "Read the result bytes of a task", query=READ_QUERY),
)  # fmt: skip
