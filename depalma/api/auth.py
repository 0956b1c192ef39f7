"""Who asks: bearer tokens, compared in constant time, and what each may do."""

from __future__ import annotations

import hmac
from typing import Literal

from aiohttp import web

from depalma.api.problems import Problem
from depalma.blobs import master_token
from depalma.config import Secrets

Role = Literal["user", "agent", "master"]

USER: frozenset[Role] = frozenset({"user"})
AGENT: frozenset[Role] = frozenset({"agent"})
USER_OR_AGENT: frozenset[Role] = frozenset({"user", "agent"})
MASTER: frozenset[Role] = frozenset({"master"})
#: No token needed.
ANYBODY: frozenset[Role] = frozenset()


class Authorisation:
    """Knows the tokens of one cluster."""

    def __init__(self, secrets: Secrets) -> None:
        self._tokens: tuple[tuple[bytes, Role], ...] = (
            (secrets.token.encode(), "user"),
            (secrets.agent_token.encode(), "agent"),
            (master_token(secrets.raft_secret).encode(), "master"),
        )

    def check(self, request: web.Request, allowed: frozenset[Role]) -> None:
        """Returns if the request's token has one of the roles. Errors: Problem not_authenticated, not_authorised."""
        header = request.headers.get("Authorization", "")
        if not header.startswith("Bearer "):
            raise Problem("not_authenticated", "a token is needed: send the header `Authorization: Bearer TOKEN`")
        given = header[7:].strip().encode("utf-8", "surrogateescape")
        role: Role | None = None
        for token, owner in self._tokens:  # all of them, so that the time tells nothing
            if hmac.compare_digest(token, given):
                role = owner
        if role is None:
            raise Problem("not_authenticated", "the token is not one of this cluster's")
        if role not in allowed:
            owners = " or ".join(sorted(allowed))
            raise Problem("not_authorised", f"{request.path} is for the {owners} token, not for the {role} token")
