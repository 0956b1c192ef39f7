"""A replica with a new disk has forgotten what it acknowledged and promised: what it must not do, and until when."""

from __future__ import annotations

import logging

import pytest

from depalma.consensus.messages import Install, Vote, VoteReply, decode, encode
from tests.sim.calm import Cluster, acknowledged, started


def test_a_replica_with_a_new_disk_does_not_help_to_lose_what_it_had_acknowledged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The leader and one follower hold a command. The follower loses its disk, the leader is away: the third, which
    never had the command, must not be elected by the one that has forgotten it."""
    cluster, leader, one, other = started()
    cluster.crash(other)
    number = acknowledged(cluster, leader, b"held by two")
    cluster.crash(leader)
    cluster.crash(one)
    cluster.wipe(one)
    cluster.restart(one)
    cluster.restart(other)
    with caplog.at_level(logging.WARNING):
        cluster.run_for(8.0)
    assert cluster.leader() is None
    assert f"the directory of {one} is new" in caplog.text

    cluster.restart(leader)
    cluster.wait_for_leader()
    cluster.run_for(1.0)
    cluster.ensure_same()
    machine = cluster.nodes[one].machine
    assert machine is not None
    assert isinstance(number, int)
    assert machine.entries[number - 1] == b"held by two"


def test_a_replica_with_a_new_disk_does_not_vote_for_one_that_has_joined() -> None:
    """Not even if it is asked without having been asked before whether it would."""
    cluster, leader, one, other = started()
    for name in cluster.names:
        cluster.crash(name)
    cluster.wipe(one)
    cluster.restart(one)
    core = cluster.nodes[one].core
    assert core is not None
    sent = []
    core._transmit = lambda peer, frame: sent.append(decode(frame))
    core.deliver(other, encode(Vote(99, 10**6, 98, True)))
    core.tick()
    assert sent == []
    core.deliver(leader, encode(Vote(99, 1, 0, False)))
    core.tick()

    assert sent == [VoteReply(99)], "in a new cluster nobody has joined"


def with_a_leader_of_the_past() -> tuple[Cluster, str, str]:
    """A leader that is cut off, has been replaced, and is reached by the one that helped to replace it and forgot."""
    cluster, leader, one, other = started()
    cluster.network.partition([leader], [one, other])
    for name in (one, other):
        cluster.network.close(leader, name)
    cluster.wait_until(lambda: cluster.leader() in (one, other), within_s=0.5, what="another leader")
    newer = cluster.leader()
    assert newer is not None
    acknowledged(cluster, newer, b"by the newer one")
    forgetful = other if newer == one else one
    cluster.crash(forgetful)
    cluster.wipe(forgetful)
    cluster.network.heal()
    cluster.network.partition([newer], [leader, forgetful])
    cluster.network.close(newer, leader)
    cluster.restart(forgetful)
    core = cluster.nodes[leader].core
    assert core is not None
    cluster.wait_until(lambda: forgetful in core.engine.connected_peers, within_s=0.3, what="a connection")
    assert core.engine.leading, "it has not yet noticed"
    return cluster, leader, forgetful


def test_a_replica_with_a_new_disk_does_not_help_a_leader_of_the_past_to_commit() -> None:
    """Seed 510086719: its acknowledgements were counted, and what the newer leader had acknowledged was lost."""
    cluster, leader, forgetful = with_a_leader_of_the_past()
    answer = cluster.propose(leader, b"by the one of the past")
    cluster.run_for(2.0)
    cluster.network.heal()
    acknowledged_by_any(cluster, b"last")
    cluster.run_for(1.0)

    cluster.ensure_same()
    assert answer.error is not None
    machine = cluster.nodes[forgetful].machine
    assert machine is not None
    assert machine.entries == [b"first", b"by the newer one", b"last"]


def test_a_replica_with_a_new_disk_does_not_help_a_leader_of_the_past_to_answer_a_read() -> None:
    cluster, leader, _ = with_a_leader_of_the_past()
    answer = cluster.read(leader, lambda machine: list(machine.entries))
    cluster.run_for(2.0)

    assert answer.error is not None, answer.value


def test_a_replica_with_a_new_disk_counts_once_the_others_have_committed_something_after_it_came() -> None:
    """Nobody proposes anything: the leader itself sees to it."""
    cluster, leader, one, other = started()
    cluster.crash(one)
    cluster.wipe(one)
    cluster.restart(one)
    cluster.run_for(0.5)
    cluster.crash(other)

    acknowledged(cluster, leader, b"by the one that has it again")
    cluster.crash(leader)
    cluster.restart(other)
    assert cluster.wait_for_leader() == one, "only it has all"


def test_a_replica_with_a_new_disk_does_not_count_while_the_third_is_away() -> None:
    cluster, leader, one, other = started()
    cluster.crash(other)
    cluster.crash(one)
    cluster.wipe(one)
    cluster.restart(one)
    answer = cluster.propose(leader, b"by two, one of whom has forgotten")
    cluster.run_for(5.0)
    assert answer.error is not None or not answer.done
    assert cluster.leader() is None

    cluster.restart(other)
    acknowledged_by_any(cluster, b"by all")
    cluster.run_for(1.0)
    cluster.ensure_same()


def acknowledged_by_any(cluster: Cluster, command: bytes) -> None:
    """Propose at whoever leads, until it is acknowledged."""
    for _ in range(5):
        answer = cluster.propose(cluster.wait_for_leader(), command)
        cluster.wait_until(lambda a=answer: a.done, within_s=5.0, what=f"an answer to {command!r}")
        if answer.error is None:
            return
    raise AssertionError(answer.error)


def test_a_replica_with_a_new_disk_is_filled_by_a_snapshot_and_then_votes() -> None:
    cluster, leader, one, other = started(snapshot_every_entries=20, keep_entries=2, segment_bytes=500)
    for i in range(100):
        acknowledged(cluster, leader, b"%d" % i)
    seen = []
    cluster.network.on_delivery = lambda at, sender, receiver, frame: seen.append(type(decode(frame)))
    cluster.crash(one)
    cluster.wipe(one)
    cluster.restart(one)
    cluster.run_for(1.0)
    assert Install in seen
    cluster.ensure_same()

    cluster.crash(leader)
    assert cluster.wait_for_leader() in (one, other)
