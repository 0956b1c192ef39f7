"""Who asks: bearer tokens, compared in constant time, or the certificate of a host; and what each may do."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Literal

from aiohttp import web

from depalma.api.problems import Problem, shown
from depalma.blobs import master_token
from depalma.config import Secrets
from depalma.joining import host_token
from depalma.protocol import HOST_HEADER
from depalma.trust import host_in

Role = Literal["user", "agent", "master"]

USER: frozenset[Role] = frozenset({"user"})
AGENT: frozenset[Role] = frozenset({"agent"})
USER_OR_AGENT: frozenset[Role] = frozenset({"user", "agent"})
MASTER: frozenset[Role] = frozenset({"master"})
#: No token needed.
ANYBODY: frozenset[Role] = frozenset()


class Authorisation:
    """Knows the tokens of one cluster."""

    def __init__(self, secrets: Secrets, cluster: str, is_host: Callable[[str], bool]) -> None:
        self._raft_secret = secrets.raft_secret
        self._cluster = cluster
        self._is_host = is_host
        self._tokens: tuple[tuple[bytes, Role], ...] = (
            (secrets.token.encode(), "user"),
            (secrets.agent_token.encode(), "agent"),
            (master_token(secrets.raft_secret).encode(), "master"),
        )

    def check(self, request: web.Request, allowed: frozenset[Role]) -> None:
        """Returns if the request's token has one of the roles. Errors: Problem not_authenticated, not_authorised."""
        header = request.headers.get("Authorization", "")
        certified = self._certified(request)
        if certified and not header:
            self._let_in("agent", request, allowed)
            return
        if not header.startswith("Bearer "):
            raise Problem("not_authenticated", "a token is needed: send the header `Authorization: Bearer TOKEN`")
        given = header[7:].strip().encode("utf-8", "surrogateescape")
        role: Role | None = None
        for token, owner in self._tokens:  # all of them, so that the time tells nothing
            if hmac.compare_digest(token, given):
                role = owner
        if role is None and self._has_own_token(request, given):
            role = "agent"
        if role is None:
            raise Problem("not_authenticated", "the token is not one of this cluster's")
        self._let_in(role, request, allowed)

    def _let_in(self, role: Role, request: web.Request, allowed: frozenset[Role]) -> None:
        if role not in allowed:
            owners = " or ".join(sorted(allowed))
            raise Problem("not_authorised", f"{request.path} is for the {owners} token, not for the {role} token")

    def check_host(self, request: web.Request, host: str) -> None:
        """Returns if the request, which was let in, may speak for a host. Errors: Problem not_authorised."""
        for name in self._proven(request):
            if name != host:
                raise Problem("not_authorised", f"this is host {name} by what it shows, and speaks for {shown(host)}")

    def proven_host(self, request: web.Request) -> str:
        """Returns which host alone may have sent a request, which was let in; empty for all others."""
        return next(iter(self._proven(request)), "")

    def _proven(self, request: web.Request) -> list[str]:
        """Returns the host of the certificate, and that of the token."""
        given = request.headers.get("Authorization", "")[7:].strip().encode("utf-8", "surrogateescape")
        named = request.headers.get(HOST_HEADER, "") if self._has_own_token(request, given) else ""
        return [name for name in (certified_host(request, self._cluster), named) if name]

    def _certified(self, request: web.Request) -> str:
        """Returns the host whose certificate was shown. Errors: Problem not_authenticated, if it was removed."""
        host = certified_host(request, self._cluster)
        if host and not self._is_known(request, host):
            raise Problem("not_authenticated", f"host {host} is not in the cluster any more")
        return host

    def _is_known(self, request: web.Request, host: str) -> bool:
        """Returns whether a host may still ask; one that was removed may connect, to be told so and to end."""
        return request.path.startswith("/v1/agent") or self._is_host(host)

    def _has_own_token(self, request: web.Request, given: bytes) -> bool:
        host = request.headers.get(HOST_HEADER, "")
        if not host.isprintable() or not host or not self._is_known(request, host):  # bytes that are no text are none
            return False
        return hmac.compare_digest(host_token(self._raft_secret, host).encode(), given)


def certified_host(request: web.Request, cluster: str) -> str:
    """Returns the host of the certificate that was shown on this connection; empty without one."""
    certificate = request.transport.get_extra_info("peercert") if request.transport is not None else None
    return host_in(certificate, cluster) if certificate else ""
