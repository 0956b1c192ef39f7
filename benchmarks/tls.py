#!/usr/bin/env python3
"""What mutual TLS between the masters costs: two clusters of three processes, one of them over plain TCP, in turns.

    benchmarks/tls.py [--rounds 20] [--dir FOLDER]

Prints JSON lines. The turns are short and alternate, so that whatever else the machine does hits both alike; compare
the two values of a line, and trust CPU time before time on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from consensus import Cluster, Work, nothing

from depalma.consensus import transport

WORK = {
    "lone": Work(100, 1, count=40, seconds=60),
    "waiting_64": Work(100, 64, count=2_000, seconds=60),
    "waiting_1000": Work(100, 1_000, count=8_000, seconds=60),
    "of_64_kib": Work(65_536, 4, count=60, seconds=60),
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


class Side:
    """One of the two clusters, and what was measured with it."""

    def __init__(self, folder: Path, prepare: Callable[[str], None]) -> None:
        self.cluster = Cluster(folder, 3, prepare)
        self.milliseconds: dict[str, list[float]] = {name: [] for name in WORK}
        self.rates: dict[str, list[float]] = {name: [] for name in WORK}
        self.cpu: dict[str, list[float]] = {name: [] for name in WORK}

    def measure(self, name: str) -> None:
        """Takes one turn."""
        turn, _, cpu_s = self.cluster.turn(WORK[name])
        count = len(turn.milliseconds)
        self.milliseconds[name] += turn.milliseconds
        self.rates[name].append(count / turn.seconds)
        self.cpu[name].append(1e6 * cpu_s / count)


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
        tls, plain = Side(Path(folder) / "tls", nothing), Side(Path(folder) / "plain", speak_plainly)
        try:
            for number in range(options.rounds):
                for work in WORK:
                    for side in (tls, plain) if number % 2 else (plain, tls):
                        side.measure(work)
        finally:
            for side in (tls, plain):
                side.cluster.stop()
    say("lone", "ms, median", tls.milliseconds["lone"], plain.milliseconds["lone"])
    for work in WORK:
        say(work, "commands/s", tls.rates[work], plain.rates[work])
        say(work, "CPU us a command, three replicas together", tls.cpu[work], plain.cpu[work])
    return 0


if __name__ == "__main__":
    sys.exit(main())
