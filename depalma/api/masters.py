"""/v1/masters: who the masters are, and changing that while they run."""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from depalma.api.cluster import master_views
from depalma.api.context import Api, now
from depalma.api.inputs import Body, idempotency_key
from depalma.api.problems import Problem, bad_field, shown
from depalma.api.route import Mode, Route
from depalma.api.shapes import LeaderView, MasterList, MasterPlace, MasterPlaces, MasterToAdd, MasterToMove
from depalma.consensus import Member, MembershipRefused
from depalma.leader.hub import LEADER
from depalma.masters import known_masters
from depalma.model import MasterAddress
from depalma.state.checks import bad_name
from depalma.state.commands import ChangeMasters, encode

#: A master that joins may take so long for one request; then it is asked for again.
MOST_WAIT_S = 10.0
#: For a new leader to be seen after the old one gave way.
SEE_LEADER_S = 2.0
LOOK_S = 0.02
_ADD, _MOVE = Body(MasterToAdd), Body(MasterToMove)


async def listing(api: Api, request: web.Request) -> web.StreamResponse:
    """Lists the masters; also without a leader."""
    return api.reply(request, MasterList(await master_views(api)))


async def add(api: Api, request: web.Request) -> web.StreamResponse:
    """Adds a master that runs and waits to join; answers when it counts. Asking again for the same is harmless."""
    wanted: MasterToAdd = _ADD.decode(request, await api.body(request))
    wrong = bad_name("id", wanted.id)
    if wrong is not None:
        raise Problem(wrong.code, wrong.message)
    if not 0 <= wanted.wait_s <= MOST_WAIT_S:
        raise bad_field("wait_s", wanted.wait_s, f"0 to {MOST_WAIT_S:g}")
    new = _checked(MasterAddress(wanted.id, wanted.host, wanted.port, wanted.raft_port))
    masters = _masters(api)
    known = masters.get(new.id)
    if known is not None and known != new:
        raise Problem("name_taken", f"there is a master {new.id} at {known.host}; to move it, change its address")
    if known is None:
        await _change(api, request, {**masters, new.id: new}, wanted.wait_s)
    return api.reply(request, _places(api), status=201)


async def move(api: Api, request: web.Request) -> web.StreamResponse:
    """Says where a master is from now on; it must be started there."""
    wanted: MasterToMove = _MOVE.decode(request, await api.body(request))
    master = _find(api, request)
    new = _checked(
        MasterAddress(
            master.id,
            master.host if wanted.host is None else wanted.host,
            master.port if wanted.port is None else wanted.port,
            master.raft_port if wanted.raft_port is None else wanted.raft_port,
        )
    )
    if new != master:
        await _change(api, request, {**_masters(api), new.id: new}, MOST_WAIT_S)
    return api.reply(request, _places(api))


async def remove(api: Api, request: web.Request) -> web.StreamResponse:
    """Removes a master; a leader first lets another one lead."""
    done = api.state.answers.find("change_masters", idempotency_key(request))
    if done is None or request.match_info["master"] in _masters(api):
        master = _find(api, request)
        others = {name: known for name, known in _masters(api).items() if name != master.id}
        if not others:
            raise Problem("last_master", f"{master.id} is the only master; stop it instead")
        if master.id == api.services.master_id:
            successor = await api.services.replica.hand_over()
            raise Problem("no_leader", f"{master.id} has handed over to {successor}, which can remove it; ask again")
        await _change(api, request, others, MOST_WAIT_S)
    return api.reply(request, _places(api))


async def transfer(api: Api, request: web.Request) -> web.StreamResponse:
    """Lets another master lead."""
    target = _find(api, request).id
    replica = api.services.replica
    if target != api.services.master_id:
        await replica.hand_over(target)
        deadline = time.monotonic() + SEE_LEADER_S
        while replica.leader_id != target:
            if time.monotonic() > deadline:
                leader = replica.leader_id or "nobody"
                raise Problem("transfer_failed", f"{target} was to lead, but {leader} does now; ask again")
            await api.services.hub.wait((LEADER,), LOOK_S)
    return api.reply(request, LeaderView(target))


async def _change(api: Api, request: web.Request, masters: dict[str, MasterAddress], wait_s: float) -> None:
    members = tuple(Member(id=m.id, host=m.host, raft_port=m.raft_port, port=m.port) for m in masters.values())
    command = encode(ChangeMasters(idempotency_key(request), tuple(masters.values()), now()))
    deadline = time.monotonic() + wait_s
    while True:
        left_s = max(0.0, deadline - time.monotonic())
        try:
            await api.services.replica.change_members(members, command, timeout_s=left_s)
            return
        except MembershipRefused as error:
            if error.code != "busy" or not left_s:
                raise
            await asyncio.sleep(LOOK_S)


def _masters(api: Api) -> dict[str, MasterAddress]:
    return {master.id: master for master in known_masters(api.state, api.services.config)}


def _find(api: Api, request: web.Request) -> MasterAddress:
    name, masters = request.match_info["master"], _masters(api)
    if name not in masters:
        raise Problem("unknown_master", f"there is no master {shown(name)}; there are: {', '.join(masters)}")
    return masters[name]


def _checked(master: MasterAddress) -> MasterAddress:
    if not _is_place(master.host):
        raise bad_field("host", master.host, "a name or an address")
    for field, port in (("port", master.port), ("raft_port", master.raft_port)):
        if not 1 <= port <= 65535:
            raise bad_field(field, port, "1 to 65535")
    if master.port == master.raft_port:
        raise bad_field("raft_port", master.raft_port, "another port than `port`")
    return master


def _is_place(host: str) -> bool:
    """Returns whether it can be looked up, and is nothing but the host in a URL."""
    try:
        host.encode("idna")  # what every look-up begins with
    except UnicodeError:
        return False
    return 1 <= len(host) <= 255 and host.isprintable() and not set(" /?#@[]\\%") & set(host)


def _places(api: Api) -> MasterPlaces:
    return MasterPlaces(
        [
            MasterPlace(m.id, api.services.config.url(m), f"{m.host}:{m.raft_port}")
            for m in known_masters(api.state, api.services.config)
        ]
    )


_LIST_QUERY = frozenset({"consistency"})  #: there is nothing to wait for: it is not of one moment of the log

ROUTES = (
    Route("GET", "/v1/masters", listing, Mode.LOCAL, "List the masters", query=_LIST_QUERY, returns=MasterList),
    Route("POST", "/v1/masters", add, Mode.WRITE, "Add a master that waits to join", body=_ADD, returns=MasterPlaces,
          status=201),
    Route("PATCH", "/v1/masters/{master}", move, Mode.WRITE, "Say where a master is from now on", body=_MOVE,
          returns=MasterPlaces),
    Route("DELETE", "/v1/masters/{master}", remove, Mode.WRITE, "Remove a master", returns=MasterPlaces),
    Route("POST", "/v1/masters/{master}/transfer", transfer, Mode.WRITE, "Let this master lead", returns=LeaderView),
)  # fmt: skip
