#!/usr/bin/env python3
"""What mutual TLS between the masters costs: two clusters of three processes, one of them over plain TCP, in turns.

    benchmarks/tls.py [--rounds 20] [--dir FOLDER]

Prints JSON lines. The turns are short and alternate, so that whatever else the machine does hits both alike; compare
the two values of a line, and trust CPU time before time on a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from depalma.consensus import ConsensusError, Replica, transport
from depalma.testing.replicas import Replicas, free_ports

#: name → size of a command in bytes, how many wait at once, how many a turn
WORK = {
    "lone": (100, 1, 40),
    "waiting_64": (100, 64, 2_000),
    "waiting_1000": (100, 1_000, 8_000),
    "of_64_kib": (65_536, 4, 60),
}


class Plain:
    """Stands where tls.Channel stands, and passes everything on as it is: the dialer just says who it is."""

    def __init__(self, me: str, *, accepting: bool) -> None:
        self.peer: str | None = None
        self._accepting = accepting
        self._waiting = b"" if accepting else me.encode().ljust(8)

    def receive(self, data: bytes) -> bytes:
        """Returns the same; the first eight bytes of a dialer are its name."""
        if self.peer is None and self._accepting:
            self.peer, data = data[:8].decode().strip(), data[8:]
        return data

    def send(self, content: bytes) -> None:
        """Keeps it for `take`."""
        self._waiting += content

    def take(self) -> bytes:
        """Returns what was kept."""
        waiting, self._waiting = self._waiting, b""
        return waiting


def speak_plainly(me: str) -> None:
    """Puts plain TCP under the replicas of this process."""

    class Connection(transport.Connection):
        def __init__(self, mesh: Any, channel: Any, peer: str | None) -> None:
            channel = Plain(me, accepting=peer is None)
            channel.peer = peer
            super().__init__(mesh, channel, peer)

    vars(transport)["Connection"] = Connection


async def turn(replica: Replica, size_bytes: int, at_once: int, count: int) -> list[float]:
    """Returns the milliseconds that each command took."""
    left, took = iter(range(count)), []

    async def one() -> None:
        for _ in left:
            started = time.perf_counter()
            await replica.propose(b"x" * size_bytes)
            took.append(1000 * (time.perf_counter() - started))

    await asyncio.gather(*(one() for _ in range(at_once)))
    return took


async def serve(folder: Path, ports: list[int], name: str, pipe: Pipe) -> None:
    """Is one replica and does what the pipe says."""
    loop = asyncio.get_running_loop()
    async with Replicas(folder, ports=ports) as cluster:
        await cluster.start(name)
        replica = cluster.running[name]
        pipe.send("started")
        while (order := await loop.run_in_executor(None, pipe.recv)) != "stop":
            if order == "cpu":
                pipe.send(time.process_time())
                continue
            started = time.perf_counter()
            try:
                took = await turn(replica, *WORK[order]) if replica.is_leader else None
            except ConsensusError as error:
                took = None
                print(f"{name}: {error}", file=sys.stderr)
            pipe.send((took, time.perf_counter() - started))


def run(folder: Path, ports: list[int], name: str, pipe: Pipe, plain: bool) -> None:
    """Is a process of its own."""
    if plain:
        speak_plainly(name)
    asyncio.run(serve(folder, ports, name, pipe))


class Cluster:
    """Three replica processes, and what was measured with them."""

    def __init__(self, folder: Path, plain: bool) -> None:
        Replicas(folder)  # makes the certificates
        ports, context = free_ports(3), multiprocessing.get_context("spawn")
        self.milliseconds: dict[str, list[float]] = {work: [] for work in WORK}
        self.rates: dict[str, list[float]] = {work: [] for work in WORK}
        self.cpu: dict[str, list[float]] = {work: [] for work in WORK}
        self.pipes, self.processes = [], []
        for name in ("m1", "m2", "m3"):
            ours, theirs = context.Pipe()
            self.pipes.append(ours)
            self.processes.append(context.Process(target=run, args=(folder, ports, name, theirs, plain)))
            self.processes[-1].start()
        self.ask("started")

    def ask(self, order: str) -> list[Any]:
        """Tells all and returns what each says."""
        if order != "started":
            for pipe in self.pipes:
                pipe.send(order)
        return [pipe.recv() for pipe in self.pipes] if order != "stop" else []

    def measure(self, work: str) -> bool:
        """Takes one turn; False if nobody led to its end."""
        before = sum(self.ask("cpu"))
        answers = [answer for answer in self.ask(work) if answer[0] is not None]
        if len(answers) != 1:
            return False
        ((took, seconds),) = answers
        self.milliseconds[work] += took
        self.rates[work].append(len(took) / seconds)
        self.cpu[work].append(1e6 * (sum(self.ask("cpu")) - before) / len(took))
        return True

    def stop(self) -> None:
        """Ends the processes."""
        self.ask("stop")
        for process in self.processes:
            process.join()


def say(work: str, measure: str, tls: Iterable[float], plain: Iterable[float]) -> None:
    """Prints one result: medians and their ratio."""
    medians = statistics.median(tls), statistics.median(plain)
    values = {"tls": round(medians[0], 2), "plain": round(medians[1], 2), "ratio": round(medians[0] / medians[1], 3)}
    print(json.dumps({"benchmark": f"tls_{work}", "measure": measure, **values}), flush=True)


def main() -> int:
    """Runs the benchmark. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dir", type=Path, help="where the journals go; default: the temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="depalma-tls-", dir=options.dir) as folder:
        clusters = [Cluster(Path(folder) / "tls", False), Cluster(Path(folder) / "plain", True)]
        try:
            for number in range(options.rounds):
                for work in WORK:
                    for cluster in clusters if number % 2 else reversed(clusters):
                        while not cluster.measure(work):
                            time.sleep(0.2)
        finally:
            for cluster in clusters:
                cluster.stop()
    tls, plain = clusters
    say("lone", "ms, median", tls.milliseconds["lone"], plain.milliseconds["lone"])
    for work in WORK:
        say(work, "commands/s", tls.rates[work], plain.rates[work])
        say(work, "CPU us a command, three replicas together", tls.cpu[work], plain.cpu[work])
    return 0


if __name__ == "__main__":
    sys.exit(main())
