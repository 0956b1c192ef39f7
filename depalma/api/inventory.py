"""/v1/hosts and /v1/groups, the writes: which hosts there are, what they have, which get work."""

from __future__ import annotations

import msgspec
from aiohttp import web

from depalma.api.context import Api, now
from depalma.api.hosts import find_host, view_of
from depalma.api.inputs import Body, idempotency_key, query_flag
from depalma.api.problems import Problem, bad_field
from depalma.api.route import Mode, Route
from depalma.api.shapes import DrainToBegin, GroupChanged, GroupHosts, HostChange, HostRemoved, HostToAdd, OwnerChange
from depalma.model import HostView
from depalma.state.checks import bad_range
from depalma.state.commands import (
    AddHost,
    AddToGroup,
    Applied,
    DrainHost,
    RemoveGroup,
    RemoveHost,
    SetGroup,
    SetHost,
    SetOwner,
    UndrainHost,
)
from depalma.state.groups import members

MAX_DEADLINE_S = 366 * 86_400.0
_ADD = Body(HostToAdd)
_CHANGE = Body(HostChange)
_DRAIN = Body(DrainToBegin)
_HOSTS = Body(GroupHosts)
_OWNER = Body(OwnerChange)


async def add(api: Api, request: web.Request) -> web.StreamResponse:
    """Makes a host known; its agent may come before or after."""
    wanted: HostToAdd = _ADD.decode(request, await api.body(request))
    _check_labels(wanted.labels)
    applied = await api.execute(
        AddHost(
            idempotency_key(request), wanted.name, wanted.groups, wanted.labels, wanted.priority, wanted.slots,
            wanted.gpus, now(), from_file=False, resources=wanted.resources,
        )
    )  # fmt: skip
    return _host(api, request, wanted.name, applied, status=201, headers={"Location": f"/v1/hosts/{wanted.name}"})


async def change(api: Api, request: web.Request) -> web.StreamResponse:
    """Changes what is given of a host."""
    name = request.match_info["host"]
    wanted: HostChange = _CHANGE.decode(request, await api.body(request))
    labels = {key: value for key, value in wanted.labels.items() if value is not None}
    _check_labels(labels)
    dropped = tuple(key for key, value in wanted.labels.items() if value is None)
    applied = await api.execute(
        SetHost(
            idempotency_key(request), name, now(), wanted.groups, wanted.priority, wanted.slots, wanted.gpus, labels,
            dropped, wanted.resources,
        )
    )  # fmt: skip
    return _host(api, request, name, applied)


async def set_owner(api: Api, request: web.Request) -> web.StreamResponse:
    """Changes what the owner of a host allows."""
    name = request.match_info["host"]
    wanted: OwnerChange = _OWNER.decode(request, await api.body(request))
    changes = {field: value for field, value in msgspec.structs.asdict(wanted).items() if value is not msgspec.UNSET}
    return _host(api, request, name, await api.execute(SetOwner(idempotency_key(request), name, changes, now())))


async def reset_owner(api: Api, request: web.Request) -> web.StreamResponse:
    """The machine has no owner to look after any more."""
    name = request.match_info["host"]
    return _host(api, request, name, await api.execute(SetOwner(idempotency_key(request), name, {}, now(), anew=True)))


async def remove(api: Api, request: web.Request) -> web.StreamResponse:
    """Takes a host off the list."""
    name, by = request.match_info["host"], request.query.get("by", "")
    applied = await api.execute(RemoveHost(idempotency_key(request), name, query_flag(request, "force"), now(), by))
    assert isinstance(applied.value, int)
    return api.reply(request, HostRemoved(not applied.value, applied.value), version=applied.version)


async def drain(api: Api, request: web.Request) -> web.StreamResponse:
    """Stops giving work to a host."""
    name = request.match_info["host"]
    wanted: DrainToBegin = _DRAIN.decode(request, await api.body(request) or b"{}")
    deadline_at = None
    if wanted.deadline_s is not None:
        if wrong := bad_range("deadline_s", wanted.deadline_s, 0, MAX_DEADLINE_S):
            raise Problem(wrong.code, wrong.message)
        deadline_at = now() + wanted.deadline_s
    applied = await api.execute(DrainHost(idempotency_key(request), name, deadline_at, now(), wanted.reason, wanted.by))
    return _host(api, request, name, applied)


async def undrain(api: Api, request: web.Request) -> web.StreamResponse:
    """Gives a host work again."""
    name = request.match_info["host"]
    return _host(api, request, name, await api.execute(UndrainHost(idempotency_key(request), name, now())))


def _host(
    api: Api,
    request: web.Request,
    name: str,
    applied: Applied,
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> web.StreamResponse:
    view = view_of(api, find_host(api, name))
    return api.reply(request, view, status=status, version=applied.version, headers=headers)


def _check_labels(labels: dict[str, str]) -> None:
    for key in labels:
        if not key or "=" in key or not key.isprintable():
            raise bad_field("labels", key, "names that are not empty and have no '='")


async def set_group(api: Api, request: web.Request) -> web.StreamResponse:
    """Says which hosts a group has."""
    wanted: GroupHosts = _HOSTS.decode(request, await api.body(request))
    name = request.match_info["group"]
    return _group(api, request, name, await api.execute(SetGroup(idempotency_key(request), name, wanted.hosts, now())))


async def add_to_group(api: Api, request: web.Request) -> web.StreamResponse:
    """Puts hosts into a group."""
    wanted: GroupHosts = _HOSTS.decode(request, await api.body(request))
    name = request.match_info["group"]
    applied = await api.execute(AddToGroup(idempotency_key(request), name, wanted.hosts, now()))
    return _group(api, request, name, applied)


async def remove_group(api: Api, request: web.Request) -> web.StreamResponse:
    """Takes hosts out of a group, or all of them."""
    name, listed = request.match_info["group"], request.query.get("hosts")
    hosts = tuple(listed.split(",")) if listed is not None else ()
    applied = await api.execute(RemoveGroup(idempotency_key(request), name, hosts, query_flag(request, "force"), now()))
    return _group(api, request, name, applied)


def _group(api: Api, request: web.Request, name: str, applied: Applied) -> web.StreamResponse:
    assert isinstance(applied.value, int)
    answer = GroupChanged(members(api.state, name), applied.value)
    return api.reply(request, answer, version=applied.version)


ROUTES = (
    Route("POST", "/v1/hosts", add, Mode.WRITE, "Add a host", body=_ADD, returns=HostView, status=201),
    Route("PATCH", "/v1/hosts/{host}", change, Mode.WRITE, "Change groups, labels, priority, slots or GPUs of a host",
          body=_CHANGE, returns=HostView),
    Route("DELETE", "/v1/hosts/{host}", remove, Mode.WRITE, "Remove a host", query=frozenset({"force", "by"}),
          returns=HostRemoved),
    Route("POST", "/v1/hosts/{host}/drain", drain, Mode.WRITE, "Stop giving work to a host", body=_DRAIN,
          returns=HostView),
    Route("POST", "/v1/hosts/{host}/undrain", undrain, Mode.WRITE, "Give a host work again", returns=HostView),
    Route("PATCH", "/v1/hosts/{host}/owner", set_owner, Mode.WRITE, "Change what the owner of a host allows",
          body=_OWNER, returns=HostView),
    Route("DELETE", "/v1/hosts/{host}/owner", reset_owner, Mode.WRITE, "Forget what the owner of a host allows",
          returns=HostView),
    Route("PUT", "/v1/groups/{group}", set_group, Mode.WRITE, "Say which hosts a group has", body=_HOSTS,
          returns=GroupChanged),
    Route("POST", "/v1/groups/{group}/hosts", add_to_group, Mode.WRITE, "Put hosts into a group", body=_HOSTS,
          returns=GroupChanged),
    Route("DELETE", "/v1/groups/{group}", remove_group, Mode.WRITE, "Take hosts out of a group, or all of them",
          query=frozenset({"force", "hosts"}), returns=GroupChanged),
)  # fmt: skip
