"""/v1/jobs: submitting, listing, waiting, cancelling."""

from __future__ import annotations

from aiohttp import web

from depalma.api.archived import Gone, archive_line, archived_view, or_archived
from depalma.api.context import Api, now
from depalma.api.inputs import Body, idempotency_key, integer, query_choice, query_wait_s
from depalma.api.listing import MAX_PAGE
from depalma.api.problems import Problem, bad_field, shown
from depalma.api.route import READ_QUERY, Mode, Route
from depalma.api.shapes import (
    Empty,
    JobCreated,
    JobsCancelled,
    JobsToCancel,
    Lines,
    TasksAdded,
    TasksToAdd,
)
from depalma.api.specs import settled, settled_items
from depalma.leader.trial import trial
from depalma.model import JobSpec, JobView
from depalma.orderviews import TrialView
from depalma.policies.busy import busy_lines
from depalma.policies.forecast import start_lines
from depalma.policies.preempt import ending_lines
from depalma.state.checks import bad_spec
from depalma.state.commands import AddTasks, CancelJobs, CloseJob, SubmitJob
from depalma.state.dependencies import bad_jobs_after
from depalma.state.explain import explain
from depalma.state.jobs import Job
from depalma.state.views import job_view
from depalma.state.why import why as whole_answer

_SPEC = Body(JobSpec)
_ADD = Body(TasksToAdd)
_CANCEL = Body(JobsToCancel)


def find_job(api: Api, text: str) -> Job:
    """Returns the job of an id, or the newest for `last`. Errors: Problem unknown_job, bad_field; Gone."""
    jobs = api.state.jobs
    if text == "last":
        if not jobs:
            raise Problem("unknown_job", "last: there is no job yet")
        return jobs[next(reversed(jobs))]
    job_id = integer(text, "job", least=1)
    job = jobs.get(job_id)
    if job is None:
        raise Gone(job_id) if job_id < api.state.next_job else Problem("unknown_job", f"there is no job {job_id}")
    return job


async def submit(api: Api, request: web.Request) -> web.StreamResponse:
    """Creates a job."""
    spec: JobSpec = _SPEC.decode(request, await api.body(request))
    spec = await settled(spec, api.services.blobs)
    applied = await api.execute(SubmitJob(idempotency_key(request), spec, now()))
    job_id = applied.value
    assert isinstance(job_id, int)
    session = request.headers.get("Depalma-Session")
    if session:
        api.streams.attach(session, job_id)
    headers = {"Location": f"/v1/jobs/{job_id}"}
    return api.reply(request, JobCreated(job_id), status=201, version=applied.version, headers=headers)


async def would(api: Api, request: web.Request) -> web.StreamResponse:
    """Says what would become of a job; nothing is submitted."""
    spec: JobSpec = _SPEC.decode(request, await api.body(request))
    if wrong := bad_spec(spec):
        raise Problem(wrong.code, wrong.message)
    if not -1 <= spec.code_index <= api.state.code_index:
        raise bad_field("code_index", spec.code_index, f"-1 (newest) to {api.state.code_index}")
    services = api.services
    await services.barrier()
    if wrong := bad_jobs_after(api.state, spec):
        raise Problem(wrong.code, wrong.message)
    return api.reply(request, trial(api.state, services.rooms(), services.rates.mean_s, spec, now()))


async def show(api: Api, request: web.Request) -> web.StreamResponse:
    """Shows a job, now or once it is so far."""
    job_id = find_job(api, request.match_info["job"]).id
    until = query_choice(request, "until", ("final", "started"))
    if until:

        def ready() -> bool:
            job = api.state.jobs.get(job_id)
            return job is None or job.is_final or (until == "started" and job.started_at is not None)

        await api.wait_until(ready, (("job", job_id),), query_wait_s(request))
    return api.reply(request, job_view(api.state, find_job(api, str(job_id))))


async def show_archived(api: Api, request: web.Request, job: Job) -> web.StreamResponse:
    """Shows a job that the state has forgotten."""
    return api.reply(request, archived_view(api, job))


async def add_tasks(api: Api, request: web.Request) -> web.StreamResponse:
    """Adds tasks to an open job."""
    job_id = integer(request.match_info["job"], "job", least=1)
    added: TasksToAdd = _ADD.decode(request, await api.body(request))
    arguments = await settled_items(added.arguments, added.count, api.services.blobs)
    applied = await api.execute(AddTasks(idempotency_key(request), job_id, arguments, added.count, now()))
    assert isinstance(applied.value, int)
    return api.reply(request, TasksAdded(applied.value), version=applied.version)


async def close(api: Api, request: web.Request) -> web.StreamResponse:
    """Says that an open job gets no more tasks."""
    job_id = integer(request.match_info["job"], "job", least=1)
    applied = await api.execute(CloseJob(idempotency_key(request), job_id, now()))
    return api.reply(request, Empty(), version=applied.version)


async def cancel(api: Api, request: web.Request) -> web.StreamResponse:
    """Cancels jobs: all of those that are named, or none if one is unknown."""
    wanted: JobsToCancel = _CANCEL.decode(request, await api.body(request))
    if not wanted.jobs:
        raise Problem("bad_field", "jobs: none given; allowed: one or more job ids")
    if len(wanted.jobs) > MAX_PAGE:
        raise bad_field("jobs", f"{len(wanted.jobs)} ids", f"up to {MAX_PAGE} in one request")
    if len(wanted.by) > 200:
        raise bad_field("by", shown(wanted.by), "up to 200 characters")
    applied = await api.execute(CancelJobs(idempotency_key(request), wanted.jobs, now(), wanted.by))
    live = applied.value
    assert isinstance(live, tuple | list)
    return api.reply(request, JobsCancelled(list(live)), version=applied.version)


async def why(api: Api, request: web.Request) -> web.StreamResponse:
    """Explains why a job is as it is."""
    job = find_job(api, request.match_info["job"])
    lines = whole_answer(api.state, job)
    services = api.services
    if (rooms := services.rooms()) and job.queued and not job.is_final:  # what only the leader knows
        lines += busy_lines(rooms) if job.ready else ()
        lines[2:2] = start_lines(api.state, rooms, services.rates.mean_s, job, now())
    lines[1:1] = ending_lines(api.state, job, None, services.sessions.why_ending)
    return api.reply(request, Lines(lines))


async def why_archived(api: Api, request: web.Request, job: Job) -> web.StreamResponse:
    """Explains how a job ended that the state has forgotten."""
    return api.reply(request, Lines([*explain(api.state, job, None), archive_line(api, job)]))


ROUTES = (
    Route(
        "POST", "/v1/jobs", submit, Mode.WRITE, "Submit a job", body=_SPEC, returns=JobCreated, status=201
    ),
    Route("POST", "/v1/trials", would, Mode.WRITE, "Say what would become of a job", body=_SPEC, returns=TrialView),
    Route("POST", "/v1/jobs/cancel", cancel, Mode.WRITE, "Cancel jobs", body=_CANCEL, returns=JobsCancelled),
    Route(
        "GET", "/v1/jobs/{job}", or_archived(show, show_archived), Mode.READ, "Show a job, or wait for it",
        query=READ_QUERY | {"until"}, returns=JobView,
    ),
    Route("POST", "/v1/jobs/{job}/tasks", add_tasks, Mode.WRITE, "Add tasks to an open job", body=_ADD,
          returns=TasksAdded),
    Route("POST", "/v1/jobs/{job}/close", close, Mode.WRITE, "Say that an open job gets no more tasks", returns=Empty),
    Route("GET", "/v1/jobs/{job}/explain", or_archived(why, why_archived), Mode.READ,
          "Explain the state of a job", query=READ_QUERY, returns=Lines),
)  # fmt: skip
