"""Jobs that the state has forgotten: what of them is shown from the archive, and what masters tell each other of it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from aiohttp import web
from msgspec.structs import replace

from depalma.api.auth import MASTER
from depalma.api.context import Api
from depalma.api.inputs import Body
from depalma.api.problems import Problem
from depalma.api.route import Handler, Mode, Route
from depalma.jobarchive.keeper import ArchivePaused, ArchiveStatus
from depalma.jobarchive.peers import KEEP_PATH, RECORDS_PATH, KeepAnswer, KeepRequest, RecordsRequest
from depalma.jobarchive.record import Record
from depalma.model import JobView
from depalma.state.jobs import Job
from depalma.state.texts import moment
from depalma.state.views import job_view

_KEEP = Body(KeepRequest)
_RECORDS = Body(RecordsRequest)
#: How the state refuses a job that it does not have.
_UNKNOWN = re.compile(r"there is no job (\d{1,18})")


class Gone(Problem):
    """There was such a job, and the state has forgotten it."""

    def __init__(self, job: int, why: str = "it finished") -> None:
        super().__init__("job_gone", f"job {job} is no longer kept: {why}")
        self.job = job


def told_apart(api: Api, problem: Problem) -> Problem:
    """Returns the problem, or a better one: commands refuse a job that was forgotten like one that never was."""
    job = _UNKNOWN.fullmatch(problem.detail) if problem.code == "unknown_job" else None
    if job is None or not 0 < int(job[1]) < api.state.next_job:
        return problem
    return Gone(int(job[1]), "it finished, and nothing can be done with it any more")


def or_archived(live: Handler, past: Callable[[Api, web.Request, Job], Awaitable[web.StreamResponse]]) -> Handler:
    """Returns the handler that asks the archive for a job which the state has forgotten."""

    async def handler(api: Api, request: web.Request) -> web.StreamResponse:
        try:
            return await live(api, request)
        except Gone as gone:
            job = await _find(api, gone.job)
        return await past(api, request, job)

    return handler


async def _find(api: Api, job_id: int) -> Job:
    archive = api.services.archive
    try:
        job = await archive.job(job_id)
    except ArchivePaused as error:
        raise Gone(job_id, f"it finished, and {error}") from None
    if job is None:
        raise Gone(job_id, archive.why_not(job_id))
    return job


def archived_view(api: Api, job: Job) -> JobView:
    """Returns the job as it was when it ended."""
    return replace(job_view(api.state, job), archived=True)


def result_gone(api: Api, what: str, job: Job) -> Problem:
    """Returns the problem of a result that went when its job was forgotten."""
    return Problem("result_gone", f"the result of {what} is no longer kept: {_since(api, job)}")


def output_gone(api: Api, what: str, job: Job) -> Problem:
    """Returns the problem of output that went when its job was forgotten."""
    return Problem("output_gone", f"the output of {what} is no longer kept: {_since(api, job)}")


def archive_line(api: Api, job: Job) -> str:
    """Returns what is not here of an archived job."""
    return f"its results and output are no longer kept: {_since(api, job)}"


def _since(api: Api, job: Job) -> str:
    settings = api.services.config.settings
    kept = f"history_days {settings.history_days:g}, history_jobs {settings.history_jobs}"
    return f"the job finished at {moment(job.finished_at or 0.0)} and is in the archive only ({kept})"


async def status(api: Api, request: web.Request) -> web.StreamResponse:
    """Says how it stands with the archive of this master."""
    return api.reply(request, api.services.archive.status())


async def keep(api: Api, request: web.Request) -> web.StreamResponse:
    """Archives finished jobs that are about to be forgotten."""
    wanted: KeepRequest = _KEEP.decode(request, await api.body(request))
    try:
        kept = await api.services.archive.keep(wanted.jobs)
    except ArchivePaused:
        kept = set()
    return api.reply(request, KeepAnswer(tuple(sorted(kept))))


async def records(api: Api, request: web.Request) -> web.StreamResponse:
    """Gives records that another master misses."""
    wanted: RecordsRequest = _RECORDS.decode(request, await api.body(request))
    try:
        found = await api.services.archive.records(wanted.ranges)
    except ArchivePaused as error:
        raise Problem("job_gone", str(error)) from None
    return api.reply(request, found)


ROUTES = (
    Route("GET", "/v1/archive", status, Mode.LOCAL, "The archive of finished jobs of this master",
          returns=ArchiveStatus),
    Route("POST", KEEP_PATH, keep, Mode.LOCAL, "Archive jobs", access=MASTER, body=_KEEP, returns=KeepAnswer),
    Route("POST", RECORDS_PATH, records, Mode.LOCAL, "Give archived jobs", access=MASTER, body=_RECORDS,
          returns=list[Record]),
)  # fmt: skip
