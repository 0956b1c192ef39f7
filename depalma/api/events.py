"""/v1/events: what happened, numbered; in pages or as a stream of lines."""

from __future__ import annotations

import asyncio
from functools import partial

import msgspec
from aiohttp import web

from depalma.api.context import Api
from depalma.api.inputs import query_flag, query_integer, query_wait_s
from depalma.api.problems import Problem
from depalma.api.route import READ_QUERY, Mode, Route
from depalma.api.shapes import EventList
from depalma.leader.hub import ANY
from depalma.model import EventView
from depalma.state.events import events_after, newest, oldest_kept

MAX_PAGE = 10_000
#: A stream without events sends an empty line so often: it notices a reader that went away.
KEEP_ALIVE_S = 5.0
STUCK_S = 60.0
_encoder = msgspec.json.Encoder()


def wants_stream(request: web.Request) -> bool:
    """Returns whether the request asks for an endless answer."""
    return query_flag(request, "follow") and "ndjson" in request.headers.get("Accept", "")


async def events(api: Api, request: web.Request) -> web.StreamResponse:
    """Gives events after an index; blocks for the first one, or streams, if asked to."""
    after = query_integer(request, "after", 0)
    limit = query_integer(request, "limit", 1000, least=1, most=MAX_PAGE)
    wait_s = query_wait_s(request)
    _check_kept(api, after)
    if wants_stream(request):
        return await _stream(api, request, after)
    await api.wait_until(lambda: newest(api.state) > after, (ANY,), wait_s)
    _check_kept(api, after)
    state = api.state
    found = events_after(state, after, limit)
    if "ndjson" in request.headers.get("Accept", ""):
        headers = {"Content-Type": "application/x-ndjson", "Depalma-Index": str(state.version)}
        return web.Response(body=_encoder.encode_lines(found), headers=headers)
    return api.reply(request, EventList(found, oldest_kept(state), newest(state)))


def _check_kept(api: Api, after: int) -> None:
    oldest = oldest_kept(api.state)
    # 0 is "from the beginning, whatever that is now" only while nothing was dropped.
    if after + 1 < oldest:
        raise Problem("events_gone", f"events up to {oldest - 1} are no longer kept; ask after={oldest - 1}",
                      oldest=oldest)  # fmt: skip


async def _stream(api: Api, request: web.Request, after: int) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
    response.enable_chunked_encoding()
    led = api.leads
    hub = api.services.hub
    try:
        await response.prepare(request)
        while not api.stopping and api.leads == led and after + 1 >= oldest_kept(api.state):
            found: list[EventView] = events_after(api.state, after, 1000)
            if found:
                after = found[-1].index
            async with asyncio.timeout(STUCK_S):
                await response.write(_encoder.encode_lines(found) if found else b"\n")
            await asyncio.sleep(0)
            await hub.wait_until(partial(_moved, api, after, led), (ANY,), KEEP_ALIVE_S)
        await response.write_eof()
    except (ConnectionError, TimeoutError):
        pass  # the reader went away or is stuck; it can resume after the last index it has
    return response


def _moved(api: Api, after: int, led: bool) -> bool:
    return api.stopping or api.leads != led or newest(api.state) > after


ROUTES = (
    Route(
        "GET", "/v1/events", events, Mode.READ, "Read events after an index, or stream them",
        query=READ_QUERY | {"after", "limit", "follow"}, returns=EventList, endless=wants_stream,
    ),
)  # fmt: skip
