"""Hosts and groups: who belongs to the cluster and gets work. Verbs as in verbs.py."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import msgspec
from msgspec import Struct

from depalma.client.specs import login_name, texts
from depalma.client.transport import JSON, Request, segment, with_query
from depalma.client.verbs import SLICE_S, Verb, send
from depalma.model import HostView


class HostOptions(TypedDict, total=False):
    """What can be said of a host; what is not given stays as it is, or is the default of a new one."""

    groups: Sequence[str]
    labels: Mapping[str, str | None]  #: set one by one; None removes one (of a host that is there)
    priority: int  #: tasks go to hosts of the highest level first
    slots: int  #: tasks at once; 0 = what its agent says
    gpus: int  #: 0 = what its agent says
    resources: Mapping[str, int]  #: what it has so many of, set one by one; 0 removes one


class GroupView(Struct, frozen=True):
    """A group: its hosts, and their room for tasks now."""

    name: str
    hosts: tuple[str, ...]
    slots: int
    free_slots: int


class HostRemoval(Struct, frozen=True):
    """What became of a removal."""

    removed: bool
    waits_for: int  #: tasks that must be dead before it is


def host(name: str) -> Verb[HostView]:
    """Returns one host."""
    answer = yield Request("GET", f"/v1/hosts/{segment(name)}")
    return msgspec.json.decode(answer.body, type=HostView)


def add_host(name: str, options: HostOptions) -> Verb[HostView]:
    """Makes a host known."""
    return (yield from _host("POST", "/v1/hosts", {"name": name, **_plain(options)}))


def set_host(name: str, options: HostOptions) -> Verb[HostView]:
    """Changes what is given of a host."""
    return (yield from _host("PATCH", f"/v1/hosts/{segment(name)}", _plain(options)))


def set_owner(name: str, changes: Mapping[str, Any]) -> Verb[HostView]:
    """Changes what the owner of a host allows."""
    return (yield from _host("PATCH", f"/v1/hosts/{segment(name)}/owner", dict(changes)))


def remove_host(name: str, force: bool) -> Verb[HostRemoval]:
    """Takes a host off the list."""
    path = with_query(f"/v1/hosts/{segment(name)}", {"force": force, "by": login_name()})
    return msgspec.convert((yield from send("DELETE", path, None)), HostRemoval)


def drain_host(name: str, deadline_s: float | None, reason: str) -> Verb[HostView]:
    """Stops giving work to a host."""
    body = {"deadline_s": deadline_s, "reason": reason, "by": login_name()}
    return (yield from _host("POST", f"/v1/hosts/{segment(name)}/drain", body))


def undrain_host(name: str) -> Verb[HostView]:
    """Gives a host work again."""
    return (yield from _host("POST", f"/v1/hosts/{segment(name)}/undrain", None))


def wait_drained(name: str, timeout_s: float | None) -> Verb[HostView]:
    """Returns the host when nothing of its work is left. Errors: TimeoutError."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        slice_s = SLICE_S if deadline is None else max(0.0, min(SLICE_S, deadline - time.monotonic()))
        path = with_query(f"/v1/hosts/{segment(name)}", {"wait": f"{slice_s:.3f}s", "until": "drained"})
        answer = yield Request("GET", path, wait_s=slice_s)
        view = msgspec.json.decode(answer.body, type=HostView)
        if view.state != "draining" and not view.running:
            return view
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(f"host {name} is {view.state} after {timeout_s:g} s, with {view.running} tasks")


def groups() -> Verb[list[GroupView]]:
    """Returns the groups."""

    class _Page(Struct):
        groups: list[GroupView]

    answer = yield Request("GET", "/v1/groups")
    return msgspec.json.decode(answer.body, type=_Page).groups


def set_group(name: str, hosts: Sequence[str]) -> Verb[list[str]]:
    """Says which hosts a group has."""
    return (yield from _members("PUT", f"/v1/groups/{segment(name)}", hosts))


def add_to_group(name: str, hosts: Sequence[str]) -> Verb[list[str]]:
    """Puts hosts into a group."""
    return (yield from _members("POST", f"/v1/groups/{segment(name)}/hosts", hosts))


def remove_group(name: str, hosts: Sequence[str], force: bool) -> Verb[list[str]]:
    """Takes hosts out of a group, or all of them."""
    query = {"force": force, "hosts": ",".join(texts("hosts", hosts)) or None}
    return (yield from _members("DELETE", with_query(f"/v1/groups/{segment(name)}", query), None))


def _members(method: str, path: str, hosts: Sequence[str] | None) -> Verb[list[str]]:
    answer = yield from send(method, path, None if hosts is None else {"hosts": texts("hosts", hosts)})
    return [str(name) for name in answer["hosts"]]


def _host(method: str, path: str, body: object) -> Verb[HostView]:
    data = b"" if body is None else msgspec.json.encode(body)
    answer = yield Request(method, path, data, JSON if data else "")
    return msgspec.json.decode(answer.body, type=HostView)


def _plain(options: HostOptions) -> dict[str, Any]:
    plain: dict[str, Any] = dict(options)
    if "groups" in plain:
        plain["groups"] = texts("groups", plain["groups"])
    return plain
