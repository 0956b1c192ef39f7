"""Who is taken as a host's agent, and when. See "Two machines under one name" in DESIGN.md."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec
from aiohttp import WSMsgType, web

from depalma import protocol
from depalma.consensus import NotLeader, OutcomeUnknown
from depalma.errors import Rejected
from depalma.leader.context import Context
from depalma.leader.leases import Leases
from depalma.leader.session import AgentSession, Goodbye
from depalma.protocol import Hello, Refused
from depalma.state.commands import HostRecovered, HostUp
from depalma.state.hosts import Host

HELLO_TIMEOUT_S = 5.0


def stranger(host: str) -> Refused:
    """Returns what an agent is told whose host is not in the cluster."""
    return Refused(f"host {host!r} is not in the cluster; add it with: depalmactl host add {host}", stop=True)


async def receive_hello(websocket: web.WebSocketResponse, host: str) -> Hello:
    """Returns the first frame of a connection that was asked for in the name of `host`. Errors: Goodbye."""
    try:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            message = await websocket.receive()
        frame = protocol.decode_from_agent(message.data) if message.type is WSMsgType.BINARY else None
    except TimeoutError:
        raise Goodbye(Refused(f"no hello within {HELLO_TIMEOUT_S} s")) from None
    except msgspec.MsgspecError as error:
        raise Goodbye(Refused(f"the hello cannot be read: {error}", stop=True)) from error
    if not isinstance(frame, Hello):
        raise Goodbye(Refused("the first frame must be a hello"))
    if frame.protocol != protocol.PROTOCOL_VERSION:
        wanted = protocol.PROTOCOL_VERSION
        raise Goodbye(Refused(f"protocol {frame.protocol} given; this master speaks {wanted}", stop=True))
    if frame.host != host:
        raise Goodbye(Refused(f"the hello names host {frame.host!r}, the request {host!r}", stop=True))
    return frame


class Admission:
    """Of one reign. `by_host` are the connections of now."""

    def __init__(self, context: Context, leases: Leases, by_host: Mapping[str, AgentSession]) -> None:
        self._context = context
        self._leases = leases
        self._by_host = by_host
        self._coming: dict[str, str] = {}  #: host → incarnation that is being recorded

    async def take_up(self, hello: Hello) -> None:
        """Brings the state's view of the host up to this incarnation, or refuses it. Errors: Goodbye."""
        name = hello.host
        host = self._context.state.hosts.get(name)
        if host is None:
            listed = any(listed.name == name for listed in self._context.config.hosts)
            if listed and name not in self._context.state.removed:
                raise Goodbye(Refused("the hosts of the cluster file are not recorded yet"))  # first moments
            raise Goodbye(stranger(name))
        if host.removing:
            raise Goodbye(Refused(f"host {name} is being removed from the cluster", stop=True))
        self._refuse_another(hello, host)
        self._coming[name] = hello.incarnation
        try:
            await self._record(hello, host)
        except Rejected as refusal:
            raise Goodbye(Refused(str(refusal), restart_incarnation=True)) from refusal
        except (NotLeader, OutcomeUnknown) as error:
            raise Goodbye(Refused(f"this master could not record the host: {error}")) from error
        finally:
            self._coming.pop(name, None)

    def _refuse_another(self, hello: Hello, host: Host) -> None:
        """Errors: Goodbye, if an agent of this host that is another one may run something now."""
        if self._coming.get(host.name, hello.incarnation) != hello.incarnation:
            raise Goodbye(Refused(f"another agent of host {host.name!r} is about to be taken"))
        if host.state not in ("up", "suspect") or host.incarnation == hello.incarnation:
            return
        now = self._context.clock()
        current = self._by_host.get(host.name)
        connected = current is not None and current.incarnation != hello.incarnation
        if hello.over is None:
            may_run = connected  # an older agent, which does not say what it knows
        else:
            # A copy of a machine may believe that it is the original: whoever is heard speaks against it.
            heard = connected and self._leases.silent_s(host.name, now) < self._leases.suspect_after_s
            may_run = heard or host.incarnation not in hello.over
        # The other one, wherever it is, may run its tasks for as long as it was told, by its own clock.
        left_s = self._leases.left_s(host.name, host.facts, now)
        if may_run and left_s >= 0:
            where = "is connected" if connected else "is not connected any more"
            raise Goodbye(
                Refused(f"another agent of host {host.name!r} {where} and may run its tasks for {left_s:.1f} s yet")
            )

    async def _record(self, hello: Hello, host: Host) -> None:
        """Errors: Rejected, NotLeader, OutcomeUnknown."""
        context = self._context
        # What a lease is must not depend on the cluster file of whoever leads when it is over.
        anew = host.incarnation != hello.incarnation or host.state in ("lost", "down") or host.facts is None
        lease_s = context.config.settings.lease_s if anew or host.facts is None else host.facts.lease_s
        facts = msgspec.structs.replace(hello.facts, lease_s=lease_s)
        # Other facts of the same agent: it has another address now, for one.
        if anew or host.facts != facts:
            self._leases.heard(hello.host, context.clock())  # or it would be lost again as soon as it is up
            up = HostUp(hello.host, hello.incarnation, facts, context.wall(), hello.code_index, hello.unreported)
            await context.execute(up)
        elif host.state == "suspect":
            await context.execute(HostRecovered(hello.host, hello.incarnation, context.wall()))
        else:
            # A welcome begins a lease, so only one who leads for certain may say it: see heartbeats.
            await context.barrier()
