"""Commands about the owners of machines: what they allow, and whether they are there. [pure]

Whether somebody is there only the host can see; what follows for its tasks it does by itself, at once. The state keeps
its word, so that whoever leads gives it no work meanwhile and everybody can see why.
"""

from __future__ import annotations

from depalma.ownership import STEPS, BadPolicy, OwnerPolicy, changed
from depalma.state.checks import bad_field
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import Applied, NoteOwner, Rejected, SetOwner
from depalma.state.event_log import Detail
from depalma.state.hosts import Presence
from depalma.state.inventory import host_that_stays
from depalma.state.membership import unknown_host

_MAX_REASON = 500


def set_owner(state: ClusterState, command: SetOwner) -> Applied | Rejected:
    """Changes the policy of a host; its agent is told at once."""
    if known := state.answers.find("set_owner", command.request):
        return Applied(known.value, state.version)
    host = host_that_stays(state, command.host)
    if isinstance(host, Rejected):
        return host
    if command.from_file and host.owner_given:
        return Rejected("owner_given", f"what the owner of host {host.name} allows was said before")
    try:
        policy = changed(OwnerPolicy() if command.anew else host.owner_policy, command.changes)
    except BadPolicy as wrong:
        return bad_field(wrong.field, wrong.given, wrong.allowed)
    if policy != host.owner_policy:
        host.owner_policy = policy
        state.events.add("host.changed", command.at, host=host.name, detail={"fields": "owner"})
    host.owner_given = True
    state.changes.hosts.add(host.name)
    state.answers.keep("set_owner", command.request, None, command.at)
    return Applied(None, state.version)


def note_owner(state: ClusterState, command: NoteOwner) -> Applied | Rejected:
    """Records what the agent sees. Of an agent that does not count any more it is refused."""
    host = state.hosts.get(command.host)
    if host is None:
        return unknown_host(command.host)
    if command.incarnation != host.incarnation or command.incarnation in host.over:
        return Rejected("stale_incarnation", f"host {host.name} has another incarnation now")
    if command.step not in ("", *STEPS.values()):
        return bad_field("step", command.step, ", ".join(STEPS.values()))
    if len(command.reason) > _MAX_REASON:
        return bad_field("reason", command.reason, f"at most {_MAX_REASON} characters")
    before = host.presence
    presence = None
    if command.reason:
        since = command.at if before is None else before.since
        presence = Presence(since, command.reason, command.step, command.suspended)
    if presence == before:
        return Applied(None, state.version)
    host.presence = presence
    if presence is None and host.state == "up":
        host.turn("up", "", command.at)
    detail: Detail = {"reason": command.reason, "step": command.step} if command.reason else {}
    kind = "host.owner_left" if presence is None else "host.owner_returned" if before is None else "host.making_way"
    state.events.add(kind, command.at, host=host.name, detail=detail)
    state.changes.hosts.add(host.name)
    state.changes.jobs.update(host.by_job)
    return Applied(None, state.version)
