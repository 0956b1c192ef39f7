"""What every handler gets: the services, the answers' common form, waiting for a change."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from depalma.api.auth import Authorisation
from depalma.api.inputs import query_integer, query_wait_s, read_body
from depalma.api.problems import Problem
from depalma.leader.hub import ANY, LEADER, Key
from depalma.masters import known_masters, urls
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import AnyCommand, Applied

if TYPE_CHECKING:
    from depalma.api.forward import Forwarder
    from depalma.api.route import Route
    from depalma.api.services import Services
    from depalma.api.streams import Streams
    from depalma.api.totals import Totals

LEADER_WAIT_S = 2.0
LOOK_S = 0.02
_json = msgspec.json.Encoder()
_msgpack = msgspec.msgpack.Encoder()


class Api:
    """The HTTP interface of one master."""

    def __init__(
        self, services: Services, forwarder: Forwarder, streams: Streams, totals: Totals, routes: Sequence[Route]
    ) -> None:
        self.services = services
        self.forwarder = forwarder
        self.streams = streams
        self.totals = totals
        self.routes = routes
        self.routes_by_handler: dict[Any, Route] = {}
        self.stopping = False  #: endless answers end now
        self.authorisation = Authorisation(
            services.secrets, services.config.cluster, lambda host: host in self.state.hosts
        )
        self.requests: dict[int, int] = {}  #: answers by status, for the metrics
        self._masters_told: tuple[object, str] = (None, "")

    @property
    def state(self) -> ClusterState:
        """The replicated state."""
        return self.services.machine.state

    @property
    def leads(self) -> bool:
        """Whether this master leads, as far as it knows."""
        return self.services.replica.is_leader

    def leader_url(self) -> str:
        """Returns the leader's base URL, or nothing."""
        return urls(self.state, self.services.config).get(self.services.replica.leader_id or "", "")

    def master_urls(self) -> str:
        """Returns the base URLs of all masters, separated by commas: clients that live long learn of new ones."""
        masters = self.state.masters
        if masters is not self._masters_told[0]:
            self._masters_told = masters, ",".join(urls(self.state, self.services.config).values())
        return self._masters_told[1]

    async def leader(self) -> str:
        """Returns the leader's id, after waiting a moment for one if there is none. Errors: Problem no_leader."""
        replica, own = self.services.replica, self.services.master_id
        deadline = time.monotonic() + LEADER_WAIT_S
        # Itself counts only once it has applied its past: until then it cannot answer either.
        while not replica.is_leader and replica.leader_id in (None, own) and time.monotonic() < deadline:
            # The hub tells of this master's own reigns only; who else was elected has to be looked at.
            await self.services.hub.wait((LEADER,), LOOK_S)
        if replica.is_leader:
            return own
        if replica.leader_id in (None, own):
            masters = len(known_masters(self.state, self.services.config))
            raise Problem("no_leader", f"no leader among the {masters} masters now; a majority of them must be up")
        return replica.leader_id

    async def body(self, request: web.Request) -> bytes:
        """Returns the request's body. Errors: Problem too_large, body_timeout."""
        return await read_body(request, self.services.config.settings.max_body_bytes)

    async def execute(self, command: AnyCommand) -> Applied:
        """Commits a command. Errors: Rejected, NotLeader, OutcomeUnknown."""
        return await self.services.execute(command)

    async def wait_until(self, ready: Callable[[], bool], keys: Collection[Key], wait_s: float) -> bool:
        """Waits for a change that makes `ready()` true.

        A wait that began on a leader ends when it leads no more: its state may stand still. So does any wait when
        the master stops. Errors: Problem no_leader.
        """
        if wait_s <= 0 or ready():
            return ready()
        led = self.leads

        def over() -> bool:
            return self.stopping or (led and not self.leads)

        done = await self.services.hub.wait_until(lambda: ready() or over(), (*keys, LEADER), wait_s)
        if done and not ready():
            why = "is being stopped" if self.stopping else "stopped leading"
            raise Problem("no_leader", f"this master {why} while the request waited; ask again")
        return done

    async def wait_for_index(self, request: web.Request) -> None:
        """Serves `?wait=30s&index=N`: returns when the state is newer than N, or the time is over."""
        index, wait_s = query_integer(request, "index", 0), query_wait_s(request)
        if "index" in request.query:
            await self.wait_until(lambda: self.state.version > index, (ANY,), wait_s)

    def reply(
        self,
        request: web.Request,
        value: Any,
        *,
        status: int = 200,
        version: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> web.Response:
        """Returns `value` as JSON, or as msgpack if the request asks for it."""
        # Set here, with the value: a later change must not make this answer look newer than it is.
        given = {"Depalma-Index": str(self.state.version if version is None else version), **(headers or {})}
        if "msgpack" in request.headers.get("Accept", ""):
            given["Content-Type"] = "application/msgpack"
            return web.Response(status=status, body=_msgpack.encode(value), headers=given)
        given["Content-Type"] = "application/json"
        return web.Response(status=status, body=_json.encode(value), headers=given)


def now() -> float:
    """Returns seconds since the epoch, for the `at` of commands."""
    return time.time()
