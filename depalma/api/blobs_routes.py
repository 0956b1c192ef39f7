"""/v1/blobs and /internal/blobs: large values, streamed to and from disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from aiohttp import web

from depalma.api.auth import MASTER, USER_OR_AGENT
from depalma.api.context import Api
from depalma.api.inputs import BODY_TIMEOUT_S, check_encoding, query_choice, too_large
from depalma.api.problems import Problem
from depalma.api.route import Mode, Route
from depalma.api.shapes import BlobStored
from depalma.api.specs import check_digest


async def put(api: Api, request: web.Request) -> web.StreamResponse:
    """Stores a blob on a majority of masters."""
    digest = _digest(request)
    new = await api.services.blobs.put(_chunks(api, request), digest)
    return _stored(api, request, digest, new)


async def put_here(api: Api, request: web.Request) -> web.StreamResponse:
    """Stores a blob on this master."""
    digest = _digest(request)
    new = await api.services.blobs.put_here(_chunks(api, request), digest)
    return _stored(api, request, digest, new)


async def get(api: Api, request: web.Request) -> web.StreamResponse:
    """Gives a blob, from another master if it is not here. Ranges are served; `check=1` reads it first."""
    if query_choice(request, "check", ("1",)):
        await api.services.blobs.check(_digest(request))
    return await send_file(api, _digest(request), {})


async def get_here(api: Api, request: web.Request) -> web.StreamResponse:
    """Gives a blob that is here. Whoever asks may count on it for a while."""
    digest = _digest(request)
    if not api.services.blobs.use(digest):
        raise Problem("unknown_blob", f"this master does not have blob {digest}")
    return await send_file(api, digest, {})


async def send_file(api: Api, digest: str, headers: Mapping[str, str]) -> web.FileResponse:
    """Returns the blob's bytes as the answer. Errors: UnknownBlob."""
    path = await api.services.blobs.fetch(digest)
    return web.FileResponse(path, headers={"Content-Type": "application/octet-stream", **headers})


def _digest(request: web.Request) -> str:
    digest = request.match_info["digest"]
    check_digest(digest, "digest")
    return digest


def _stored(api: Api, request: web.Request, digest: str, new: bool) -> web.Response:
    size = api.services.blobs.store.size(digest) or 0
    return api.reply(request, BlobStored(digest, size), status=201 if new else 200)


def _chunks(api: Api, request: web.Request) -> AsyncIterator[bytes]:
    check_encoding(request)
    limit_bytes = api.services.blobs.limit_bytes
    length = request.content_length
    if length is not None and length > limit_bytes:
        raise too_large(limit_bytes, f"{length} bytes")
    return _read_on(request)


async def _read_on(request: web.Request) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                chunk = await request.content.readany()
        except TimeoutError:
            raise Problem("body_timeout", f"no byte of the body came for {BODY_TIMEOUT_S:g} s") from None
        if not chunk:
            return
        yield chunk


def _routes(path: str, public: bool) -> tuple[Route, ...]:
    access = USER_OR_AGENT if public else MASTER
    scope = "a majority of masters" if public else "this master"
    return (
        Route("PUT", path, put if public else put_here, Mode.LOCAL, f"Store a blob on {scope}", access=access,
              raw_body=True, returns=BlobStored, status=201),
        Route("GET", path, get if public else get_here, Mode.LOCAL, "Read a blob (ranges are served)", access=access,
              query=frozenset({"check"}) if public else frozenset()),
        Route("HEAD", path, get if public else get_here, Mode.LOCAL, "Ask whether there is a blob", access=access),
    )  # fmt: skip


ROUTES = (*_routes("/v1/blobs/{digest}", True), *_routes("/internal/blobs/{digest}", False))
