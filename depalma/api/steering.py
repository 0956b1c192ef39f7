"""/v1/jobs/hold, release, suspend, resume, retry, set: how jobs that are there go on."""

from __future__ import annotations

from typing import TypeVar

from aiohttp import web
from msgspec import Struct

from depalma.api.context import Api, now
from depalma.api.inputs import Body, idempotency_key
from depalma.api.problems import Problem, bad_field, shown
from depalma.api.route import Mode, Route
from depalma.state.commands import AnyCommand
from depalma.state.job_commands import HoldJobs, ReleaseJobs, ResumeJobs, RetryJobs, SetJobs, SuspendJobs

#: Jobs of one request.
MAX_JOBS = 10_000


class JobsToSteer(Struct, frozen=True, forbid_unknown_fields=True):
    jobs: tuple[int, ...]
    by: str = ""


class JobsToSuspend(Struct, frozen=True, forbid_unknown_fields=True):
    jobs: tuple[int, ...]
    by: str = ""
    reason: str = ""


class JobsToSet(Struct, frozen=True, forbid_unknown_fields=True):
    """What is not given stays."""

    jobs: tuple[int, ...]
    by: str = ""
    priority: int | None = None
    name: str | None = None
    tags: tuple[str, ...] | None = None


class JobsChanged(Struct, frozen=True):
    changed: list[int]  #: the others were so already, or are over


T = TypeVar("T", JobsToSteer, JobsToSuspend, JobsToSet)
_STEER = Body(JobsToSteer)
_SUSPEND = Body(JobsToSuspend)
_SET = Body(JobsToSet)


async def hold(api: Api, request: web.Request) -> web.StreamResponse:
    """Holds jobs."""
    wanted = checked(_STEER.decode(request, await api.body(request)))
    return await _done(api, request, HoldJobs(idempotency_key(request), wanted.jobs, now(), wanted.by))


async def release(api: Api, request: web.Request) -> web.StreamResponse:
    """Releases held jobs."""
    wanted = checked(_STEER.decode(request, await api.body(request)))
    return await _done(api, request, ReleaseJobs(idempotency_key(request), wanted.jobs, now(), wanted.by))


async def suspend(api: Api, request: web.Request) -> web.StreamResponse:
    """Suspends jobs."""
    wanted: JobsToSuspend = checked(_SUSPEND.decode(request, await api.body(request)))
    command = SuspendJobs(idempotency_key(request), wanted.jobs, now(), wanted.by, wanted.reason)
    return await _done(api, request, command)


async def resume(api: Api, request: web.Request) -> web.StreamResponse:
    """Lets suspended jobs go on."""
    wanted = checked(_STEER.decode(request, await api.body(request)))
    return await _done(api, request, ResumeJobs(idempotency_key(request), wanted.jobs, now(), wanted.by))


async def retry(api: Api, request: web.Request) -> web.StreamResponse:
    """Queues failed tasks again."""
    wanted = checked(_STEER.decode(request, await api.body(request)))
    return await _done(api, request, RetryJobs(idempotency_key(request), wanted.jobs, now(), wanted.by))


async def change(api: Api, request: web.Request) -> web.StreamResponse:
    """Changes jobs that live."""
    wanted: JobsToSet = checked(_SET.decode(request, await api.body(request)))
    command = SetJobs(
        idempotency_key(request), wanted.jobs, now(), wanted.by, wanted.priority, wanted.name, wanted.tags
    )
    return await _done(api, request, command)


def checked(wanted: T) -> T:
    """Returns what is wanted of jobs. Errors: Problem bad_field."""
    if not wanted.jobs:
        raise Problem("bad_field", "jobs: none given; allowed: one or more job ids")
    if len(wanted.jobs) > MAX_JOBS:
        raise bad_field("jobs", f"{len(wanted.jobs)} ids", f"up to {MAX_JOBS} in one request")
    if len(wanted.by) > 200:
        raise bad_field("by", shown(wanted.by), "up to 200 characters")
    return wanted


async def _done(api: Api, request: web.Request, command: AnyCommand) -> web.StreamResponse:
    applied = await api.execute(command)
    assert isinstance(applied.value, tuple | list)
    return api.reply(request, JobsChanged(list(applied.value)), version=applied.version)


ROUTES = (
    Route("POST", "/v1/jobs/hold", hold, Mode.WRITE, "Hold jobs", body=_STEER, returns=JobsChanged),
    Route("POST", "/v1/jobs/release", release, Mode.WRITE, "Release held jobs", body=_STEER, returns=JobsChanged),
    Route("POST", "/v1/jobs/suspend", suspend, Mode.WRITE, "Have jobs stand still", body=_SUSPEND,
          returns=JobsChanged),
    Route("POST", "/v1/jobs/resume", resume, Mode.WRITE, "Let suspended jobs go on", body=_STEER,
          returns=JobsChanged),
    Route("POST", "/v1/jobs/retry", retry, Mode.WRITE, "Run failed tasks of jobs again", body=_STEER,
          returns=JobsChanged),
    Route("POST", "/v1/jobs/set", change, Mode.WRITE, "Change priority, name or tags of jobs", body=_SET,
          returns=JobsChanged),
)  # fmt: skip
