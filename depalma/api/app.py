"""The HTTP interface of a master: one table of routes, one guard around all of them.

The guard authorises, refuses unknown parameters, decides who answers (this master, or the leader through it), and
turns every error into a problem answer.
"""

from __future__ import annotations

import errno
import logging
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from depalma.api import (
    agents,
    archived,
    blobs_routes,
    cluster,
    code,
    events,
    graphs,
    hosts,
    inventory,
    jobs,
    joining,
    listing,
    logs,
    masters,
    metrics,
    openapi,
    order,
    results,
    schedules,
    snapshot,
    steering,
    tasks,
    visits,
    webhooks,
)
from depalma.api.context import Api
from depalma.api.forward import FORWARDED, Forwarder
from depalma.api.inputs import check_query, query_choice, too_large
from depalma.api.problems import Problem, shown
from depalma.api.route import Mode, Route
from depalma.api.services import Services
from depalma.api.streams import Streams
from depalma.api.totals import Totals
from depalma.blobs import BadBlob, NoMajority, UnknownBlob
from depalma.consensus import (
    CommandTooLarge,
    ConsensusError,
    MembershipRefused,
    NotLeader,
    OutcomeUnknown,
    TransferFailed,
)
from depalma.errors import Rejected
from depalma.leader.hub import LEADER

log = logging.getLogger(__name__)

ROUTES: tuple[Route, ...] = (
    *jobs.ROUTES,
    *listing.ROUTES,
    *archived.ROUTES,
    *steering.ROUTES,
    *graphs.ROUTES,
    *schedules.ROUTES,
    *tasks.ROUTES,
    *logs.ROUTES,
    *visits.ROUTES,
    *results.ROUTES,
    *blobs_routes.ROUTES,
    *code.ROUTES,
    *hosts.ROUTES,
    *masters.ROUTES,
    *inventory.ROUTES,
    *webhooks.ROUTES,
    *joining.ROUTES,
    *order.ROUTES,
    *cluster.ROUTES,
    *events.ROUTES,
    *snapshot.ROUTES,
    *agents.ROUTES,
    *openapi.ROUTES,
    *metrics.ROUTES,
)
_CONSISTENCY = ("linearizable", "stale")
API: web.AppKey[Api] = web.AppKey("api", Api)
#: Connections that are idle, or slow to send their request's head, are closed after this long.
IDLE_S = 60.0


def make_app(services: Services) -> web.Application:
    """Returns the application of one master; run it with AppRunner."""
    forwarder = Forwarder(services)
    streams = Streams(services)
    totals = Totals()
    services.hub.watch(totals.changed)
    api = Api(services, forwarder, streams, totals, ROUTES)
    app = web.Application(
        middlewares=[_guard(api)],
        client_max_size=services.config.settings.max_body_bytes,
        handler_args={
            "access_log": None,
            "keepalive_timeout": IDLE_S,
            "lingering_time": 1.0,
            "auto_decompress": False,
        },
    )
    app[API] = api
    for route in ROUTES:
        handler = partial(route.handler, api)
        api.routes_by_handler[handler] = route
        app.router.add_route(route.method, route.path, handler, expect_handler=partial(_expect, api, route))
    app.on_response_prepare.append(partial(_add_headers, api))

    async def stop(_: web.Application) -> None:
        api.stopping = True
        streams.close()
        services.hub.publish([LEADER])  # those who wait look up, see it, and are told to ask another master

    async def cleanup(_: web.Application) -> None:
        await forwarder.close()

    app.on_shutdown.append(stop)
    app.on_cleanup.append(cleanup)
    return app


def _guard(api: Api) -> Middleware:
    counts = api.requests

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = api.routes_by_handler.get(handler)
        try:
            if route is None:
                response = await handler(request)  # raises: there is no such path or method
            else:
                response = await _serve(api, route, request, handler)
        except ConnectionError:
            raise  # the other end is gone, or the answer is broken off: nothing can be told there any more
        except Exception as error:
            problem = archived.told_apart(api, _problem(error, request, route))
            response = problem.response(api.leader_url())
        counts[response.status] = counts.get(response.status, 0) + 1
        return response

    return guard


async def _expect(api: Api, route: Route, request: web.Request) -> web.Response | None:
    """Answers `Expect: 100-continue`: a body that would be refused is not even sent."""
    try:
        if request.headers.get("Expect", "").lower() != "100-continue":
            raise Problem("bad_field", "Expect: allowed: 100-continue", status=417)
        if route.access:
            api.authorisation.check(request, route.access)
        settings = api.services.config.settings
        limit_bytes = settings.max_blob_bytes if route.raw_body else settings.max_body_bytes
        if (request.content_length or 0) > limit_bytes:
            raise too_large(limit_bytes, f"{request.content_length} bytes")
    except Problem as problem:
        return problem.response(api.leader_url())
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the true answer has not begun
    return None


async def _serve(api: Api, route: Route, request: web.Request, handler: Handler) -> web.StreamResponse:
    if route.access:
        api.authorisation.check(request, route.access)
    stale = False
    if request.query_string:
        check_query(request, route.query)
        stale = query_choice(request, "consistency", _CONSISTENCY) == "stale"
    if route.mode is Mode.LOCAL:
        return await handler(request)
    if not (stale or api.leads):
        leader = await api.leader()
        if leader != api.services.master_id:
            _check_may_pass_on(api, route, request, leader)
            return await api.forwarder.forward(request, leader, write=route.mode is Mode.WRITE)
    if route.mode is Mode.READ:
        if not stale:
            await api.services.barrier()
        await api.wait_for_index(request)
    return await handler(request)


def _check_may_pass_on(api: Api, route: Route, request: web.Request, leader: str) -> None:
    if FORWARDED in request.headers:
        raise Problem("no_leader", f"this master was taken for the leader, but holds {leader} for it; ask again")
    if route.mode is Mode.LEADER or (route.endless is not None and route.endless(request)):
        raise Problem("not_leader", f"{request.path} is served by the leader, {leader} at {api.leader_url()}")


def _problem(error: Exception, request: web.Request, route: Route | None) -> Problem:
    """Returns what to answer for an error; what nobody expected is logged and told as `internal`."""
    match error:
        case Problem():
            return error
        case Rejected():
            return Problem(error.code, str(error))
        case BadBlob():
            return Problem(error.code, str(error))
        case UnknownBlob():
            return Problem("unknown_blob", str(error))
        case NoMajority():
            return Problem("no_majority", f"{error}; ask again when a majority of masters is up")
        case CommandTooLarge():
            return Problem("too_large", str(error))
        case MembershipRefused():
            return Problem(error.code, str(error))
        case TransferFailed():
            return Problem("transfer_failed", str(error))
        case NotLeader():
            return Problem("no_leader", f"{error}; nothing was changed, ask again")
        case OutcomeUnknown() | ConsensusError():
            return _unknown(error, route)
        case web.HTTPException():
            return _http_problem(error, request)
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Problem("disk_full", "the disk of this master is full")
    log.error("%s %r failed", request.method, request.path, exc_info=error)
    return Problem("internal", f"{type(error).__name__} in this master; its log says more")


def _unknown(error: Exception, route: Route | None) -> Problem:
    if route is not None and route.mode is Mode.WRITE:
        return Problem("outcome_unknown", f"{error}; ask again with the same Idempotency-Key to learn the outcome")
    return Problem("no_leader", f"{error}; ask again")


def _http_problem(error: web.HTTPException, request: web.Request) -> Problem:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return Problem("method_not_allowed", f"{request.method} given for {shown(request.path)}; allowed: {allowed}")
    if isinstance(error, web.HTTPNotFound):
        return Problem("not_found", f"there is nothing at {shown(request.path)}; GET /v1/openapi.json lists the paths")
    return Problem("bad_field", error.reason, status=error.status)


async def _add_headers(api: Api, request: web.Request, response: web.StreamResponse) -> None:
    headers = response.headers
    # A forwarded answer carries the leader's own values: these stay.
    headers.setdefault("Depalma-Index", str(api.state.version))
    headers.setdefault("Depalma-Leader", api.leader_url())
    headers.setdefault("Depalma-Master", api.services.master_id)
    headers.setdefault("Depalma-Masters", api.master_urls())
    headers.setdefault("Cache-Control", "no-store")
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Server"] = "depalma"
