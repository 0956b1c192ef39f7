"""Commands about the list of hosts: change one, remove one. [pure]

What runs on a host is never touched by them: a removed host's attempts are lost only by the rules that hold for every
lost host.
"""

from __future__ import annotations

from depalma.state.checks import bad_field, bad_resources
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import Applied, Rejected, RemoveHost, SetHost
from depalma.state.hosts import Host
from depalma.state.membership import bad_groups, bad_labels, bad_numbers, unknown_host

_MAX_BY = 200


def set_host(state: ClusterState, command: SetHost) -> Applied | Rejected:
    """Changes groups, labels, priority level, slots or GPUs; effective with the next placement."""
    if known := state.answers.find("set_host", command.request):
        return Applied(known.value, state.version)
    host = host_that_stays(state, command.host)
    if isinstance(host, Rejected):
        return host
    labels = {key: value for key, value in host.labels.items() if key not in command.drop_labels} | command.labels
    wrong = bad_groups(command.groups or ()) or bad_labels(labels)
    wrong = wrong or bad_numbers(command.slots, command.gpus, command.priority)
    resources = {name: number for name, number in {**host.resources, **command.resources}.items() if number}
    if wrong := wrong or bad_resources(command.resources) or bad_resources(resources):
        return wrong
    changed = _change(host, command, labels, resources)
    if changed:
        state.events.add("host.changed", command.at, host=host.name, detail={"fields": ",".join(changed)})
        state.changes.hosts.add(host.name)
    state.answers.keep("set_host", command.request, None, command.at)
    return Applied(None, state.version)


def _change(host: Host, command: SetHost, labels: dict[str, str], resources: dict[str, int]) -> list[str]:
    """Takes the values over; returns the names of those that differ."""
    changed = []
    for field, name, value in (
        ("groups", "groups", command.groups),
        ("labels", "labels", labels),
        ("priority", "priority", command.priority),
        ("slots", "configured_slots", command.slots),
        ("gpus", "gpus", command.gpus),
        ("resources", "resources", resources),
    ):
        if value is not None and value != getattr(host, name):
            setattr(host, name, value)
            changed.append(field)
    return changed


def remove_host(state: ClusterState, command: RemoveHost) -> Applied | Rejected:
    """Removes a host now, or with `force` once nothing of it can live. Answers Applied(attempts it waits for)."""
    if known := state.answers.find("remove_host", command.request):
        return Applied(known.value, state.version)
    host = state.hosts.get(command.host)
    if host is None:
        return unknown_host(command.host)
    if len(command.by) > _MAX_BY:
        return bad_field("by", command.by, f"at most {_MAX_BY} characters")
    live = len(host.attempts)
    if live and not command.force:
        tasks = f"{live} task{'s' if live > 1 else ''}"
        return Rejected("host_busy", f"host {host.name} has {tasks}; drain it first, or force: then they run elsewhere")
    if not host.removing:
        host.removing = f"removed{' by ' + command.by if command.by else ''}"
        if live:
            state.events.add("host.removing", command.at, host=host.name, detail={"tasks": live})
        state.settle_host(host, command.at)
    state.answers.keep("remove_host", command.request, live, command.at)
    return Applied(live, state.version)


def host_that_stays(state: ClusterState, name: str) -> Host | Rejected:
    """Returns a host that may be changed, or the refusal: there is none of this name, or it is being removed."""
    host = state.hosts.get(name)
    if host is None:
        return unknown_host(name)
    if host.removing:
        return Rejected("host_removed", f"host {host.name} is being removed: {host.removing}")
    return host
