"""/v1/overview, health: the cluster itself, and what its masters say of themselves."""

from __future__ import annotations

import asyncio

import aiohttp
import msgspec
from aiohttp import web

import depalma
from depalma.api.auth import ANYBODY, MASTER
from depalma.api.context import Api
from depalma.api.hosts import view_of
from depalma.api.route import READ_QUERY, Mode, Route
from depalma.api.shapes import Health, MasterStatus, Overview, RatesView
from depalma.blobs import master_token
from depalma.masters import known_masters
from depalma.model import MasterAddress, MasterView
from depalma.state.events import events_after, newest
from depalma.trust import verifying

ASK_MASTER_S = 0.5
#: A master that has this many committed entries still to apply is not ready.
READY_BACKLOG = 1000
_status = msgspec.json.Decoder(MasterStatus)


def own_view(api: Api) -> MasterView:
    """Returns this master as it sees itself."""
    services = api.services
    replica = services.replica
    role = "leader" if replica.is_leader else "follower" if replica.leader_id is not None else "candidate"
    return MasterView(
        id=services.master_id,
        url=services.config.url(services.config.master(services.master_id)),
        role=role,  # type: ignore[arg-type]
        term=replica.term,
        commit_index=replica.commit_index,
        applied_index=replica.applied_index,
        state_hash=services.machine.state_hash,
        last_contact_s=0.0,
        version=depalma.__version__,
    )


def own_status(api: Api) -> MasterStatus:
    """Returns what this master tells the others."""
    return MasterStatus(own_view(api), dict(api.services.replica.contacts()))


async def status(api: Api, request: web.Request) -> web.StreamResponse:
    """Tells another master how this one is."""
    return api.reply(request, own_status(api))


async def master_views(api: Api) -> list[MasterView]:
    """Asks all masters; those that do not answer in half a second are unreachable."""
    masters = known_masters(api.state, api.services.config)
    answers = await asyncio.gather(*(_ask(api, master) for master in masters))
    contacts: dict[str, float | None] = {}
    term = -1
    for answer in answers:
        if answer is not None and answer.view.role == "leader" and answer.view.term > term:
            term, contacts = answer.view.term, answer.contacts
    return [
        _unreachable(master, api.services.config.url(master), contacts.get(master.id))
        if answer is None
        else msgspec.structs.replace(answer.view, last_contact_s=contacts.get(master.id, answer.view.last_contact_s))
        for master, answer in zip(masters, answers, strict=True)
    ]


async def _ask(api: Api, master: MasterAddress) -> MasterStatus | None:
    if master.id == api.services.master_id:
        return own_status(api)
    headers = {"Authorization": f"Bearer {master_token(api.services.secrets.raft_secret)}"}
    timeout = aiohttp.ClientTimeout(total=ASK_MASTER_S)
    try:
        url = f"{api.services.config.url(master)}/internal/status"
        async with api.forwarder.http().get(
            url, headers=headers, timeout=timeout, allow_redirects=False, ssl=verifying(api.services.trust)
        ) as answer:
            return _status.decode(await answer.read()) if answer.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError):
        return None


def _unreachable(master: MasterAddress, url: str, last_contact_s: float | None) -> MasterView:
    return MasterView(
        id=master.id,
        url=url,
        role="unreachable",
        term=0,
        commit_index=0,
        applied_index=0,
        state_hash="",
        last_contact_s=last_contact_s,
        version="",
    )


async def overview(api: Api, request: web.Request) -> web.StreamResponse:
    """Shows everything at a glance, for `top`."""
    services = api.services
    views = await master_views(api)
    state = api.state
    await api.totals.refresh(state)
    latest = newest(state)
    return api.reply(
        request,
        Overview(
            cluster=services.config.cluster,
            leader=services.replica.leader_id or "",
            term=services.replica.term,
            index=state.version,
            masters=views,
            hosts=[view_of(api, host) for host in state.hosts.values()],
            tasks=dict(api.totals.tasks),
            jobs=dict(api.totals.jobs),
            rates=RatesView(services.rates.finished_per_s(), services.rates.submitted_per_s()),
            events=events_after(state, max(0, latest - 20), 20),
        ),
    )


async def healthy(api: Api, request: web.Request) -> web.StreamResponse:
    """Says that the process turns."""
    return api.reply(request, Health(True))


async def ready(api: Api, request: web.Request) -> web.StreamResponse:
    """Says whether this master can serve: it knows a leader, counts in elections and is up to date."""
    replica = api.services.replica
    backlog = replica.commit_index - replica.applied_index
    if replica.leader_id is None:
        return api.reply(request, Health(False, "no leader is known"), status=503)
    if not replica.has_joined:
        return api.reply(request, Health(False, "it does not yet hold what the others have committed"), status=503)
    if backlog > READY_BACKLOG:
        return api.reply(request, Health(False, f"{backlog} entries are still to be applied"), status=503)
    return api.reply(request, Health(True))


ROUTES = (
    Route("GET", "/v1/overview", overview, Mode.READ, "Everything at a glance", query=READ_QUERY, returns=Overview),
    Route("GET", "/healthz", healthy, Mode.LOCAL, "Whether the process turns", access=ANYBODY, returns=Health),
    Route("GET", "/readyz", ready, Mode.LOCAL, "Whether it can serve", access=ANYBODY, returns=Health),
    Route("GET", "/internal/status", status, Mode.LOCAL, "How this master is, for the others", access=MASTER,
          returns=MasterStatus),
)  # fmt: skip
