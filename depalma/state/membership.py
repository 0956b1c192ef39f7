"""Commands about hosts: add, up, suspect, recovered, lost. [pure]

An incarnation is one life of an agent process. It goes up once; suspect and back as often as need be; when it is lost
or replaced it is over for good, and nothing that it still says counts.
"""

from __future__ import annotations

from depalma.state.attempts import lose_attempts
from depalma.state.checks import bad_field, bad_name, bad_range, bad_resources
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import AddHost, Applied, HostLost, HostRecovered, HostSuspect, HostUp, Rejected
from depalma.state.event_log import Detail
from depalma.state.hosts import Host

_MAX_SLOTS = 100_000
_MAX_GROUPS = 100
_MAX_PRIORITY = 1_000_000


def add_host(state: ClusterState, command: AddHost) -> Applied | Rejected:
    """Makes a host known; it is `down` until its agent connects."""
    if known := state.answers.find("add_host", command.request):
        return Applied(known.value, state.version)
    wrong = _bad_host(command)
    if wrong:
        return wrong
    if taken := state.hosts.get(command.name):
        going = ", which is being removed" if taken.removing else ""
        return Rejected("name_taken", f"there is a host {command.name} already{going}")
    if command.from_file and command.name in state.removed:
        return Rejected("host_removed", f"host {command.name} of the cluster file was removed; host add brings it back")
    host = state.hosts[command.name] = Host(
        command.name, command.groups, command.labels, command.priority, command.slots, command.gpus, command.at
    )
    host.resources = {name: number for name, number in command.resources.items() if number}
    host.from_file = command.from_file or command.name in state.removed
    state.removed.discard(command.name)
    state.events.add("host.added", command.at, host=command.name, detail={"groups": ",".join(command.groups)})
    state.changes.hosts.add(command.name)
    state.answers.keep("add_host", command.request, None, command.at)
    return Applied(None, state.version)


def _bad_host(command: AddHost) -> Rejected | None:
    wrong = bad_name("name", command.name) or bad_groups(command.groups)
    wrong = wrong or bad_numbers(command.slots, command.gpus, command.priority)
    return wrong or bad_labels(command.labels) or bad_resources(command.resources)


def bad_groups(groups: tuple[str, ...]) -> Rejected | None:
    """Refuses a list of groups of which one is no name, or stands there twice."""
    for group in groups:
        if wrong := bad_name("groups", group):
            return wrong
    if len(groups) > _MAX_GROUPS or len(set(groups)) < len(groups):
        return bad_field("groups", list(groups), f"at most {_MAX_GROUPS}, each once")
    return None


def bad_numbers(slots: int | None, gpus: int | None, priority: int | None) -> Rejected | None:
    """Refuses numbers of a host that are out of range; None is fine."""
    wrong = bad_range("slots", slots or 0, 0, _MAX_SLOTS) or bad_range("gpus", gpus or 0, 0, _MAX_SLOTS)
    return wrong or bad_range("priority", priority or 0, -_MAX_PRIORITY, _MAX_PRIORITY)


def bad_labels(labels: dict[str, str]) -> Rejected | None:
    """Refuses labels that are too many or too long."""
    if len(labels) > 100 or any(len(key) + len(value) > 1000 for key, value in labels.items()):
        return bad_field("labels", sorted(labels), "at most 100 of at most 1000 characters")
    return None


def host_up(state: ClusterState, command: HostUp) -> Applied | Rejected:
    """Takes an agent process as the host's; what an earlier one had is lost. Answers Applied(attempts lost)."""
    host = state.hosts.get(command.host)
    if host is None:
        return unknown_host(command.host)
    if not command.incarnation:
        return bad_field("incarnation", "", "not empty")
    if wrong := bad_range("facts.slots", command.facts.slots, 0, _MAX_SLOTS):
        return wrong
    if command.incarnation in host.over:
        return _over(host, command.incarnation)
    if host.removing:
        return Rejected("host_removed", f"host {host.name} is being removed: {host.removing}")
    lost = 0
    if command.incarnation != host.incarnation:
        lost = lose_attempts(state, host, "its agent was started anew", command.at, frozenset(command.unreported))
        host.retire()
        host.incarnation = command.incarnation
        for attempt in host.attempts.values():
            attempt.incarnation = command.incarnation
    if host.state != "up":
        host.turn("up", "", command.at)
    host.facts = command.facts
    if command.code_index >= 0:
        host.code_index = min(host.code_index, command.code_index)
    detail: Detail = {"incarnation": command.incarnation, "address": command.facts.address, "lost": lost}
    state.events.add("host.up", command.at, host=host.name, detail=detail)
    state.changes.hosts.add(host.name)
    return Applied(lost, state.version)


def host_suspect(state: ClusterState, command: HostSuspect) -> Applied | Rejected:
    """Stops giving it work; its tasks stay."""
    host = state.hosts.get(command.host)
    refusal = _refusal(host, command.host, command.incarnation, ("up",))
    if host is None or refusal:
        return refusal or unknown_host(command.host)
    host.turn("suspect", command.reason, command.at)
    state.events.add("host.suspect", command.at, host=host.name, detail={"reason": command.reason})
    state.changes.hosts.add(host.name)
    return Applied(None, state.version)


def host_recovered(state: ClusterState, command: HostRecovered) -> Applied | Rejected:
    """Gives it work again: it was heard in time."""
    host = state.hosts.get(command.host)
    refusal = _refusal(host, command.host, command.incarnation, ("suspect",))
    if host is None or refusal:
        return refusal or unknown_host(command.host)
    host.turn("up", "", command.at)
    state.events.add("host.recovered", command.at, host=host.name)
    state.changes.hosts.add(host.name)
    return Applied(None, state.version)


def host_lost(state: ClusterState, command: HostLost) -> Applied | Rejected:
    """Ends the incarnation; its tasks run elsewhere. Answers Applied(attempts lost)."""
    host = state.hosts.get(command.host)
    refusal = _refusal(host, command.host, command.incarnation, ("up", "suspect"))
    if host is None or refusal:
        return refusal or unknown_host(command.host)
    host.turn("lost", command.reason, command.at)
    state.events.add("host.lost", command.at, host=host.name, detail={"reason": command.reason})
    lost = lose_attempts(state, host, f"host {host.name} was lost: {command.reason}", command.at)
    host.retire()
    state.changes.hosts.add(host.name)
    return Applied(lost, state.version)


def _refusal(host: Host | None, name: str, incarnation: str, states: tuple[str, ...]) -> Rejected | None:
    """Returns why a command about this life of the host's agent does not hold."""
    if host is None:
        return unknown_host(name)
    if incarnation in host.over:
        return _over(host, incarnation)
    if incarnation != host.incarnation:
        return Rejected("stale_incarnation", f"host {name} has another incarnation now")
    if host.state not in states:
        return Rejected("wrong_state", f"host {name} is {host.state}, not {' or '.join(states)}")
    return None


def _over(host: Host, incarnation: str) -> Rejected:
    return Rejected(
        "incarnation_over", f"incarnation {incarnation} of host {host.name} is over; come back as a new one"
    )


def unknown_host(name: str) -> Rejected:
    """Returns the refusal of a command about a host that there is not."""
    return Rejected("unknown_host", f"there is no host {name}")
