"""/v1/jobs/{id}/exec and /v1/exec/{visit}: a command, or a shell, inside a task that runs.

Asking comes first, and is a write like others: it is answered by any master, recorded, and refused in words. Then the
user connects to the leader with the key of his request; what passes there is between him and the host.
"""

from __future__ import annotations

from aiohttp import WSCloseCode, web
from msgspec import Struct

from depalma.api.context import Api, now
from depalma.api.inputs import Body, plain_key
from depalma.api.jobs import find_job
from depalma.api.problems import Problem, bad_field, shown
from depalma.api.route import Mode, Route
from depalma.leader.visits import COME_WITHIN_S, Wanted
from depalma.state.commands import Rejected
from depalma.state.job_commands import VisitTask
from depalma.state.visiting import visited
from depalma.visits import MAX_MESSAGE_BYTES, MAX_SIDE

#: A user who does not answer for about so long is gone.
ALIVE_S = 10.0


class VisitWanted(Struct, frozen=True, forbid_unknown_fields=True):
    argv: tuple[str, ...] = ()  #: none: a shell
    task: int | None = None  #: its index; None: the only one that runs
    tty: bool = False
    rows: int = 24
    columns: int = 80
    terminal: str = ""  #: the user's TERM
    by: str = ""


class VisitGranted(Struct, frozen=True):
    """Where it will be. Connect to `path` on the leader within 15 seconds, once."""

    visit: str
    path: str
    task: str
    attempt: int
    host: str


_WANTED = Body(VisitWanted)


async def ask(api: Api, request: web.Request) -> web.StreamResponse:
    """Records that a user enters a task, and lets him in once."""
    job = find_job(api, request.match_info["job"])
    wanted = _checked(_WANTED.decode(request, await api.body(request)))
    key = plain_key(request)
    if not (key.isascii() and key.isalnum()):
        raise bad_field("Idempotency-Key", key, "letters and digits: it becomes part of a path")
    ref = visited(job, wanted.task)
    if isinstance(ref, Rejected):
        raise Problem(ref.code, ref.message)
    visits = api.services.sessions.visits
    visits.check(job.running[ref[1]].host)
    command = VisitTask(key, job.id, wanted.task, wanted.argv, now(), wanted.by, wanted.tty)
    applied = await api.execute(command)
    ref = applied.value  # type: ignore[assignment]
    attempt = job.running.get(ref[1])
    if attempt is None or attempt.number != ref[2]:
        raise Problem("not_running", f"task {job.id}.{ref[1]} has ended meanwhile")
    terminal = wanted.tty, wanted.rows, wanted.columns, wanted.terminal
    visits.expect(key, Wanted(ref, attempt.host, wanted.argv, *terminal, visits.clock() + COME_WITHIN_S))
    granted = VisitGranted(key, f"/v1/exec/{key}", f"{job.id}.{ref[1]}", ref[2], attempt.host)
    return api.reply(request, granted, version=applied.version)


def _checked(wanted: VisitWanted) -> VisitWanted:
    """Returns what is wanted. Errors: Problem bad_field."""
    for field in ("rows", "columns"):
        if not 1 <= getattr(wanted, field) <= MAX_SIDE:
            raise bad_field(field, getattr(wanted, field), f"a whole number, 1 to {MAX_SIDE}")
    for field in ("terminal", "by"):
        if len(getattr(wanted, field)) > 200 or "\0" in getattr(wanted, field):
            raise bad_field(field, shown(getattr(wanted, field)), "up to 200 characters, no NUL")
    return wanted


async def enter(api: Api, request: web.Request) -> web.StreamResponse:
    """Connects a user with what he has asked for, until either end is gone."""
    # Looked at before it is taken: whoever comes without an upgrade loses nothing by it.
    websocket = web.WebSocketResponse(
        max_msg_size=MAX_MESSAGE_BYTES + 1, compress=False, timeout=1.0, heartbeat=ALIVE_S
    )
    if not websocket.can_prepare(request):
        raise Problem("bad_field", f"{request.path} is a WebSocket: send the headers of an upgrade")
    visits = api.services.sessions.visits
    wanted = visits.take(request.match_info["visit"])
    if wanted is None:
        raise Problem("unknown_visit", "nobody has asked for this visit here, or too long ago, or it has begun already")
    await websocket.prepare(request)
    await visits.serve(websocket, wanted)
    if not websocket.closed:
        await websocket.close(code=WSCloseCode.OK)
    return websocket


ROUTES = (
    Route("POST", "/v1/jobs/{job}/exec", ask, Mode.WRITE, "Ask to run a command, or a shell, in a running task",
          body=_WANTED, returns=VisitGranted),
    Route("GET", "/v1/exec/{visit}", enter, Mode.LEADER, "Enter a running task (WebSocket)"),
)  # fmt: skip
