"""/v1/agent: where agents connect, and where a supervisor tells that an agent's work is dead."""

from __future__ import annotations

import msgspec
from aiohttp import web

from depalma.api.auth import AGENT
from depalma.api.context import Api
from depalma.api.inputs import Body
from depalma.api.problems import Problem, bad_field
from depalma.api.route import Mode, Route
from depalma.api.shapes import AgentGone, Empty
from depalma.model import Report
from depalma.protocol import HOST_HEADER, MAX_FRAME_BYTES
from depalma.state.checks import bad_name

_GONE = Body(AgentGone)
_record = msgspec.msgpack.Decoder(tuple[Report, ...])


async def connect(api: Api, request: web.Request) -> web.StreamResponse:
    """Serves an agent until it goes."""
    host = request.headers.get(HOST_HEADER, "")
    if bad_name(HOST_HEADER, host) is not None:
        raise bad_field(HOST_HEADER, host, "the host's name, as a request header")
    api.authorisation.check_host(request, host)
    # Frames are small and many; compressing them would cost the leader more than it saves on a local network.
    websocket = web.WebSocketResponse(max_msg_size=MAX_FRAME_BYTES, compress=False, timeout=1.0)
    if not websocket.can_prepare(request):
        raise Problem("bad_field", f"{request.path} is a WebSocket: send the headers of an upgrade")
    await websocket.prepare(request)
    await api.services.sessions.serve(websocket, host)
    return websocket


async def gone(api: Api, request: web.Request) -> web.StreamResponse:
    """Takes a supervisor's word that everything of an agent is dead, so that its work moves at once."""
    told: AgentGone = _GONE.decode(request, await api.body(request))
    wrong = bad_name("host", told.host)
    if wrong is not None:
        raise Problem(wrong.code, wrong.message)
    api.authorisation.check_host(request, told.host)
    for field in ("incarnation", "reason"):
        value = getattr(told, field)
        if len(value) > 200:
            raise bad_field(field, value, "up to 200 characters")
    try:
        kept = (report for record in told.reports for report in _record.decode(record))
        latest = {(report.job, report.task, report.attempt): report for report in kept}  # one may be there twice
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Problem("bad_field", f"reports: not what an agent keeps: {error}") from None
    await api.services.sessions.gone(told.host, told.incarnation, told.reason, tuple(latest.values()))
    return api.reply(request, Empty())


ROUTES = (
    Route("GET", "/v1/agent", connect, Mode.LEADER, "Connect an agent (WebSocket)", access=AGENT),
    Route("POST", "/v1/agent/gone", gone, Mode.WRITE, "Tell that an agent and all its work is dead", access=AGENT,
          body=_GONE, returns=Empty),
)  # fmt: skip
