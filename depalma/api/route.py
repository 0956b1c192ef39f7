"""A row of the route table: what a path does, who may, where it is answered, what it takes and gives."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from depalma.api.auth import USER, Role
from depalma.api.inputs import Body

if TYPE_CHECKING:
    from depalma.api.context import Api

Handler = Callable[["Api", web.Request], Awaitable[web.StreamResponse]]


class Mode(enum.Enum):
    """Where a request is answered."""

    LOCAL = "by any master, from what it has itself"
    READ = "by the leader after a read barrier; by any master with ?consistency=stale"
    WRITE = "by the leader"
    LEADER = "by the leader only; other masters answer 421 and name it"


#: Query parameters of every READ.
READ_QUERY = frozenset({"consistency", "wait", "index"})


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path."""

    method: str
    path: str
    handler: Handler
    mode: Mode
    summary: str
    access: frozenset[Role] = USER
    query: frozenset[str] = frozenset()
    body: Body | None = None  #: None: no body, or raw bytes
    raw_body: bool = False
    returns: Any = None  #: type of the answer, for the OpenAPI document; None = bytes or a stream
    status: int = 200
    endless: Callable[[web.Request], bool] | None = None  #: whether this request's answer is a stream: not proxied
