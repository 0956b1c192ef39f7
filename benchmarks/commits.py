#!/usr/bin/env python3
"""What consensus costs by itself: three replicas in three processes on loopback, each write synced to disk.

    benchmarks/commits.py [--count 2000] [--dir FOLDER]

Prints JSON lines: a lone commit (one at a time), and commits with many waiting at once, which share log entries.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from depalma.certificates import CertificateFiles
from depalma.consensus import Member, Replica, ReplicaSettings
from depalma.testing.certificates import CLUSTER, throwaway_secrets


class Counter:
    """The smallest state there is."""

    def __init__(self) -> None:
        self.applied = 0

    def apply(self, command: bytes, index: int) -> object:
        """Counts."""
        self.applied += 1
        return index

    def snapshot(self) -> list[bytes]:
        """Returns the count."""
        return [str(self.applied).encode()]

    def restore(self, pieces: Iterable[bytes]) -> None:
        """Takes a count."""
        (count,) = pieces
        self.applied = int(count)


async def propose_many(replica: Replica, command: bytes, count: int, at_once: int) -> float:
    """Returns the commands a second with so many waiting at once."""
    left = iter(range(count))

    async def one() -> None:
        for _ in left:
            await replica.propose(command)

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(at_once)))
    return count / (time.perf_counter() - started)


async def lead(replica: Replica, count: int) -> None:
    """Measures."""
    times = []
    for _ in range(count):
        started = time.perf_counter()
        await replica.propose(b"x" * 100)
        times.append(1000 * (time.perf_counter() - started))
    times.sort()
    say("lone_commit", statistics.median(times), "ms", p99_ms=round(times[int(0.99 * count)], 2), n=count)
    for at_once in (4, 64, 1000):
        rate = await propose_many(replica, b"x" * 100, 10 * count, at_once)
        say(f"commits_{at_once}_waiting", rate, "commands/s")
    rate = await propose_many(replica, b"x" * 65536, count // 4, 4)
    say("commits_of_64_kib", rate / 16, "MiB/s")


def say(name: str, value: float, unit: str, **more: object) -> None:
    """Prints one result."""
    print(json.dumps({"benchmark": name, "value": round(value, 2), "unit": unit, **more}), flush=True)


async def serve(name: str, members: tuple[Member, ...], folder: Path, count: int) -> None:
    """Is one replica; the one that leads measures, and its end ends all."""
    settings = ReplicaSettings(id=name, members=members, directory=folder / name)
    certificates = CertificateFiles.of(folder / "secrets", CLUSTER, name)
    replica = Replica(
        settings, Counter(), certificates=certificates, on_fatal=lambda error: sys.exit(f"{name}: {error}")
    )
    (folder / name).mkdir(mode=0o700)
    await replica.start()
    try:
        while not (folder / "done").exists():
            if replica.is_leader:
                await asyncio.sleep(0.5)
                await lead(replica, count)
                (folder / "done").touch()
            await asyncio.sleep(0.05)
    finally:
        await replica.stop()


def run_replica(name: str, members: tuple[Member, ...], folder: Path, count: int) -> None:
    """Runs in a process of its own."""
    asyncio.run(serve(name, members, folder, count))


def main() -> int:
    """Runs the benchmark. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--dir", type=Path, help="where the journals go; default: the temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="depalma-commits-", dir=options.dir) as folder:
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        members = tuple(
            Member(id=f"m{n}", host="127.0.0.1", raft_port=s.getsockname()[1]) for n, s in enumerate(sockets)
        )
        for held in sockets:
            held.close()
        throwaway_secrets(Path(folder) / "secrets", [member.id for member in members])
        context = multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=run_replica, args=(member.id, members, Path(folder), options.count))
            for member in members
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return int(any(process.exitcode for process in processes))


if __name__ == "__main__":
    sys.exit(main())
