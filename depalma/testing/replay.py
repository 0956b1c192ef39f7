"""What the dispatcher decides from a recorded state: the file of `depalmactl snapshot save`.

For asking afterwards why a task went where it went. What only the leader knew then (loads, how long tasks take) is
given, or is as if nothing was known.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from depalma.dispatcher import Assignment, HostRoom, plan
from depalma.offline.inspecting import load
from depalma.state.cluster_state import ClusterState

#: Tasks of a round, as a leader plans them.
LIMIT = 2_000


def replay(
    path: Path,
    now: float,
    *,
    hosts: Mapping[str, HostRoom] | None = None,
    mean_s: Mapping[int, float] | None = None,
    limit: int = LIMIT,
) -> list[Assignment]:
    """Returns the next round of a saved state, each decision with its reason; the same each time.

    `hosts`: those that were connected; all, if not given. Errors: Damaged, OSError.
    """
    state = load(path).machine.state
    return plan(state, all_connected(state) if hosts is None else hosts, mean_s or {}, now, state.term, limit)


def all_connected(state: ClusterState) -> dict[str, HostRoom]:
    """Returns the room on all hosts, as if each were connected and nothing else ran there."""
    return {name: HostRoom(host.incarnation, host.slots) for name, host in state.hosts.items() if host.incarnation}
