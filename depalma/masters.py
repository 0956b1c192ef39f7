"""Which masters there are, for everybody but the consensus: the state says it, before that the cluster file. [pure]"""

from __future__ import annotations

from depalma.config import ClusterConfig
from depalma.model import MasterAddress
from depalma.state.cluster_state import ClusterState


def known_masters(state: ClusterState, config: ClusterConfig) -> tuple[MasterAddress, ...]:
    """Returns the masters, in the order in which they came."""
    return tuple(state.masters.values()) or addresses(config)


def addresses(config: ClusterConfig) -> tuple[MasterAddress, ...]:
    """Returns the masters that the cluster file names."""
    return tuple(MasterAddress(m.id, m.host, m.port, m.raft_port) for m in config.masters)


def urls(state: ClusterState, config: ClusterConfig) -> dict[str, str]:
    """Returns each master's base URL by its id."""
    return {master.id: config.url(master) for master in known_masters(state, config)}
