"""Errors of the HTTP interface: `application/problem+json` with a stable `code` and a detail that names the cause."""

from __future__ import annotations

import http

import msgspec
from aiohttp import web
from msgspec import Struct

#: Status of each code. Codes that the state or the blobs may raise and that are not here become 409 `rejected`.
STATUS: dict[str, int] = {
    "bad_field": 400,
    "bad_json": 400,
    "bad_digest": 400,
    "tls_needed": 400,
    "not_authenticated": 401,
    "not_authorised": 403,
    "not_found": 404,
    "unknown_job": 404,
    "unknown_task": 404,
    "unknown_host": 404,
    "unknown_schedule": 404,
    "unknown_master": 404,
    "unknown_group": 404,
    "unknown_webhook": 404,
    "unknown_visit": 404,
    "unknown_code": 404,
    "unknown_blob": 404,
    "job_gone": 404,
    "result_gone": 404,
    "output_gone": 404,
    "log_unavailable": 404,
    "no_result": 404,
    "method_not_allowed": 405,
    "body_timeout": 408,
    "rejected": 409,
    "not_finished": 409,
    "events_gone": 410,
    "too_large": 413,
    "unsupported_encoding": 415,
    "not_leader": 421,
    "internal": 500,
    "no_leader": 503,
    "no_majority": 503,
    "outcome_unknown": 503,
    "disk_full": 507,
}
_RETRY_AFTER_S = {"no_leader": 0.1, "outcome_unknown": 0.05, "no_majority": 0.5}


class ProblemView(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of every error answer."""

    title: str
    status: int
    detail: str
    code: str
    type: str = "about:blank"
    leader: str = ""
    retry_after_s: float | None = None
    oldest: int | None = None  #: events_gone: the oldest index that is kept


class Problem(Exception):
    """Ends a request with an error answer."""

    def __init__(self, code: str, detail: str, *, oldest: int | None = None, status: int | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.status = status or STATUS.get(code, 409)
        self.detail = detail
        self.oldest = oldest

    def view(self, leader: str) -> ProblemView:
        """Returns the body; `leader` is the leader's base URL as far as known."""
        return ProblemView(
            title=http.HTTPStatus(self.status).phrase,
            status=self.status,
            detail=self.detail,
            code=self.code,
            leader=leader,
            retry_after_s=_RETRY_AFTER_S.get(self.code),
            oldest=self.oldest,
        )

    def response(self, leader: str) -> web.Response:
        """Returns the answer."""
        headers = {"Content-Type": "application/problem+json"}
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="depalma"'
        if self.code in _RETRY_AFTER_S:
            headers["Retry-After"] = "1"
        # `type` is always shown, although it is the default.
        body = msgspec.json.encode({"type": "about:blank", **msgspec.to_builtins(self.view(leader))})
        return web.Response(status=self.status, body=body, headers=headers)


def bad_field(field: str, value: object, allowed: str) -> Problem:
    """Returns the problem of a value that is not allowed; says the field, the value, and what is allowed."""
    return Problem("bad_field", f"{field}: {shown(value)} given; allowed: {allowed}")


def shown(value: object, limit: int = 120) -> str:
    """Returns the value as text for a message, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
