"""A calm simulated cluster, as most tests of a guard begin."""

from __future__ import annotations

from depalma.testing import Ledger, SimCluster, Weather

Cluster = SimCluster[Ledger]


def started(seed: int = 1, **settings: int) -> tuple[Cluster, str, str, str]:
    """A calm cluster with a leader that has committed something; its name, and those of the others."""
    cluster = SimCluster(Ledger, seed=seed, weather=Weather(late=0.0), **settings)
    cluster.start()
    leader = cluster.wait_for_leader()
    acknowledged(cluster, leader, b"first")
    one, other = (name for name in cluster.names if name != leader)
    cluster.run_for(0.2)
    return cluster, leader, one, other


def acknowledged(cluster: Cluster, name: str, command: bytes) -> object:
    answer = cluster.propose(name, command)
    cluster.wait_until(lambda: answer.done, within_s=2.0, what=f"an answer to {command!r}")
    assert answer.error is None
    return answer.value
