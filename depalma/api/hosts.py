"""/v1/hosts, /v1/groups, /v1/load, /v1/ps: the workstations."""

from __future__ import annotations

from aiohttp import web

from depalma.api.context import Api
from depalma.api.inputs import duration_s, query_choice, query_wait_s
from depalma.api.jobs import find_job
from depalma.api.problems import Problem, shown
from depalma.api.route import READ_QUERY, Mode, Route
from depalma.api.shapes import Group, GroupList, HostList, HostLoad, LoadList, ProcessList
from depalma.leader.hub import HOSTS
from depalma.model import HostView, LoadHistory
from depalma.state.hosts import Host
from depalma.state.views import host_view

#: A host that does not answer is named within a second, everything around the question included.
ASK_S = 0.8
HISTORY_S = 3600.0  #: what agents keep


def view_of(api: Api, host: Host) -> HostView:
    """Returns a host with what the leader measures of it."""
    sessions = api.services.sessions
    return host_view(api.state, host, sessions.load_of(host.name), sessions.last_seen_s(host.name))


async def listing(api: Api, request: web.Request) -> web.StreamResponse:
    """Lists the hosts."""
    return api.reply(request, HostList([view_of(api, host) for host in api.state.hosts.values()]))


def find_host(api: Api, name: str) -> Host:
    """Returns the host of a name. Errors: Problem unknown_host."""
    host = api.state.hosts.get(name)
    if host is None:
        names = ", ".join(list(api.state.hosts)[:20]) or "none"
        raise Problem("unknown_host", f"there is no host {shown(name)}; there are: {names}")
    return host


async def show(api: Api, request: web.Request) -> web.StreamResponse:
    """Shows a host, now or once it is drained."""
    name = request.match_info["host"]
    find_host(api, name)
    if query_choice(request, "until", ("drained",)):

        def ready() -> bool:
            host = api.state.hosts.get(name)
            return host is None or host.drain is None or host.drain.done_at is not None

        await api.wait_until(ready, (HOSTS,), query_wait_s(request))
    return api.reply(request, view_of(api, find_host(api, name)))


def _members(api: Api) -> dict[str, list[Host]]:
    members: dict[str, list[Host]] = {}
    for host in api.state.hosts.values():
        for group in host.groups:
            members.setdefault(group, []).append(host)
    return dict(sorted(members.items()))


def _group(name: str, hosts: list[Host]) -> Group:
    free = sum(max(0, int(host.slots - host.used)) for host in hosts if host.takes_work)
    return Group(name, [host.name for host in hosts], sum(host.slots for host in hosts), free)


async def groups(api: Api, request: web.Request) -> web.StreamResponse:
    """Lists the groups, with their hosts and their room."""
    return api.reply(request, GroupList([_group(name, hosts) for name, hosts in _members(api).items()]))


async def group(api: Api, request: web.Request) -> web.StreamResponse:
    """Shows a group."""
    name, members = request.match_info["group"], _members(api)
    if name not in members:
        names = ", ".join(list(members)[:20]) or "none"
        raise Problem("unknown_group", f"there is no group {shown(name)}; there are: {names}")
    return api.reply(request, _group(name, members[name]))


async def load(api: Api, request: web.Request) -> web.StreamResponse:
    """Shows the measured load of every host or of one, now, or also over the last time."""
    name, last = request.query.get("host"), request.query.get("history")
    last_s = None if last is None else duration_s(last, "history", most_s=HISTORY_S)
    hosts = list(api.state.hosts.values()) if name is None else [find_host(api, name)]
    views = [view_of(api, host) for host in hosts]
    histories: dict[str, LoadHistory] = {}
    missing: list[str] = []
    if last_s is not None:
        names = [view.name for view in views]
        histories, missing = await api.services.sessions.questions.load_history(names, last_s, ASK_S)
    rows = [HostLoad(v.name, v.state, v.slots, v.running, v.load, histories.get(v.name)) for v in views]
    return api.reply(request, LoadList(rows, missing))


async def processes(api: Api, request: web.Request) -> web.StreamResponse:
    """Asks the hosts for the processes of tasks."""
    text = request.query.get("job")
    job = find_job(api, text).id if text is not None else None
    found, missing = await api.services.sessions.questions.processes(job, ASK_S)
    return api.reply(request, ProcessList(found, missing))


ROUTES = (
    Route("GET", "/v1/hosts", listing, Mode.READ, "List the hosts", query=READ_QUERY, returns=HostList),
    Route("GET", "/v1/hosts/{host}", show, Mode.READ, "Show a host, or wait until it is drained",
          query=READ_QUERY | {"until"}, returns=HostView),
    Route("GET", "/v1/groups", groups, Mode.READ, "List the groups", query=READ_QUERY, returns=GroupList),
    Route("GET", "/v1/groups/{group}", group, Mode.READ, "Show a group", query=READ_QUERY, returns=Group),
    Route("GET", "/v1/load", load, Mode.READ, "Show the load of hosts, now or also over the last time",
          query=READ_QUERY | {"host", "history"}, returns=LoadList),
    Route("GET", "/v1/ps", processes, Mode.READ, "Show processes of tasks as their hosts see them",
          query=READ_QUERY | {"job"}, returns=ProcessList),
)  # fmt: skip
