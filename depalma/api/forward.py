"""Carries a request from a follower to the leader and the answer back; one hop at most."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping

import aiohttp
from aiohttp import web
from yarl import URL

from depalma.api.inputs import query_wait_s, read_body
from depalma.api.problems import Problem
from depalma.api.services import Services
from depalma.client.sent import Sent, noting
from depalma.masters import urls
from depalma.protocol import HOST_HEADER
from depalma.trust import verifying

FORWARDED = "Depalma-Forwarded"
#: Request headers that mean something to the leader; nothing else is passed on.
_PASSED_ON = (
    "Accept",
    "Authorization",
    "Content-Type",
    HOST_HEADER,
    "Depalma-Seen",
    "Depalma-Session",
    "Idempotency-Key",
)
#: Answer headers that belong to one connection, or that this server sets itself.
_OWN = frozenset(
    {
        "connection", "content-length", "date", "keep-alive", "proxy-authenticate", "proxy-authorization", "server",
        "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
#: Answers up to this size are carried in one piece.
_WHOLE_BYTES = 256 * 1024
_ANSWER_S = 15.0
_CONNECT_S = 1.0
#: How often it is looked whether the leader that was asked still leads.
_LOOK_S = 0.05
#: An election alone ends no request: the old leader may still answer. One without a winner for so long does.
_NO_LEADER_S = 2.0


class Forwarder:
    """The connections of one master to the others, for requests it cannot answer itself."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._session: aiohttp.ClientSession | None = None
        self._asked: dict[asyncio.Timeout, str] = {}  #: requests under way → the leader they went to
        self._leader_seen_at = 0.0
        self._looking: asyncio.TimerHandle | None = None

    async def close(self) -> None:
        """Closes the connections."""
        if self._looking is not None:
            self._looking.cancel()
        if self._session is not None:
            await self._session.close()

    def http(self) -> aiohttp.ClientSession:
        """Returns the shared client session."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=15)
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False, trace_configs=[noting()])
        return self._session

    async def forward(self, request: web.Request, leader: str, *, write: bool) -> web.StreamResponse:
        """Returns the leader's answer.

        Errors: Problem no_leader (nothing happened), outcome_unknown (a write may have happened).
        """
        services = self._services
        body = await read_body(request, services.config.settings.max_body_bytes)
        base = urls(services.machine.state, services.config).get(leader)
        if base is None:
            raise Problem(
                "no_leader", f"leader {leader} has joined, and this master does not know yet where; ask again"
            )
        url = URL(base + request.rel_url.raw_path_qs, encoded=True)
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        headers[FORWARDED] = "1"
        timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT_S, sock_read=query_wait_s(request) + _ANSWER_S)
        response: web.StreamResponse | None = None
        sent = Sent()
        try:
            async with asyncio.timeout(None) as until:
                self._watch(until, leader)
                try:
                    send = self.http().request(
                        request.method,
                        url,
                        data=_sendable(body),
                        headers=headers,
                        timeout=timeout,
                        allow_redirects=False,
                        ssl=verifying(services.trust),
                        trace_request_ctx=sent,
                    )
                    async with send as answer:
                        response = _shell(request, answer)
                        return await _carry(request, answer, response)
                finally:
                    del self._asked[until]
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            if response is not None and response.prepared:
                raise ConnectionResetError("the leader went away within its answer") from error
            raise _problem(error, leader, maybe_done=write and sent.begun) from error

    def _watch(self, until: asyncio.Timeout, leader: str) -> None:
        """Ends the request when its leader leads no more: a frozen master answers nobody."""
        self._asked[until] = leader
        if self._looking is None:
            loop = asyncio.get_running_loop()
            self._leader_seen_at = loop.time()
            self._looking = loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        leader = self._services.replica.leader_id
        if leader is not None:
            self._leader_seen_at = loop.time()
        elif loop.time() - self._leader_seen_at < _NO_LEADER_S:
            self._looking = loop.call_later(_LOOK_S, self._look)
            return
        for until, asked in self._asked.items():
            if asked != leader and until.when() is None:
                until.reschedule(loop.time())
        self._looking = loop.call_later(_LOOK_S, self._look) if self._asked else None


def _sendable(body: bytes) -> bytes | io.BytesIO | None:
    """Returns the body as the client wants it: large ones as a file, which it writes in pieces."""
    if len(body) > _WHOLE_BYTES:
        return io.BytesIO(body)
    return body or None


def _problem(error: Exception, leader: str, *, maybe_done: bool) -> Problem:
    why = "it was replaced" if isinstance(error, TimeoutError) and not str(error) else str(error)
    if maybe_done:
        return Problem(
            "outcome_unknown",
            f"leader {leader} did not answer ({why}); ask again with the same Idempotency-Key to learn the outcome",
        )
    return Problem("no_leader", f"leader {leader} does not answer ({why}); nothing was changed, ask again")


def _shell(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    headers = _kept(answer.headers)
    length = answer.content_length
    if request.method != "HEAD" and length is not None and length <= _WHOLE_BYTES:
        return web.Response(status=answer.status, headers=headers)
    response = web.StreamResponse(status=answer.status, headers=headers)
    response.content_length = length
    return response


async def _carry(
    request: web.Request, answer: aiohttp.ClientResponse, response: web.StreamResponse
) -> web.StreamResponse:
    if isinstance(response, web.Response):
        response.body = await answer.read()
        return response
    await response.prepare(request)
    async for chunk in answer.content.iter_any():
        await response.write(chunk)
    await response.write_eof()
    return response


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    return {name: value for name, value in headers.items() if name.lower() not in _OWN | named}
