"""Each guard around the library, shown on a simulated cluster."""

from __future__ import annotations

import pytest

from depalma.consensus import ApplyFailed, CommandTooLarge, NotLeader, OutcomeUnknown
from depalma.consensus.envelope import unpack
from depalma.consensus.messages import Append, AppendReply, Vote, VoteReply, decode, encode
from depalma.testing import Ledger, SimCluster, Violation
from tests.sim.calm import Cluster, acknowledged, started


def term_of(cluster: Cluster, name: str) -> int:
    core = cluster.nodes[name].core
    assert core is not None
    return core.term


def test_a_vote_is_not_even_looked_at_while_the_leader_is_heard() -> None:
    cluster, leader, one, other = started()
    term = term_of(cluster, one)
    for name in (leader, one):
        core = cluster.nodes[name].core
        assert core is not None
        core.deliver(other, encode(Vote(term + 5, 10**6, term + 4, True)))
    cluster.run_for(1.0)

    assert {term_of(cluster, name) for name in cluster.names} == {term}
    assert cluster.leader() == leader


def test_a_replica_that_was_cut_off_does_not_disturb_the_others_when_it_returns() -> None:
    cluster, leader, _, other = started()
    term = term_of(cluster, leader)
    cluster.network.partition([other], [name for name in cluster.names if name != other])
    cluster.run_for(6.0)
    cluster.network.heal()
    cluster.run_for(2.0)

    assert term_of(cluster, leader) == term
    assert cluster.leader() == leader
    cluster.ensure_same()


def test_one_that_does_not_see_the_leader_does_not_disturb_it_through_the_third() -> None:
    cluster, leader, one, _ = started()
    term = term_of(cluster, leader)
    cluster.network.partition([leader], [one])
    cluster.network.close(leader, one)
    cluster.run_for(10.0)

    assert term_of(cluster, leader) == term
    assert acknowledged(cluster, leader, b"goes on") == 2
    cluster.network.heal()
    cluster.run_for(2.0)
    assert {term_of(cluster, name) for name in cluster.names} == {term}


def test_a_leader_without_a_majority_gives_up_within_a_second() -> None:
    cluster, leader, one, other = started()
    cluster.network.partition([leader], [one, other])
    cluster.run_for(1.0)

    core = cluster.nodes[leader].core
    assert core is not None
    assert core.leads_term is None
    cluster.run_for(0.5)
    assert cluster.leader() in (one, other)


def test_an_acknowledgement_of_another_term_is_dropped() -> None:
    """Else the leader would count entries that the follower may have replaced."""
    cluster, leader, one, other = started()
    cluster.crash(one)
    cluster.crash(other)
    cluster.run_for(0.01)
    core = cluster.nodes[leader].core
    assert core is not None
    answer = cluster.propose(leader, b"only here")
    cluster.run_for(0.05)
    last = core.journal.log.last_index
    for name in (one, other):
        core.deliver(name, encode(AppendReply(core.term - 1, 0, accepted=True, match=last)))
    cluster.run_for(0.05)

    assert not answer.done
    core.deliver(one, encode(AppendReply(core.term, 0, accepted=True, match=last)))
    cluster.run_for(0.05)
    assert answer.done, "the same acknowledgement in this term counts"


def test_a_repeated_vote_counts_once() -> None:
    cluster = SimCluster(Ledger, seed=1, size=5)
    cluster.start("m1")
    cluster.run_for(0.1)
    core = cluster.nodes["m1"].core
    assert core is not None
    core.connected("m2")
    core.engine._stand()
    core.tick()
    for _ in range(3):
        core.deliver("m2", encode(VoteReply(core.term)))
    core.tick()
    assert not core.engine.leading
    core.deliver("m3", encode(VoteReply(core.term)))
    core.tick()

    assert core.engine.leading


def test_a_leader_of_the_past_learns_that_it_is() -> None:
    cluster, leader, one, _ = started()
    core = cluster.nodes[one].core
    assert core is not None
    answers: list[AppendReply] = []
    core._transmit = lambda peer, frame: answers.append(decode(frame))  # type: ignore[arg-type]
    core.deliver(leader, encode(Append(0, 3, 1, 1, 0, [])))
    core.tick()

    assert [(answer.term, answer.accepted) for answer in answers] == [(core.term, False)]


@pytest.mark.parametrize("lost", range(3))
def test_any_two_go_on_without_the_third(lost: int) -> None:
    cluster, leader, one, other = started()
    for name in cluster.names:
        cluster.crash(name)
    for name in {leader, one, other} - {(leader, one, other)[lost]}:
        cluster.restart(name)

    assert acknowledged(cluster, cluster.wait_for_leader(), b"second") == 2


def test_what_a_killed_follower_had_not_synced_is_not_acknowledged_from_memory() -> None:
    """It dies between write and sync and comes back; what it reads then must be on disk before it acknowledges it."""
    for seed in range(12):
        cluster, leader, one, other = started(seed)
        cluster.crash(other)
        disk = cluster.nodes[one].disk
        disk.power_cut_in, disk.kills_only = 1, True
        answer = cluster.propose(leader, b"x")
        cluster.run_for(0.05)
        assert not cluster.nodes[one].up
        cluster.restart(one)
        cluster.wait_until(lambda a=answer: a.done, within_s=2.0, what="an answer")
        if answer.error is not None:
            continue  # the leader gave up first: nothing was promised
        cluster.crash(leader)
        cluster.crash(one)
        cluster.restart(one)
        cluster.restart(other)
        cluster.wait_for_leader()
        machine = cluster.nodes[one].machine
        assert machine is not None
        assert machine.entries == [b"first", b"x"]


def test_a_follower_far_behind_gets_each_entry_about_once() -> None:
    """No catch-up storm: heartbeats go on while it is behind, and do not cause resends."""
    cluster, leader, one, _ = started(group_commands=1)
    cluster.crash(one)
    for _ in range(40):
        for i in range(50):
            cluster.propose(leader, b"%d" % i * 200)
        cluster.run_for(0.05)
    core = cluster.nodes[leader].core
    assert core is not None
    assert core.applied_index == 2001
    sent = 0

    def count(at: float, sender: str, receiver: str, frame: bytes) -> None:
        nonlocal sent
        sent += len(frame) if receiver == one else 0

    cluster.network.weather.delay_s = (0.05, 0.1)
    cluster.network.on_delivery = count
    cluster.restart(one)
    cluster.run_for(3.0)

    cluster.ensure_same()
    assert sent < 1.3 * core.journal.log.size_bytes


def test_what_is_proposed_in_one_tick_is_one_entry() -> None:
    cluster, leader, _, _ = started()
    core = cluster.nodes[leader].core
    assert core is not None
    entries, syncs = core.journal.log.last_index, core.journal.syncs
    answers = [cluster.propose(leader, b"%d" % i) for i in range(500)]
    cluster.run_for(0.1)

    assert [answer.value for answer in answers] == list(range(2, 502))
    assert core.journal.log.last_index == entries + 1
    assert core.journal.syncs == syncs + 1


def test_a_group_ends_at_its_limits() -> None:
    cluster, leader, _, _ = started(group_commands=10, group_bytes=100)
    core = cluster.nodes[leader].core
    assert core is not None
    before = core.journal.log.last_index
    for command in [b"x"] * 25 + [b"y" * 96] * 4:
        cluster.propose(leader, command)
    cluster.run_for(0.1)

    sizes = [len(unpack(command)) for command, _, _ in core.journal.log.entries(before + 1, 100)]
    assert sizes == [10, 10, 5, 1, 1, 1, 1]
    assert core.applied_index == 30


def test_a_follower_refuses_and_names_the_leader() -> None:
    cluster, leader, one, _ = started()
    answer = cluster.propose(one, b"x")

    assert isinstance(answer.error, NotLeader)
    assert answer.error.leader_id == leader
    assert isinstance(cluster.read(one, lambda ledger: None).error, NotLeader)


def test_a_command_that_is_too_large_is_refused_at_once() -> None:
    cluster, leader, _, _ = started(max_command_bytes=100)
    core = cluster.nodes[leader].core
    assert core is not None
    with pytest.raises(CommandTooLarge, match="limit of 100"):
        core.propose(bytes(101), lambda answer, error: None)


def test_the_outcome_is_unknown_when_leadership_is_lost() -> None:
    cluster, leader, one, other = started()
    cluster.network.partition([leader], [one, other])
    answer = cluster.propose(leader, b"perhaps")
    cluster.run_for(2.0)

    assert isinstance(answer.error, OutcomeUnknown)


def test_reads_that_wait_together_share_one_round() -> None:
    cluster, leader, _, _ = started()
    core = cluster.nodes[leader].core
    assert core is not None
    reads = [cluster.read(leader, lambda ledger: len(ledger.entries)) for _ in range(100)]
    cluster.run_for(0.05)

    assert [read.value for read in reads] == [1] * 100
    assert core.engine._reign is not None
    assert core.engine._reign.round == 1


def test_a_leader_that_is_cut_off_answers_no_read() -> None:
    cluster, leader, one, other = started()
    cluster.network.partition([leader], [one, other])
    read = cluster.read(leader, lambda ledger: len(ledger.entries))
    cluster.run_for(2.0)

    assert isinstance(read.error, NotLeader)


class Fragile(Ledger):
    """Breaks on one command."""

    def apply(self, command: bytes, index: int) -> object:
        if command == b"poison":
            raise ZeroDivisionError("broken invariant")
        return super().apply(command, index)


def test_a_state_machine_that_raises_stops_its_replica() -> None:
    cluster = SimCluster(Fragile, seed=1)
    cluster.start()
    leader = cluster.wait_for_leader()
    cluster.propose(leader, b"poison")
    with pytest.raises(Violation, match="applying command 1 raised ZeroDivisionError: broken invariant") as caught:
        cluster.run_for(0.5)

    assert isinstance(caught.value.__cause__, ApplyFailed)


def test_a_cluster_of_one_commits_alone() -> None:
    cluster = SimCluster(Ledger, seed=1, size=1)
    cluster.start()
    cluster.wait_for_leader(within_s=1.0)
    assert acknowledged(cluster, "m1", b"x") == 1
    cluster.crash("m1")
    cluster.restart("m1")
    cluster.wait_for_leader(within_s=1.0)

    assert acknowledged(cluster, "m1", b"y") == 2


def test_fail_over_is_fast_when_the_connection_closes() -> None:
    took = []
    for seed in range(20):
        cluster, leader, _, _ = started(seed)
        cluster.crash(leader, silently=False)
        began = cluster.clock.monotonic()
        cluster.wait_for_leader()
        took.append(cluster.clock.monotonic() - began)

    took.sort()
    assert took[len(took) // 2] < 0.15
    assert took[-1] < 0.6


def test_whoever_waits_for_a_command_that_a_snapshot_overtakes_is_told() -> None:
    """The library installs a snapshot and forgets who waits. The new leader's log no longer has what would answer."""
    cluster, leader, one, other = started(snapshot_every_entries=5, keep_entries=0, segment_bytes=500)
    cluster.network.partition([leader], [one, other])
    answer = cluster.propose(leader, b"cut off")
    cluster.wait_until(lambda: cluster.leader() in (one, other), within_s=3.0, what="another leader")
    new = cluster.wait_for_leader()
    for number in range(30):
        acknowledged(cluster, new, b"%d" % number)
    old, core = cluster.nodes[leader].core, cluster.nodes[new].core
    assert old is not None
    assert core is not None
    assert core.journal.log.base_index > old.journal.log.last_index, "only a snapshot can bring it up"
    cluster.network.heal()
    cluster.run_for(2.0)

    cluster.ensure_same()
    assert answer.done
    assert isinstance(answer.error, OutcomeUnknown)
    machine = cluster.nodes[leader].machine
    assert machine is not None
    assert b"cut off" not in machine.entries
