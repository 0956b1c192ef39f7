"""/v1/results: the stream of results, on the leader."""

from __future__ import annotations

from aiohttp import web

from depalma.api.context import Api
from depalma.api.inputs import MAX_KEY_CHARACTERS, Body, integer
from depalma.api.problems import bad_field
from depalma.api.route import Mode, Route
from depalma.client.wire import ResultsRequest

MAX_JOBS = 100_000
_REQUEST = Body(ResultsRequest)


async def stream(api: Api, request: web.Request) -> web.StreamResponse:
    """Streams results as frames until the client goes, or all were given."""
    wanted: ResultsRequest = _REQUEST.decode(request, await api.body(request))
    if len(wanted.session) > MAX_KEY_CHARACTERS or not wanted.session.isprintable():
        raise bad_field("session", wanted.session, f"up to {MAX_KEY_CHARACTERS} printable characters")
    if len(wanted.cursors) > MAX_JOBS:
        raise bad_field("cursors", f"{len(wanted.cursors)} jobs", f"up to {MAX_JOBS}")
    cursors = {integer(job, "cursors", least=1): cursor for job, cursor in wanted.cursors.items()}
    for job, cursor in cursors.items():
        if cursor < 0:
            raise bad_field(f"cursors.{job}", cursor, "0 or more")
    # Without it a leader of this moment could call a job unknown that it has not applied yet.
    await api.services.barrier()
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream", "Cache-Control": "no-store"})
    response.enable_chunked_encoding()
    results = api.streams.open(wanted.session, cursors)
    try:
        await response.prepare(request)
        await results.run(response, follow=wanted.follow)
        await response.write_eof()
    except ConnectionError:
        pass  # the reader went away: it comes back with its cursors, here or elsewhere
    finally:
        api.streams.forget(wanted.session, results)
    return response


ROUTES = (
    Route("POST", "/v1/results", stream, Mode.LEADER, "Stream results as tasks end (frames of wire.py)", body=_REQUEST),
)
