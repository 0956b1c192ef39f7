"""Three real replicas: asyncio, TCP on loopback, files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from depalma.consensus import (
    DirectoryInUse,
    JournalDamaged,
    NotLeader,
    OutcomeUnknown,
    Replica,
    ReplicaStopped,
    SnapshotDamaged,
)
from depalma.testing.ledger import Ledger
from depalma.testing.replicas import Replicas, wait_until


async def test_a_command_is_applied_everywhere_and_answered_with_its_number(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as cluster:
        await cluster.start()
        leader = await cluster.wait_for_leader()

        assert [await leader.propose(b"%d" % i) for i in range(5)] == [1, 2, 3, 4, 5]
        assert await leader.barrier() == 5
        await cluster.wait_for_agreement()
        assert cluster.ledgers["m1"].entries == [b"0", b"1", b"2", b"3", b"4"]
        assert leader.commit_index == leader.applied_index == 5
        assert not cluster.fatal


async def test_many_at_once_are_answered_in_order(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as cluster:
        await cluster.start()
        leader = await cluster.wait_for_leader()

        answers = await asyncio.gather(*[leader.propose(b"%d" % i) for i in range(5000)])

        assert answers == list(range(1, 5001))
        await cluster.wait_for_agreement()


async def test_a_follower_refuses_and_knows_the_leader(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as cluster:
        await cluster.start()
        await cluster.wait_for_leader()
        name = cluster.leader_name()
        follower = next(replica for other, replica in cluster.running.items() if other != name)
        await wait_until(lambda: follower.leader_id == name, what=cluster.describe)

        with pytest.raises(NotLeader) as caught:
            await follower.propose(b"x")
        assert caught.value.leader_id == name
        with pytest.raises(NotLeader):
            await follower.barrier()


async def test_the_others_go_on_when_the_leader_stops(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as cluster:
        await cluster.start()
        await cluster.propose(b"before")
        gone = cluster.leader_name()
        term = cluster.running[gone].term
        await cluster.stop(gone)

        assert await cluster.propose(b"after") == 2
        assert cluster.leader_name() != gone
        leader = cluster.leader()
        assert leader is not None
        assert leader.term > term
        await cluster.start(gone)
        await cluster.wait_for_agreement()
        assert cluster.ledgers[gone].entries == [b"before", b"after"]


async def test_a_restart_of_all_keeps_everything(tmp_path: Path) -> None:
    async with Replicas(tmp_path, snapshot_every_entries=20, keep_entries=3, segment_bytes=1000) as cluster:
        await cluster.start()
        for i in range(100):
            await cluster.propose(b"%d" % i)
        await cluster.wait_for_agreement()
        await wait_until(lambda: list(tmp_path.glob("*/snapshot-*.snap")), what=lambda: list(tmp_path.glob("*/*")))
        await cluster.stop()

        await cluster.start()
        assert await cluster.propose(b"after") == 101
        await cluster.wait_for_agreement()
        assert cluster.ledgers["m2"].entries == [b"%d" % i for i in range(100)] + [b"after"]


async def test_a_replica_with_an_empty_directory_is_filled_by_a_snapshot(tmp_path: Path) -> None:
    big = bytes(range(256)) * 4096  # three of these make more than one piece of a snapshot, even compressed
    async with Replicas(tmp_path, snapshot_every_entries=10, keep_entries=1, segment_bytes=1000) as cluster:
        await cluster.start("m1", "m2")
        for i in range(40):
            await cluster.propose(b"%d" % i + (big if i % 10 == 0 else b""))
        await wait_until(lambda: list(tmp_path.glob("m1/snapshot-*.snap")), what=lambda: list(tmp_path.glob("m1/*")))

        await cluster.start("m3")
        await cluster.wait_for_agreement()

        assert len(cluster.ledgers["m3"].entries) == 40
        assert list(tmp_path.glob("m3/snapshot-*.snap"))


async def test_listeners_hear_of_leadership_and_of_what_was_applied(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as cluster:
        heard: list[tuple[str, bool, int]] = []
        applied: list[int] = []
        await cluster.start()
        for name, replica in cluster.running.items():
            replica.add_leadership_listener(lambda leads, term, name=name: heard.append((name, leads, term)))
            replica.add_applied_listener(applied.append)
        await cluster.wait_for_leader()
        first = cluster.leader_name()
        await cluster.propose(b"x")
        followers = [name for name in cluster.running if name != first]
        await cluster.stop(*followers)
        await wait_until(lambda: (first, False) in [entry[:2] for entry in heard], what=lambda: heard)

        assert not cluster.running[first].is_leader
        assert 1 in applied
        with pytest.raises(NotLeader):
            await cluster.running[first].propose(b"y")


async def test_stopping_answers_everybody_who_waits(tmp_path: Path) -> None:
    # It still leads when it has lost the others, for longer than any machine takes to come to the next line.
    async with Replicas(tmp_path, election_s=(1.0, 2.0)) as cluster:
        await cluster.start()
        leader = await cluster.wait_for_leader()
        name = cluster.leader_name()
        await cluster.stop(*[other for other in cluster.running if other != name])
        waiting = asyncio.gather(leader.propose(b"x"), return_exceptions=True)
        await asyncio.sleep(0)
        await cluster.stop(name)

        (error,) = await waiting
        assert isinstance(error, OutcomeUnknown)
        with pytest.raises(ReplicaStopped):
            await leader.propose(b"y")
        await leader.stop()


async def test_a_proposal_that_takes_too_long_has_an_unknown_outcome(tmp_path: Path) -> None:
    async with Replicas(tmp_path, election_s=(1.0, 1.5)) as cluster:
        await cluster.start("m1", "m2")
        leader = await cluster.wait_for_leader()
        await cluster.stop(*[name for name, replica in cluster.running.items() if replica is not leader])

        with pytest.raises(OutcomeUnknown, match=r"within 0\.2 s"):
            await leader.propose(b"x", timeout_s=0.2)


async def test_a_cluster_of_one_needs_no_port_and_keeps_what_it_answered(tmp_path: Path) -> None:
    async with Replicas(tmp_path, size=1) as cluster:
        await cluster.start()
        assert await cluster.propose(b"x") == 1
        assert await cluster.running["m1"].barrier() == 1
        assert cluster.running["m1"].contacts() == {}
        await cluster.stop()
        await cluster.start()
        assert await cluster.propose(b"y") == 2


async def test_contacts_grow_only_for_those_who_are_away(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as cluster:
        await cluster.start()
        leader = await cluster.wait_for_leader()
        away = next(name for name, replica in cluster.running.items() if replica is not leader)
        await cluster.stop(away)

        def grows_for_one() -> bool:
            contacts = leader.contacts()
            return contacts[away] > 0.6 and min(contacts.values()) < 0.5

        await wait_until(grows_for_one, what=leader.contacts)


async def test_a_damaged_journal_refuses_to_start_and_says_what_to_do(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as cluster:
        await cluster.start()
        for i in range(10):
            await cluster.propose(b"%d" % i)
        await cluster.wait_for_agreement()
        await cluster.stop("m1")
        (segment,) = (tmp_path / "m1").glob("journal-*.seg")
        data = bytearray(segment.read_bytes())
        data[len(data) // 2] ^= 1
        segment.write_bytes(data)

        with pytest.raises(JournalDamaged, match=r"journal-0000000001\.seg is damaged.*move this replica's directory"):
            await cluster.start("m1")

        for file in (tmp_path / "m1").iterdir():
            file.unlink()
        await cluster.start("m1")
        await cluster.wait_for_agreement()
        assert len(cluster.ledgers["m1"].entries) == 10


async def test_a_damaged_snapshot_refuses_to_start(tmp_path: Path) -> None:
    async with Replicas(tmp_path, snapshot_every_entries=5, keep_entries=0, segment_bytes=300) as cluster:
        await cluster.start()
        for i in range(20):
            await cluster.propose(b"%d" % i)
        await wait_until(lambda: list(tmp_path.glob("m1/snapshot-*.snap")), what=lambda: list(tmp_path.glob("m1/*")))
        await cluster.stop("m1")
        *_, snapshot = sorted((tmp_path / "m1").glob("snapshot-*.snap"))
        data = bytearray(snapshot.read_bytes())
        data[-1] ^= 1
        snapshot.write_bytes(data)

        with pytest.raises(SnapshotDamaged, match=r"checksum of .* is wrong"):
            await cluster.start("m1")


async def test_a_directory_in_use_and_a_taken_port_are_refused_without_leaving_anything_open(tmp_path: Path) -> None:
    async with Replicas(tmp_path) as cluster:
        await cluster.start("m1")
        twin = Replica(
            cluster.settings("m1"), Ledger(), certificates=cluster.certificates("m1"), on_fatal=lambda error: None
        )
        with pytest.raises(DirectoryInUse):
            await twin.start()
        squatter = await asyncio.start_server(lambda r, w: None, "127.0.0.1", cluster.members[1].raft_port)
        async with squatter:
            with pytest.raises(OSError, match="address already in use"):
                await cluster.start("m2")
        await cluster.start("m2")
        assert await cluster.propose(b"x") == 1


async def test_an_exception_in_a_listener_stops_the_replica(tmp_path: Path) -> None:
    async with Replicas(tmp_path, size=1) as cluster:
        await cluster.start()
        await cluster.wait_for_leader()
        replica = cluster.running["m1"]

        def broken(index: int) -> None:
            raise RuntimeError("listener is broken")

        replica.add_applied_listener(broken)
        assert await replica.propose(b"x") == 1
        await wait_until(lambda: cluster.fatal, what=cluster.describe)
        assert "listener is broken" in str(cluster.fatal["m1"])
        assert not replica.is_leader
