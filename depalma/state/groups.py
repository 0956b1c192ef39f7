"""Commands about groups. A group is the hosts that are in it: it begins with the first and ends with the last. [pure]

A job may name a group that no host is in: it waits, and `explain` says so. All or nothing: when one of the hosts is
unknown, none is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from depalma.state.checks import bad_field, bad_name
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import AddToGroup, Applied, Rejected, RemoveGroup, SetGroup
from depalma.state.hosts import Host
from depalma.state.membership import bad_groups, unknown_host

_NAMED_JOBS = 5


def set_group(state: ClusterState, command: SetGroup) -> Applied | Rejected:
    """Puts these hosts in, and all others out. Answers Applied(hosts that changed)."""
    if known := state.answers.find("set_group", command.request):
        return Applied(known.value, state.version)
    wanted = set(command.hosts)
    return _bad_group(state, command) or _change(state, command, "set_group", lambda host: host.name in wanted)


def add_to_group(state: ClusterState, command: AddToGroup) -> Applied | Rejected:
    """Puts these hosts in. Answers Applied(hosts that changed)."""
    if known := state.answers.find("add_to_group", command.request):
        return Applied(known.value, state.version)
    wanted = {*command.hosts, *members(state, command.group)}
    return _bad_group(state, command) or _change(state, command, "add_to_group", lambda host: host.name in wanted)


def remove_group(state: ClusterState, command: RemoveGroup) -> Applied | Rejected:
    """Takes these hosts out, or all. Answers Applied(hosts that changed)."""
    if known := state.answers.find("remove_group", command.request):
        return Applied(known.value, state.version)
    group = command.group
    there = members(state, group)
    if not there:
        return Rejected("unknown_group", f"there is no group {group}: no host is in it")
    if strangers := [name for name in command.hosts if name not in there]:
        return unknown_host(strangers[0]) if strangers[0] not in state.hosts else _not_in(strangers[0], group)
    left = set(there) - set(command.hosts) if command.hosts else set()
    jobs = _waiting_for(state, group) if not left and not command.force else []
    if jobs:
        more = f" and {len(jobs) - _NAMED_JOBS} more" if len(jobs) > _NAMED_JOBS else ""
        named = ", ".join(map(str, jobs[:_NAMED_JOBS])) + more
        return Rejected("group_in_use", f"no host would be left in group {group}, which queued jobs name: {named}")
    return _change(state, command, "remove_group", lambda host: host.name in left)


def members(state: ClusterState, group: str) -> list[str]:
    """Returns the names of the hosts of a group."""
    return [host.name for host in state.hosts.values() if group in host.groups]


def _bad_group(state: ClusterState, command: SetGroup | AddToGroup) -> Rejected | None:
    if wrong := bad_name("group", command.group):
        return wrong
    if not command.hosts:
        return bad_field("hosts", [], "at least one: a group is its hosts")
    for name in command.hosts:
        host = state.hosts.get(name)
        if host is None:
            return unknown_host(name)
        if command.group not in host.groups and (wrong := bad_groups((*host.groups, command.group))):
            return wrong
    return None


def _change(
    state: ClusterState, command: SetGroup | AddToGroup | RemoveGroup, kind: str, wanted: Callable[[Host], bool]
) -> Applied:
    group, changed = command.group, 0
    for host in state.hosts.values():
        inside = group in host.groups
        if wanted(host) != inside:
            host.groups = tuple(name for name in host.groups if name != group) if inside else (*host.groups, group)
            state.changes.hosts.add(host.name)
            changed += 1
    if changed:
        hosts = _listed(members(state, group))
        state.events.add("group.changed", command.at, detail={"group": group, "hosts": hosts, "changed": changed})
    state.answers.keep(kind, command.request, changed, command.at)
    return Applied(changed, state.version)


def _listed(names: Iterable[str]) -> str:
    text = ",".join(names)
    return text if len(text) <= 500 else text[:499] + "…"


def _waiting_for(state: ClusterState, group: str) -> list[int]:
    """Returns the jobs that still have tasks for the group: queued ones, or some to come."""
    return [
        job.id
        for job in state.jobs.values()
        if job.spec.group == group and not job.is_final and (job.queued or job.open)
    ]


def _not_in(host: str, group: str) -> Rejected:
    return Rejected("not_in_group", f"host {host} is not in group {group}")
