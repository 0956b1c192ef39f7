"""A replica dies at each of its disk operations in turn; whatever it had answered is there when it comes back."""

from __future__ import annotations

import pytest

from depalma.testing import Ledger, SimCluster, SimDisk

#: about the operations of one run of `work`
POINTS = 70


def work(cluster: SimCluster[Ledger], answered: list[bytes]) -> None:
    """Some commands one after the other, as far as the replica lives; snapshots and new segments come in between."""
    for i in range(18):
        command = b"%d-%d" % (cluster.nodes["m1"].life, i)
        answer = cluster.propose("m1", command)
        cluster.run_for(0.05)
        if answer.done and answer.error is None:
            answered.append(command)


def started(seed: int) -> SimCluster[Ledger]:
    cluster = SimCluster(Ledger, seed=seed, size=1, snapshot_every_entries=4, keep_entries=1, segment_bytes=200)
    cluster.start()
    cluster.wait_for_leader()
    return cluster


def restart(cluster: SimCluster[Ledger]) -> None:
    cluster.crash("m1")
    cluster.restart("m1")
    if cluster.nodes["m1"].up:
        cluster.run_for(0.1)


@pytest.mark.parametrize("kills_only", [False, True], ids=["power", "kill"])
def test_a_single_replica_survives_every_crash_point(kills_only: bool) -> None:
    """Also when the power goes off a moment after it has come back: what it read must be on the disk by then."""
    for point in range(POINTS):
        for second_point in range(5):
            _survive(point, second_point, kills_only)


def _survive(point: int, second_point: int, kills_only: bool) -> None:
    cluster = started(seed=point * 10 + second_point)
    disk: SimDisk = cluster.nodes["m1"].disk
    answered: list[bytes] = []
    disk.power_cut_in, disk.kills_only = point, kills_only
    work(cluster, answered)
    assert not cluster.nodes["m1"].up, f"only {disk.operations} operations"

    disk.power_cut_in = second_point
    restart(cluster)
    restart(cluster)
    work(cluster, answered)

    machine = cluster.nodes["m1"].machine
    assert machine is not None
    assert len(answered) >= 18
    lost = [command for command in answered if command not in machine.entries]
    assert not lost, f"crash points {point} and {second_point}"


@pytest.mark.long
@pytest.mark.parametrize("victim", ["leader", "follower"])
def test_a_cluster_survives_every_crash_point_of_one(victim: str) -> None:
    for point in range(POINTS):
        cluster = SimCluster(Ledger, seed=point, snapshot_every_entries=4, keep_entries=1, segment_bytes=200)
        cluster.start()
        leader = cluster.wait_for_leader()
        name = leader if victim == "leader" else next(other for other in cluster.names if other != leader)
        cluster.nodes[name].disk.power_cut_in = point
        answered = []
        for i in range(20):
            answer = cluster.propose(cluster.leader() or leader, b"%d" % i)
            cluster.run_for(0.05)
            if answer.done and answer.error is None:
                answered.append(b"%d" % i)
        cluster.restart(name)
        cluster.wait_for_leader()
        cluster.run_for(1.0)

        cluster.ensure_same()
        machine = cluster.nodes[name].machine
        assert machine is not None
        assert not [command for command in answered if command not in machine.entries], f"crash point {point}"
        assert len(answered) >= 8
