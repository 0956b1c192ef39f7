"""/v1/schedules: jobs that are submitted at times of day."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web
from msgspec import Struct

from depalma.api.context import Api, now
from depalma.api.inputs import Body, idempotency_key
from depalma.api.problems import Problem, bad_field
from depalma.api.route import READ_QUERY, Mode, Route
from depalma.api.shapes import Empty
from depalma.api.specs import settled
from depalma.cron import BadCron, parse
from depalma.leader.timekeeping import zone_of
from depalma.model import JobSpec, ScheduleView
from depalma.state.job_commands import AddSchedule, RemoveSchedule
from depalma.state.schedules import bad_schedule
from depalma.state.views import command_of

if TYPE_CHECKING:
    from depalma.state.schedule import Schedule


class ScheduleToAdd(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    cron: str
    job: JobSpec
    zone: str = "UTC"
    catch_up: str = "one"
    overlap: str = "run"
    by: str = ""


class ScheduleList(Struct, frozen=True):
    schedules: list[ScheduleView]


_ADD = Body(ScheduleToAdd)


async def add(api: Api, request: web.Request) -> web.StreamResponse:
    """Adds a schedule."""
    wanted: ScheduleToAdd = _ADD.decode(request, await api.body(request))
    at = now()
    command = AddSchedule(
        idempotency_key(request), wanted.name, wanted.job, wanted.cron, wanted.zone, at, at, wanted.catch_up,
        wanted.overlap, wanted.by,
    )  # fmt: skip
    wrong = bad_schedule(command)
    if wrong is not None:
        raise Problem(wrong.code, wrong.message)
    try:
        first_at = parse(wanted.cron).next_after(at, zone_of(wanted.zone))
    except BadCron as error:
        raise Problem("bad_field", str(error)) from None
    except (KeyError, ValueError, OSError):
        raise bad_field(
            "zone", wanted.zone, "UTC, or a time zone such as Europe/Berlin that this master knows"
        ) from None
    spec = await settled(wanted.job, api.services.blobs)
    command = AddSchedule(
        command.request, wanted.name, spec, wanted.cron, wanted.zone, first_at, at, wanted.catch_up, wanted.overlap,
        wanted.by,
    )  # fmt: skip
    applied = await api.execute(command)
    return api.reply(request, _view(_find(api, wanted.name)), status=201, version=applied.version)


async def listing(api: Api, request: web.Request) -> web.StreamResponse:
    """Lists the schedules, by name."""
    schedules = sorted(api.state.schedules.values(), key=lambda one: one.name)
    return api.reply(request, ScheduleList([_view(one) for one in schedules]))


async def show(api: Api, request: web.Request) -> web.StreamResponse:
    """Shows a schedule."""
    return api.reply(request, _view(_find(api, request.match_info["schedule"])))


async def remove(api: Api, request: web.Request) -> web.StreamResponse:
    """Removes a schedule; its jobs stay."""
    applied = await api.execute(RemoveSchedule(idempotency_key(request), request.match_info["schedule"], now()))
    return api.reply(request, Empty(), version=applied.version)


def _find(api: Api, name: str) -> Schedule:
    schedule = api.state.schedules.get(name)
    if schedule is None:
        raise Problem("unknown_schedule", f"there is no schedule {name[:80]}")
    return schedule


def _view(schedule: Schedule) -> ScheduleView:
    return ScheduleView(
        name=schedule.name,
        cron=schedule.cron,
        zone=schedule.zone,
        next_at=schedule.next_at,
        last_at=schedule.last_at,
        last_job=schedule.last_job or None,
        runs=schedule.runs,
        skipped=schedule.skipped,
        catch_up=schedule.catch_up,
        overlap=schedule.overlap,
        created_at=schedule.created_at,
        by=schedule.by,
        command=command_of(schedule.spec),
        spec=schedule.spec,
    )


ROUTES = (
    Route("POST", "/v1/schedules", add, Mode.WRITE, "Submit a job at times of day", body=_ADD, returns=ScheduleView,
          status=201),
    Route("GET", "/v1/schedules", listing, Mode.READ, "List schedules", query=READ_QUERY, returns=ScheduleList),
    Route("GET", "/v1/schedules/{schedule}", show, Mode.READ, "Show a schedule", query=READ_QUERY,
          returns=ScheduleView),
    Route("DELETE", "/v1/schedules/{schedule}", remove, Mode.WRITE, "Remove a schedule; its jobs stay", returns=Empty),
)  # fmt: skip
