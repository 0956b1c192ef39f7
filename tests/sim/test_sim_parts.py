"""The simulation's own parts: time, network, disk, and that the cluster notices what it must."""

from __future__ import annotations

import errno
from random import Random

import pytest

from depalma.consensus import DiskFailed, OutcomeUnknown
from depalma.consensus.messages import Append, encode
from depalma.testing import Ledger, ManualClock, PowerCut, SimCluster, SimDisk, SimNetwork, Timeline, Violation, Weather
from depalma.testing.catch_up import CatchUp
from depalma.testing.clock import SkewedClock
from depalma.testing.damage import Operator, flip_bit


def test_a_manual_clock_moves_only_when_told_and_never_back() -> None:
    clock = ManualClock(epoch=1000.0)
    assert (clock.monotonic(), clock.time()) == (0.0, 1000.0)
    clock.advance(2.5)
    assert (clock.monotonic(), clock.time()) == (2.5, 1002.5)
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)


def test_a_timeline_keeps_the_order_of_what_is_due_at_once() -> None:
    clock = ManualClock()
    timeline = Timeline(clock)
    seen: list[tuple[str, float]] = []
    for name, delay in (("b", 2.0), ("a", 1.0), ("c", 2.0), ("never", 9.0)):
        timeline.after(delay, lambda name=name: seen.append((name, clock.monotonic())))
    timeline.run_for(5.0)

    assert seen == [("a", 1.0), ("b", 2.0), ("c", 2.0)]
    assert clock.monotonic() == 5.0


class Inbox:
    """A node that writes down what happens to it."""

    def __init__(self, network: SimNetwork, name: str) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.events: list[str] = []
        network.start(
            name,
            on_frame=lambda peer, frame: self.heard.append((peer, frame)),
            on_connected=lambda peer: self.events.append(f"+{peer}"),
            on_disconnected=lambda peer: self.events.append(f"-{peer}"),
        )


def network_of_two(weather: Weather | None = None) -> tuple[Timeline, SimNetwork, Inbox, Inbox]:
    timeline = Timeline(ManualClock())
    network = SimNetwork(timeline, Random(1), weather)
    a, b = Inbox(network, "a"), Inbox(network, "b")
    timeline.run_for(0.1)
    return timeline, network, a, b


def test_frames_arrive_in_order_within_a_connection() -> None:
    timeline, network, a, b = network_of_two(Weather(delay_s=(0.0, 0.5)))
    for i in range(50):
        network.send("a", "b", b"%d" % i)
    timeline.run_for(1.0)

    assert b.heard == [("a", b"%d" % i) for i in range(50)]
    assert a.events == ["+b"]


def test_a_one_way_cut_loses_one_direction_and_ends_the_connection_by_its_timeout() -> None:
    timeline, network, a, b = network_of_two()
    network.block("a", "b")
    network.send("a", "b", b"lost")
    network.send("b", "a", b"heard")
    timeline.run_for(1.0)
    assert (a.heard, b.heard) == ([("b", b"heard")], [])
    timeline.run_for(3.0)
    assert b.events == ["+a", "-a"]
    network.heal()
    timeline.run_for(0.1)

    assert b.events == ["+a", "-a", "+a"]


def test_a_node_that_falls_silent_is_noticed_when_it_returns() -> None:
    timeline, network, a, _ = network_of_two()
    network.stop("b", silently=True)
    timeline.run_for(1.0)
    assert a.events == ["+b"]
    again = Inbox(network, "b")
    timeline.run_for(0.1)

    assert a.events == ["+b", "-b", "+b"]
    assert again.events == ["+a"]


def test_a_disk_keeps_what_was_synced_and_perhaps_the_rest() -> None:
    lengths = set()
    for seed in range(200):
        disk = SimDisk(Random(seed))
        file = disk.create("f")
        file.write(b"kept")
        file.sync()
        disk.sync_dir()
        file.write(bytes(100))
        disk.crash()
        assert disk.read("f")[:4] == b"kept"
        lengths.add(disk.size("f"))

    assert {4, 104} < lengths


def test_a_later_write_may_survive_an_earlier_one_and_a_synced_one_always_does() -> None:
    seen = set()
    for seed in range(300):
        disk = SimDisk(Random(seed))
        file = disk.create("f")
        file.write(b"kept")
        file.sync()
        disk.sync_dir()
        for letter in b"abc":
            file.write(bytes([letter]) * 10)
        disk.crash()
        data = disk.read("f")
        assert data[:4] == b"kept"
        seen.add("".join(letter for letter in "abc" if letter.encode() in data))

    assert {"", "a", "b", "c", "ac", "bc", "abc"} <= seen


def test_what_a_failed_sync_did_not_write_can_be_read_until_the_power_goes_off() -> None:
    lost = 0
    for seed in range(50):
        disk = SimDisk(Random(seed))
        file = disk.create("f")
        disk.sync_dir()
        file.write(b"x" * 10)
        disk.failing.add("sync")
        with pytest.raises(OSError, match="Input/output"):
            file.sync()
        disk.repair()
        assert disk.read("f") == b"x" * 10
        file.sync()
        file.write(b"y" * 10)
        file.sync()
        disk.crash()
        assert disk.read("f")[10:] == b"y" * 10
        lost += disk.read("f")[:10] == bytes(10)

    assert 20 < lost < 50


def test_what_a_failed_sync_did_not_write_is_durable_once_it_was_written_again() -> None:
    for seed in range(20):
        disk = SimDisk(Random(seed))
        file = disk.create("f")
        disk.sync_dir()
        file.write(b"x" * 10)
        disk.failing.add("sync")
        with pytest.raises(OSError, match="Input/output"):
            file.sync()
        disk.repair()
        disk.rewrite("f", 0, b"x" * 10)
        file.sync()
        disk.crash()
        assert disk.read("f") == b"x" * 10


def test_a_name_is_kept_only_after_the_directory_is_synced() -> None:
    kept = 0
    for seed in range(100):
        disk = SimDisk(Random(seed))
        disk.create("old")
        disk.sync_dir()
        disk.rename("old", "new")
        disk.crash()
        assert disk.names() in (["old"], ["new"])
        kept += disk.names() == ["new"]

    assert 20 < kept < 80


def test_a_killed_process_leaves_what_it_wrote() -> None:
    disk = SimDisk(Random(1))
    disk.create("f").write(b"not synced")
    disk.crash(power=False)

    assert disk.read("f") == b"not synced"


def test_a_disk_fails_as_told() -> None:
    disk = SimDisk(Random(1))
    file = disk.create("f")
    disk.capacity_bytes = 10
    with pytest.raises(OSError, match="No space") as caught:
        file.write(bytes(11))
    assert caught.value.errno == errno.ENOSPC
    for operation in ("sync", "write", "read"):
        disk.failing = {operation}
        action = {"sync": file.sync, "write": lambda: file.write(b""), "read": lambda: disk.read("f")}[operation]
        with pytest.raises(OSError, match="Input/output"):
            action()
    disk.repair()
    file.sync()
    disk.power_cut_in = 0
    with pytest.raises(PowerCut):
        file.write(b"x")
    with pytest.raises(FileNotFoundError):
        disk.read("no such file")


def test_a_disk_that_lies_about_syncing_is_found_out() -> None:
    lost = 0
    for seed in range(20):
        cluster = SimCluster(Ledger, seed=seed, size=1)
        cluster.nodes["m1"].disk.lies = True
        cluster.start()
        cluster.wait_for_leader()
        answer = cluster.propose("m1", b"x")
        cluster.run_for(0.1)
        assert answer.value == 1
        cluster.crash("m1")
        try:
            cluster.restart("m1")
            machine = cluster.nodes["m1"].machine
            lost += machine is None or machine.entries != [b"x"]
        except Violation:
            lost += 1

    assert lost > 5


def with_snapshots(seed: int) -> SimCluster[Ledger]:
    cluster = SimCluster(Ledger, seed=seed, snapshot_every_entries=8, keep_entries=3, segment_bytes=300)
    cluster.start()
    leader = cluster.wait_for_leader()
    for i in range(30):
        cluster.propose(leader, b"%d" % i)
        cluster.run_for(0.03)
    cluster.crash("m3", power=False)
    return cluster


def test_every_flipped_bit_is_noticed_or_harmless() -> None:
    kinds: set[str | None] = set()
    cluster = with_snapshots(1)
    node = cluster.nodes["m3"]
    disk, random = node.disk, Random(1)
    disk.create("journal.tmp").write(b"left by a crash")
    for _ in range(400):
        node.disk = disk.clone()
        kinds.add(flip_bit(cluster, "m3", random))

    assert kinds == {
        "bit flipped, noticed",
        "bit flipped, in a file that is not needed",
        "bit flipped, in the last group",
    }


def test_a_flipped_bit_that_nobody_would_notice_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zlib.crc32", lambda data, value=0: 0)
    cluster = with_snapshots(1)
    disk, random = cluster.nodes["m3"].disk, Random(1)

    def flip_many() -> None:
        for _ in range(200):
            cluster.nodes["m3"].disk = disk.clone()
            flip_bit(cluster, "m3", random)

    with pytest.raises(Violation, match="changes what is read, unnoticed"):
        flip_many()


def test_a_replica_that_starts_on_damage_is_found_out() -> None:
    cluster = with_snapshots(1)
    cluster.nodes["m3"].disk.damage = "something"

    with pytest.raises(Violation, match="m3 started without noticing something"):
        cluster.restart("m3")


def test_the_operator_replaces_a_damaged_disk_once_the_others_are_equal() -> None:
    cluster = with_snapshots(1)
    operator = Operator(cluster)
    operator.start()
    disk = cluster.nodes["m3"].disk
    segment = next(name for name in disk.names() if name.startswith("journal-"))
    disk.flip_bit(segment, 20)
    disk.damage = "a flipped bit"
    cluster.crash("m2")
    cluster.restart("m3")
    cluster.run_for(2.0)
    assert cluster.nodes["m3"].found_damage
    assert not cluster.nodes["m3"].up

    cluster.restart("m2")
    cluster.run_for(3.0)
    cluster.ensure_same()
    assert operator.wiped == 1
    assert not operator.busy


def test_a_clock_of_its_own_runs_jumps_and_stands_still() -> None:
    base = ManualClock(epoch=1000.0)
    clock = SkewedClock(base, rate=2.0, offset_s=50.0, wall_s=-10.0)
    base.advance(5.0)
    assert (clock.monotonic(), clock.time()) == (60.0, 1000.0)
    clock.jump(7.0)
    assert (clock.monotonic(), clock.time()) == (67.0, 1007.0)
    base.advance(4.0)
    clock.leave_out(4.0)
    assert clock.monotonic() == 67.0
    with pytest.raises(ValueError, match="does not go back"):
        clock.jump(-1.0)


def test_a_replica_that_stands_still_takes_up_what_came_in_when_it_goes_on() -> None:
    cluster = SimCluster(Ledger, seed=1)
    cluster.start()
    leader = cluster.wait_for_leader()
    cluster.run_for(0.5)
    cluster.freeze(leader)
    asked = cluster.propose(leader, b"x")
    cluster.run_for(2.0)
    assert not asked.done
    assert cluster.leader() != leader
    cluster.thaw(leader)
    cluster.run_for(1.0)

    assert asked.error is not None
    cluster.ensure_same()


def test_whoever_asked_a_replica_that_dies_standing_still_is_told_that_nobody_knows() -> None:
    cluster = SimCluster(Ledger, seed=1)
    cluster.start()
    leader = cluster.wait_for_leader()
    cluster.freeze(leader)
    asked = cluster.propose(leader, b"x")
    cluster.crash(leader)

    assert isinstance(asked.error, OutcomeUnknown)


def test_a_leader_that_sends_its_log_again_and_again_is_found_out() -> None:
    watch = CatchUp()
    entries = [(1, b"x" * 10_000)] * 5
    for _ in range(2):
        watch.note("m1", "m2", encode(Append(1, 0, 0, 1, 1, entries)))
    watch.judge()
    watch.note("m1", "m2", encode(Append(1, 0, 0, 1, 1, entries)))

    with pytest.raises(Violation, match="m1 sent 150000 bytes to m2 in term 1, of 50000"):
        watch.judge()


class Forgetful(Ledger):
    """Depends on something that is not in the log."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        Forgetful.made += 1
        self.number = Forgetful.made

    def apply(self, command: bytes, index: int) -> object:
        return super().apply(command + b"%d" % self.number, index)


def test_a_machine_that_is_not_deterministic_is_found_out() -> None:
    cluster = SimCluster(Forgetful, seed=1)
    cluster.start()
    cluster.propose(cluster.wait_for_leader(), b"x")
    with pytest.raises(Violation, match="differs from another replica at command 1"):
        cluster.run_for(1.0)


def test_a_replica_that_stops_without_a_planted_fault_is_a_violation() -> None:
    cluster = SimCluster(Ledger, seed=1)
    cluster.start()
    leader = cluster.wait_for_leader()
    disk = cluster.nodes[leader].disk
    disk.failing.add("sync")
    answer = cluster.propose(leader, b"x")
    cluster.run_for(1.0)
    assert isinstance(cluster.nodes[leader].stopped_by, DiskFailed)
    assert answer.error is not None
    cluster.wait_for_leader()

    with pytest.raises(Violation, match="stopped: DiskFailed"):
        cluster.note_stop(leader, DiskFailed("writing", "x", OSError(errno.EIO, "no fault was planted")))


def test_waiting_in_vain_says_what_was_last_seen() -> None:
    cluster = SimCluster(Ledger, seed=1)
    cluster.start("m1")
    with pytest.raises(Violation, match=r"not within 1\.0 s: a leader; at .* m2: down"):
        cluster.wait_for_leader(within_s=1.0)
