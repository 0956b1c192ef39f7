"""Real processes killed for real: what they acknowledged is there afterwards."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from depalma.local.folder import free_ports
from depalma.testing.certificates import throwaway_secrets
from depalma.testing.replicas import Replicas

#: proposes as fast as it can while it leads; every acknowledged command and every new reign becomes a line of a file
PROGRAM = """
import asyncio, os, sys, time
from pathlib import Path
from depalma.consensus import ConsensusError
from depalma.testing.replicas import Replicas

async def main(directory, name, *ports):
    out = os.open(Path(directory) / f"{name}.acks", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    cluster = Replicas(Path(directory), ports=[int(port) for port in ports], snapshot_every_entries=50, keep_entries=5,
                       segment_bytes=20_000)
    await cluster.start(name)
    replica = cluster.running[name]
    count = 0
    while not cluster.fatal:
        if replica.has_joined:
            (Path(directory) / f"{name}.formed").touch()
        if not replica.is_leader:
            await asyncio.sleep(0.002)
            continue
        count += 1
        command = b"%s-%d-%d" % (name.encode(), os.getpid(), count)
        try:
            await replica.propose(command, timeout_s=2)
        except ConsensusError:
            continue
        os.write(out, b"%f %s\\n" % (time.monotonic(), command))
    sys.exit(3)

asyncio.run(main(*sys.argv[1:]))
"""

Processes = dict[str, "subprocess.Popen[bytes]"]


class Cluster:
    """Three replica processes in one folder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports = free_ports(3)
        throwaway_secrets(directory / "secrets", ["m1", "m2", "m3"])  # here, so that none of them starts late
        self.processes: Processes = {}

    def start(self, *names: str) -> None:
        for name in names:
            argv = [sys.executable, "-c", PROGRAM, str(self.directory), name, *map(str, self.ports)]
            log = (self.directory / f"{name}.log").open("ab")
            self.processes[name] = subprocess.Popen(argv, stderr=log)
            log.close()

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def acks(self) -> list[tuple[float, str]]:
        """Time and command of everything acknowledged, in order of time; the last word of a file may be cut."""
        found = []
        for file in self.directory.glob("*.acks"):
            for line in file.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    at, command = line.split()
                    found.append((float(at), command))
        return sorted(found)

    def wait_for_acks_after(self, moment: float, count: int = 1, within_s: float = 60.0) -> float:
        """The time of the `count`-th acknowledgement after the moment."""
        deadline = time.monotonic() + within_s
        while True:
            after = [at for at, _ in self.acks() if at > moment]
            if len(after) >= count:
                return after[count - 1]
            dead = [name for name, process in self.processes.items() if process.poll() is not None]
            assert not dead, "\n".join((self.directory / f"{name}.log").read_text() for name in dead)
            assert time.monotonic() < deadline, f"{len(after)} acknowledgements of {count} within {within_s} s"
            time.sleep(0.01)

    def wait_until_formed(self, within_s: float = 60.0) -> None:
        """Until then two of them may not elect each other (`joined` in DESIGN.md), and no leader may be taken away."""
        deadline = time.monotonic() + within_s
        while missing := [name for name in self.processes if not (self.directory / f"{name}.formed").exists()]:
            assert time.monotonic() < deadline, f"{missing} have not joined within {within_s} s"
            time.sleep(0.01)

    def leader(self) -> str:
        return self.acks()[-1][1].split("-")[0]

    def ledger(self) -> list[bytes]:
        """What the replicas agree on, read by replicas in this process."""
        return asyncio.run(self._ledger())

    async def _ledger(self) -> list[bytes]:
        async with Replicas(self.directory, ports=self.ports) as replicas:
            await replicas.start()
            await replicas.propose(b"last")
            await replicas.wait_for_agreement()
            return replicas.ledgers["m1"].entries


@contextmanager
def running(directory: Path) -> Iterator[Cluster]:
    cluster = Cluster(directory)
    try:
        cluster.start("m1", "m2", "m3")
        cluster.wait_for_acks_after(0.0)
        cluster.wait_until_formed()
        yield cluster
    finally:
        for name in list(cluster.processes):
            cluster.kill(name)


def test_nothing_acknowledged_is_lost_when_leaders_are_killed(tmp_path: Path) -> None:
    with running(tmp_path) as cluster:
        for _ in range(6):
            cluster.wait_for_acks_after(time.monotonic(), count=20)
            victim = cluster.leader()
            cluster.kill(victim)
            # How long it takes is for benchmarks/ to measure, alone on the machine; here others run beside it.
            cluster.wait_for_acks_after(time.monotonic())
            cluster.start(victim)
        acknowledged = [command.encode() for _, command in cluster.acks()]

    held = cluster.ledger()
    assert not set(acknowledged) - set(held)
    assert len(held) == len(set(held))


def test_nothing_acknowledged_is_lost_when_all_are_killed_at_once(tmp_path: Path) -> None:
    """Again and again, at random moments, so that some kills hit a snapshot that is being written."""
    chance = random.Random(1)
    with running(tmp_path) as cluster:
        for _ in range(5):
            last = cluster.wait_for_acks_after(time.monotonic(), count=chance.randrange(20, 120))
            for name in list(cluster.processes):
                cluster.processes[name].kill()
            for name in list(cluster.processes):
                cluster.kill(name)
            cluster.start("m1", "m2", "m3")
            cluster.wait_for_acks_after(last)
        acknowledged = [command.encode() for _, command in cluster.acks()]

    assert list(tmp_path.glob("m*/snapshot-*.snap"))
    held = cluster.ledger()
    assert not set(acknowledged) - set(held)


def test_a_frozen_leader_is_replaced_and_does_no_harm_when_it_wakes(tmp_path: Path) -> None:
    with running(tmp_path) as cluster:
        frozen = cluster.leader()
        process = cluster.processes[frozen]
        os.kill(process.pid, signal.SIGSTOP)
        stopped_at = time.monotonic()
        try:
            cluster.wait_for_acks_after(stopped_at, count=50)
        finally:
            os.kill(process.pid, signal.SIGCONT)
        cluster.wait_for_acks_after(time.monotonic(), count=50)
        acknowledged = [command.encode() for _, command in cluster.acks()]

    held = cluster.ledger()
    assert not set(acknowledged) - set(held)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_replica_on_a_full_disk_stops_by_itself_and_the_others_go_on(tmp_path: Path) -> None:
    small = tmp_path / "m2"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=False, capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        with running(tmp_path) as cluster:
            filler = small / "filler"
            filler.write_bytes(b"")
            with filler.open("ab", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    full_at = time.monotonic()
            process = cluster.processes["m2"]
            assert process.wait(timeout=60) == 3
            del cluster.processes["m2"]
            assert "No space left on device" in (tmp_path / "m2.log").read_text()
            cluster.wait_for_acks_after(full_at, count=100)

            filler.unlink()
            cluster.start("m2")
            cluster.wait_for_acks_after(time.monotonic(), count=20)
            acknowledged = [command.encode() for _, command in cluster.acks()]
            assert cluster.processes["m2"].poll() is None
        held = cluster.ledger()
        assert not set(acknowledged) - set(held)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
