"""The simulation's own parts: time, network, disk, and that the cluster notices what it must."""

from __future__ import annotations

import errno
from random import Random

import pytest

from depalma.consensus import DiskFailed
from depalma.testing import Ledger, ManualClock, PowerCut, SimCluster, SimDisk, SimNetwork, Timeline, Violation, Weather


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
    disk.failing.add("sync")
    with pytest.raises(OSError, match="Input/output"):
        file.sync()
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
