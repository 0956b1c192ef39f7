"""Commands that stop giving work to a host, and begin again. [pure]

A drain is what was asked for, not what the agent does: it holds while the agent is restarted, lost or not there yet.
The leader gives back what has not started, and moves what still runs at the deadline; both come as reports.
"""

from __future__ import annotations

from math import isfinite

from depalma.state.checks import bad_field
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import Applied, DrainHost, Rejected, UndrainHost
from depalma.state.event_log import Detail
from depalma.state.hosts import Drain
from depalma.state.inventory import host_that_stays

_MAX_REASON = 500
_MAX_BY = 200


def drain_host(state: ClusterState, command: DrainHost) -> Applied | Rejected:
    """Gives the host nothing more; it is drained when the last attempt has left. Answers Applied(attempts there)."""
    if known := state.answers.find("drain_host", command.request):
        return Applied(known.value, state.version)
    host = host_that_stays(state, command.host)
    if isinstance(host, Rejected):
        return host
    if wrong := _bad_drain(command):
        return wrong
    if host.drain is None:
        host.drain = Drain(command.at, command.deadline_at, command.reason, command.by)
    else:
        host.drain.deadline_at, host.drain.reason, host.drain.by = command.deadline_at, command.reason, command.by
    detail: Detail = {"reason": command.reason, "by": command.by, "deadline_at": command.deadline_at}
    state.events.add("host.draining", command.at, host=host.name, detail={**detail, "tasks": len(host.attempts)})
    state.settle_host(host, command.at)
    live = len(host.attempts)
    state.answers.keep("drain_host", command.request, live, command.at)
    return Applied(live, state.version)


def _bad_drain(command: DrainHost) -> Rejected | None:
    deadline_at = command.deadline_at
    if deadline_at is not None and not (isfinite(deadline_at) and deadline_at >= 0):
        return bad_field("deadline_at", deadline_at, "seconds since the epoch")
    if len(command.reason) > _MAX_REASON:
        return bad_field("reason", command.reason, f"at most {_MAX_REASON} characters")
    return bad_field("by", command.by, f"at most {_MAX_BY} characters") if len(command.by) > _MAX_BY else None


def undrain_host(state: ClusterState, command: UndrainHost) -> Applied | Rejected:
    """Gives the host work again; one that is not drained stays as it is."""
    if known := state.answers.find("undrain_host", command.request):
        return Applied(known.value, state.version)
    host = host_that_stays(state, command.host)
    if isinstance(host, Rejected):
        return host
    if host.drain is not None:
        host.drain = None
        if host.state == "up":
            host.turn("up", "", command.at)
        state.events.add("host.undrained", command.at, host=host.name)
        state.changes.hosts.add(host.name)
    state.answers.keep("undrain_host", command.request, None, command.at)
    return Applied(None, state.version)
