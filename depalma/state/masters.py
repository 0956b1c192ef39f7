"""The command about masters. [pure]

Which masters make a majority is said by the log entry that carries the command, from the moment it is appended
(consensus/DESIGN.md); here stands what everybody else wants to know: who they are, where, and what changed when.
"""

from __future__ import annotations

from depalma.model import MasterAddress
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import Applied, ChangeMasters, Rejected
from depalma.state.event_log import Detail


def change_masters(state: ClusterState, command: ChangeMasters) -> Applied | Rejected:
    """Notes who the masters are now. The leader has checked them; the change is in force already."""
    before = state.masters
    state.masters = {master.id: master for master in command.masters}
    state.answers.keep("change_masters", command.request, None, command.at)
    for kind, masters in (
        ("master.added", [master for name, master in state.masters.items() if name not in before]),
        ("master.moved", [master for name, master in state.masters.items() if before.get(name, master) != master]),
        ("master.removed", [master for name, master in before.items() if name not in state.masters]),
    ):
        for master in masters:
            state.events.add(kind, command.at, detail=_detail(master, command.by))
    state.changes.masters = True
    return Applied(None, state.version)


def _detail(master: MasterAddress, by: str) -> Detail:
    detail = {"master": master.id, "url": master.url, "raft": f"{master.host}:{master.raft_port}"}
    return {**detail, "by": by} if by else detail
