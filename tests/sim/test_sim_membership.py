"""Members that join and leave, and leadership that is handed over, on a simulated cluster."""

from __future__ import annotations

import pytest

from depalma.consensus import MembershipRefused, NotLeader, Removed, TransferFailed
from depalma.consensus.messages import StandNow, encode
from depalma.testing import Ledger, SimCluster, Weather
from depalma.testing.cluster import Answer

Cluster = SimCluster[Ledger]


def started(*, size: int, spares: int = 0, seed: int = 1, **settings: int) -> Cluster:
    """A calm cluster that has committed something; the spares run and wait."""
    cluster = SimCluster(Ledger, seed=seed, size=size, spares=spares, weather=Weather(late=0.0), **settings)
    cluster.start()
    acknowledged(cluster, b"first")
    cluster.run_for(0.3)
    return cluster


def acknowledged(cluster: Cluster, command: bytes, within_s: float = 5.0) -> object:
    """Propose at whoever leads, until it is acknowledged."""
    answers: list[Answer] = []

    def done() -> bool:
        if not answers or (answers[-1].done and answers[-1].error is not None):
            leader = cluster.leader()
            if leader is not None:
                answers.append(cluster.propose(leader, command))
        return bool(answers) and answers[-1].done and answers[-1].error is None

    cluster.wait_until(done, within_s=within_s, what=f"{command!r} is acknowledged")
    return answers[-1].value


def ended(cluster: Cluster, answer: Answer, within_s: float = 5.0) -> Answer:
    cluster.wait_until(lambda: answer.done, within_s=within_s, what="an answer")
    return answer


def change(cluster: Cluster, *wanted: str) -> Answer:
    return ended(cluster, cluster.change_members(cluster.wait_for_leader(), wanted, b"to " + "+".join(wanted).encode()))


def error_of(cluster: Cluster, *wanted: str) -> str:
    error = change(cluster, *wanted).error
    assert isinstance(error, MembershipRefused)
    return error.code


def entries(cluster: Cluster, name: str) -> list[bytes]:
    machine = cluster.nodes[name].machine
    assert machine is not None
    return machine.entries


def test_one_grows_to_three_and_shrinks_again() -> None:
    cluster = started(size=1, spares=2)

    assert change(cluster, "m1", "m2").error is None
    assert change(cluster, "m1", "m2", "m3").error is None
    assert cluster.members() == ("m1", "m2", "m3")
    cluster.run_for(0.5)
    cluster.ensure_same()
    assert entries(cluster, "m3")[:3] == [b"first", b"to m1+m2", b"to m1+m2+m3"]

    cluster.crash("m1")
    acknowledged(cluster, b"without the founder")
    cluster.restart("m1")
    cluster.run_for(1.0)
    leader = cluster.wait_for_leader()
    one, other = (name for name in cluster.names if name != leader)
    assert change(cluster, leader, one).error is None
    assert change(cluster, leader).error is None
    cluster.run_for(3.0)
    assert [type(cluster.nodes[name].stopped_by) for name in (one, other)] == [Removed, Removed]
    acknowledged(cluster, b"alone again")


def test_who_joins_counts_only_once_it_has_caught_up() -> None:
    cluster = started(size=1, spares=1)
    cluster.crash("m2")
    answer = cluster.change_members("m1", ("m1", "m2"), b"grow")
    cluster.run_for(2.0)

    assert not answer.done
    assert cluster.members() == ("m1",)
    acknowledged(cluster, b"one is still enough", within_s=0.5)
    cluster.restart("m2")
    assert ended(cluster, answer).error is None
    assert cluster.members() == ("m1", "m2")


def test_a_change_that_waits_can_be_given_up() -> None:
    cluster = started(size=1, spares=1)
    cluster.crash("m2")
    answer = cluster.change_members("m1", ("m1", "m2"), b"grow")
    cluster.run_for(0.5)
    core = cluster.nodes["m1"].core
    assert core is not None

    assert core.give_up_change(MembershipRefused("not_ready", "too late"))
    ended(cluster, answer)
    assert isinstance(answer.error, MembershipRefused)
    assert not core.give_up_change(MembershipRefused("not_ready", "too late"))
    cluster.restart("m2")
    cluster.run_for(1.0)
    assert cluster.members() == ("m1",)
    assert entries(cluster, "m2") == []


def test_who_joins_far_behind_gets_a_snapshot_and_the_members_with_it() -> None:
    cluster = started(size=3, spares=1, snapshot_every_entries=5, keep_entries=0, segment_bytes=500)
    for number in range(40):
        acknowledged(cluster, b"%d" % number)
    assert change(cluster, "m1", "m2", "m3", "m4").error is None
    for number in range(40, 60):
        acknowledged(cluster, b"%d" % number)
    cluster.run_for(0.5)
    for name in cluster.names:
        cluster.crash(name)
    for name in cluster.names:
        cluster.restart(name)

    acknowledged(cluster, b"after all were down")
    cluster.run_for(0.5)
    assert cluster.members() == ("m1", "m2", "m3", "m4")
    cluster.ensure_same()
    for name in cluster.names:
        core = cluster.nodes[name].core
        assert core is not None
        assert core.membership.current.ids == ("m1", "m2", "m3", "m4")
        assert core.journal.log.base_index > 10, "the entry that said so is in the snapshot only"


def test_what_is_not_allowed_changes_nothing() -> None:
    cluster = started(size=3, spares=2)
    leader = cluster.wait_for_leader()
    one, other = (name for name in cluster.founders if name != leader)

    assert error_of(cluster, leader, one, other, "m4", "m5") == "one_at_a_time"
    assert error_of(cluster, leader, one, "m4") == "one_at_a_time"
    assert error_of(cluster, one, other) == "leader"
    assert error_of(cluster, leader, one, one) == "twice"
    assert isinstance(ended(cluster, cluster.change_members(one, (leader, one), b"no")).error, NotLeader)
    assert cluster.members() == cluster.founders
    assert entries(cluster, leader) == [b"first"]


def test_a_second_change_waits_for_the_first() -> None:
    cluster = started(size=3, spares=2)
    leader = cluster.wait_for_leader()
    cluster.crash("m4")
    first = cluster.change_members(leader, (*cluster.founders, "m4"), b"first change")

    assert error_of(cluster, *cluster.founders, "m5") == "busy"
    cluster.restart("m4")
    assert ended(cluster, first).error is None
    assert change(cluster, *cluster.names).error is None


def test_a_change_that_is_not_committed_is_undone_with_its_entry() -> None:
    cluster = started(size=3)
    leader = cluster.wait_for_leader()
    one, other = (name for name in cluster.names if name != leader)
    cluster.network.partition([leader], [one, other])
    answer = cluster.change_members(leader, (leader, one), b"undone")
    cluster.run_for(0.1)
    core = cluster.nodes[leader].core
    assert core is not None
    assert core.membership.current.ids == (leader, one)

    acknowledged(cluster, b"by the others")
    cluster.network.heal()
    cluster.run_for(2.0)
    assert answer.error is not None
    assert core.membership.current.ids == cluster.names
    cluster.ensure_same()
    assert b"undone" not in entries(cluster, leader)


def test_a_removed_member_that_was_not_told_disturbs_nobody() -> None:
    cluster = started(size=3)
    leader = cluster.wait_for_leader()
    one, other = (name for name in cluster.names if name != leader)
    cluster.crash(other)
    assert change(cluster, leader, one).error is None
    cluster.run_for(3.0)
    core = cluster.nodes[leader].core
    assert core is not None
    term = core.term
    cluster.restart(other)
    cluster.run_for(20.0)

    assert core.term == term
    assert cluster.leader() == leader
    gone = cluster.nodes[other].core
    assert gone is not None
    assert gone.term == term, "it only asks, and nobody answers"


def test_a_removed_member_comes_back_when_it_is_added_again() -> None:
    cluster = started(size=3)
    leader = cluster.wait_for_leader()
    one, other = (name for name in cluster.names if name != leader)
    assert change(cluster, leader, one).error is None
    cluster.wait_until(lambda: cluster.nodes[other].removed, within_s=2.0, what="it hears that it has to go")
    acknowledged(cluster, b"meanwhile")
    cluster.restart(other)

    assert change(cluster, leader, one, other).error is None
    cluster.run_for(0.5)
    cluster.ensure_same()
    cluster.crash(leader)
    acknowledged(cluster, b"it counts")


def test_who_waits_to_join_never_leads_and_never_votes() -> None:
    cluster = started(size=3, spares=2)
    for name in cluster.founders:
        cluster.crash(name)
    cluster.run_for(20.0)

    assert cluster.leader() is None
    assert {node.core.term for node in cluster.nodes.values() if node.core} == {0}


def test_leadership_is_handed_over_without_losing_what_is_proposed() -> None:
    cluster = started(size=3)
    leader = cluster.wait_for_leader()
    target = next(name for name in cluster.names if name != leader)
    proposed = [cluster.propose(leader, b"before %d" % number) for number in range(5)]
    cluster.run_for(0.0005)
    assert not any(one.done for one in proposed)
    began = cluster.clock.monotonic()
    answer = cluster.hand_over(leader, target)
    meanwhile = cluster.propose(leader, b"meanwhile")

    assert ended(cluster, answer).value == target
    cluster.wait_until(lambda: cluster.leader() == target, within_s=0.2, what="the target leads")
    assert cluster.clock.monotonic() - began < 0.2, "no election timeout has passed"
    assert all(one.error is None for one in proposed)
    assert isinstance(meanwhile.error, NotLeader), "it was held back, so it is certain that it was not appended"
    acknowledged(cluster, b"after")


def test_a_hand_over_to_one_that_cannot_ends_and_the_leader_goes_on() -> None:
    cluster = started(size=3)
    leader = cluster.wait_for_leader()
    one, other = (name for name in cluster.names if name != leader)
    cluster.network.block(leader, one)
    answer = cluster.hand_over(leader, one)
    held = cluster.propose(leader, b"held back")

    assert isinstance(ended(cluster, answer).error, TransferFailed)
    assert ended(cluster, held).error is None
    assert cluster.leader() == leader
    assert isinstance(ended(cluster, cluster.hand_over(leader, "m9")).error, TransferFailed)
    assert isinstance(ended(cluster, cluster.hand_over(other, one)).error, NotLeader)


@pytest.mark.parametrize("term_offset", [-1, 1])
def test_who_is_told_to_stand_by_another_than_its_leader_does_not(term_offset: int) -> None:
    cluster = started(size=3)
    leader = cluster.wait_for_leader()
    one, other = (name for name in cluster.names if name != leader)
    core = cluster.nodes[one].core
    assert core is not None
    term = core.term
    core.deliver(other, encode(StandNow(term)))
    core.deliver(leader, encode(StandNow(term + term_offset)))
    cluster.run_for(1.0)

    assert core.term == term
    assert cluster.leader() == leader


def test_without_a_name_the_one_that_is_nearest_leads() -> None:
    cluster = started(size=3)
    leader = cluster.wait_for_leader()
    one, other = (name for name in cluster.names if name != leader)
    cluster.network.block(leader, one)
    for number in range(5):
        acknowledged(cluster, b"%d" % number)

    assert ended(cluster, cluster.hand_over(leader)).value == other
    cluster.wait_until(lambda: cluster.leader() == other, within_s=0.3, what="it leads")


def test_a_change_waits_for_a_majority_that_can_elect() -> None:
    """Else its leader's death could leave one with the new list and nobody who may vote for it."""
    cluster = SimCluster(Ledger, seed=1, size=3, weather=Weather(late=0.0))
    cluster.start("m1", "m2")
    acknowledged(cluster, b"first")
    leader = cluster.wait_for_leader()
    answer = cluster.change_members(leader, (leader, "m3"), b"leaves nobody who can vote")
    cluster.run_for(2.0)

    assert not answer.done
    assert cluster.members() == ("m1", "m2", "m3")
    cluster.start("m3")
    assert ended(cluster, answer).error is None


@pytest.mark.parametrize("cut_in", range(4))
def test_the_last_member_s_first_entry_is_on_its_disk_before_it_counts(cut_in: int) -> None:
    cluster = started(size=3)
    leader = cluster.wait_for_leader()
    one, _ = (name for name in cluster.names if name != leader)
    assert change(cluster, leader, one).error is None
    cluster.run_for(0.1)
    cluster.nodes[leader].disk.power_cut_in = cut_in
    answer = cluster.change_members(leader, (leader,), b"alone")
    cluster.run_for(0.05)
    cluster.crash(leader)
    cluster.crash(one)
    cluster.nodes[leader].disk.repair()
    cluster.restart(leader)
    cluster.restart(one)
    acknowledged(cluster, b"after")

    assert answer.done
    assert answer.error is not None or b"alone" in entries(cluster, leader)


def test_one_that_was_away_lets_in_who_joined_meanwhile_because_a_member_vouches_for_it() -> None:
    cluster = started(size=3, spares=1)
    leader = cluster.wait_for_leader()
    away = next(name for name in cluster.founders if name != leader)
    acknowledged(cluster, b"second")
    cluster.crash(away)
    assert not cluster.change_members(leader, ("m1", "m2", "m3", "m4"), b"grow").done
    cluster.wait_until(lambda: cluster.members() == ("m1", "m2", "m3", "m4"), within_s=5.0, what="m4 counts")
    ended(cluster, cluster.hand_over(leader, "m4"))
    cluster.wait_until(lambda: cluster.leader() == "m4", within_s=2.0, what="the new one leads")
    cluster.restart(away)

    cluster.run_for(2.0)
    cluster.ensure_same()
