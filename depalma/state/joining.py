"""Invitations: how a machine that has nothing yet gets into the cluster. [pure]

The secret itself is in no log, only its hash. It works once: who used it is replicated, so a new leader knows it too.
"""

from __future__ import annotations

from depalma.state.checks import bad_digest, bad_field, bad_name, bad_range
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import AddHost, Applied, InviteHost, JoinHost, Rejected
from depalma.state.event_log import Detail
from depalma.state.invitations import Invitation
from depalma.state.membership import add_host

_MAX_BY = 200
MAX_VALID_S = 30 * 86_400.0
MAX_OPEN = 1000


def invite_host(state: ClusterState, command: InviteHost) -> Applied | Rejected:
    """Lets one machine join as this host, once, until it expires. Answers Applied(None)."""
    if known := state.answers.find("invite_host", command.request):
        return Applied(known.value, state.version)
    wrong = bad_digest("secret_hash", command.secret_hash) or bad_name("host", command.host)
    wrong = wrong or bad_range("expires_at", command.expires_at, command.at, command.at + MAX_VALID_S)
    if wrong := wrong or (bad_field("by", command.by, "at most 200 characters") if len(command.by) > _MAX_BY else None):
        return wrong
    kept = {key: each for key, each in state.invitations.items() if each.expires_at > command.at}
    if command.secret_hash in kept:
        return Rejected("name_taken", "there is an invitation with this secret already")
    if len(kept) >= MAX_OPEN:
        return Rejected("too_many", f"{MAX_OPEN} invitations have not expired; wait for one to do so")
    kept[command.secret_hash] = Invitation(command.secret_hash, command.host, command.expires_at, command.by)
    state.invitations = kept
    detail: Detail = {"by": command.by, "expires_at": command.expires_at}
    state.events.add("host.invited", command.at, host=command.host, detail=detail)
    state.answers.keep("invite_host", command.request, None, command.at)
    return Applied(None, state.version)


def join_host(state: ClusterState, command: JoinHost) -> Applied | Rejected:
    """Uses an invitation, and makes its host known if it is not. The same request again gets the same answer."""
    invitation = state.invitations.get(command.secret_hash)
    if invitation is None:
        return Rejected("no_invitation", "there is no such invitation, or it expired long ago")
    if invitation.used_by and invitation.used_by == command.request:
        return Applied(None, state.version)
    if invitation.used_by:
        return Rejected("invitation_used", f"the invitation of host {invitation.host} was used already; make another")
    if invitation.expires_at <= command.at:
        return Rejected("invitation_expired", f"the invitation of host {invitation.host} has expired; make another")
    if not command.request:
        return bad_field("request", "", "the machine's own id of its joining")
    host = state.hosts.get(invitation.host)
    if host is not None and host.removing:
        return Rejected("name_taken", f"host {host.name} is being removed")
    if host is None:
        added = add_host(state, AddHost("", invitation.host, (), {}, 0, 0, 0, command.at, from_file=False))
        assert isinstance(added, Applied)
    state.invitations = {**state.invitations, command.secret_hash: invitation.used(command.request)}
    state.events.add("host.joined", command.at, host=invitation.host, detail={"address": command.address})
    return Applied(None, state.version)
