#!/usr/bin/env python3
"""What consensus costs by itself: replicas in processes of their own, mutual TLS, each write synced to disk.

    benchmarks/consensus.py                          1, 3 and 5 replicas; 1, 10, 100 and 1,000 commands waiting
    benchmarks/consensus.py --replicas 3 --waiting 1,1000 --rounds 9
    benchmarks/consensus.py --replicas 3 --profile   and where the leader's processor time goes
    benchmarks/consensus.py --size 65536 --waiting 4

Prints a JSON line for each number of replicas and of commands that wait at once: `operations_per_s` are commands, and
`commits_per_s` log entries, each of which holds what waited (group commit). Every value is the median of the rounds.
The processor time is that of the leader and of all replicas together; the client is in the leader's process.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import io
import json
import multiprocessing
import os
import platform
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

from depalma import __version__
from depalma.certificates import CertificateFiles
from depalma.consensus import ConsensusError, Member, Replica, ReplicaSettings
from depalma.local.folder import free_ports
from depalma.testing.certificates import CLUSTER, throwaway_secrets

#: how long a round takes
ROUND_S = 1.5
PROFILED = 20
#: by replicas and waiting commands
GOALS = {(3, 1): {"goal_p50_ms": 2.5, "goal_p99_ms": 6}, (3, 1000): {"goal_operations_per_s": 40_000}}


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


@dataclass(frozen=True)
class Work:
    """What a turn does: commands of a size, so many waiting at once, for so long or so many of them."""

    size_bytes: int
    waiting: int
    seconds: float = ROUND_S
    count: int = sys.maxsize
    profile: bool = False


@dataclass(frozen=True)
class Turn:
    """What the leader measured in one."""

    milliseconds: list[float]  #: of each command
    seconds: float
    entries: int
    profile: str


# ---------------------------------------------------------------- a replica


async def take_turn(replica: Replica, work: Work) -> Turn:
    """Proposes until the time or the commands are over. Errors: ConsensusError."""
    took: list[float] = []
    command, clock = b"x" * work.size_bytes, time.perf_counter
    log = replica._core.journal.log
    entries, started = log.last_index, clock()
    end, left = started + work.seconds, iter(range(work.count))

    async def one() -> None:
        for _ in left:
            began = clock()
            if began > end:
                return
            await replica.propose(command)
            took.append(1000 * (clock() - began))

    profile = cProfile.Profile()
    if work.profile:
        profile.enable()
    await asyncio.gather(*(one() for _ in range(work.waiting)))
    profile.disable()
    return Turn(took, clock() - started, log.last_index - entries, top(profile) if work.profile else "")


def top(profile: cProfile.Profile) -> str:
    """Returns the functions that took most, by the time in themselves."""
    text = io.StringIO()
    pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(PROFILED)
    return text.getvalue()


async def serve(members: tuple[Member, ...], folder: Path, name: str, pipe: Pipe) -> None:
    """Is one replica and does what the pipe says."""
    replica = Replica(
        ReplicaSettings(id=name, members=members, directory=folder / name),
        Counter(),
        certificates=CertificateFiles.of(folder / "secrets", CLUSTER, name),
        on_fatal=lambda error: sys.exit(f"{name}: {error}"),
    )
    await replica.start()
    pipe.send("started")
    loop = asyncio.get_running_loop()
    try:
        while (order := await loop.run_in_executor(None, pipe.recv)) != "stop":
            answer: object = time.process_time()
            if isinstance(order, Work):
                answer = None
                try:
                    answer = await take_turn(replica, order) if replica.is_leader else None
                except ConsensusError as error:
                    print(f"{name}: {error}", file=sys.stderr)
            pipe.send(answer)
    finally:
        await replica.stop()


def run(members: tuple[Member, ...], folder: Path, name: str, pipe: Pipe, prepare: Callable[[str], None]) -> None:
    """Is a process of its own."""
    prepare(name)
    asyncio.run(serve(members, folder, name, pipe))


def nothing(name: str) -> None:
    """Prepares nothing."""


# ---------------------------------------------------------------- all of them


class Cluster:
    """Replicas in processes. `prepare` is called in each of them first, with its name."""

    def __init__(self, folder: Path, size: int, prepare: Callable[[str], None] = nothing) -> None:
        members = tuple(
            Member(id=f"m{number}", host="127.0.0.1", raft_port=port) for number, port in enumerate(free_ports(size), 1)
        )
        throwaway_secrets(folder / "secrets", [member.id for member in members])
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for member in members:
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            self._processes.append(context.Process(target=run, args=(members, folder, member.id, theirs, prepare)))
            self._processes[-1].start()
            theirs.close()
        for pipe in self._pipes:
            pipe.recv()

    def cpu_s(self) -> list[float]:
        """Returns the processor time of each so far, in seconds."""
        return [float(str(answer)) for answer in self._ask("cpu")]

    def turn(self, work: Work) -> tuple[Turn, float, float]:
        """Returns a turn to whose end one replica led, and the seconds of its processor and of all."""
        while True:
            before = self.cpu_s()
            answers = self._ask(work)
            used = [now - then for now, then in zip(self.cpu_s(), before, strict=True)]
            done = [(answer, cpu) for answer, cpu in zip(answers, used, strict=True) if isinstance(answer, Turn)]
            if len(done) == 1:
                return *done[0], sum(used)
            time.sleep(0.2)

    def stop(self) -> None:
        """Ends the processes. Errors: SystemExit if one failed."""
        for pipe in self._pipes:
            pipe.send("stop")
        for process in self._processes:
            process.join()
        if any(process.exitcode for process in self._processes):
            raise SystemExit("a replica failed")

    def _ask(self, order: object) -> list[object]:
        for pipe in self._pipes:
            pipe.send(order)
        return [pipe.recv() for pipe in self._pipes]


def measure(cluster: Cluster, replicas: int, work: Work, rounds: int) -> None:
    """Prints one line."""
    turns = [cluster.turn(work) for _ in range(rounds)]

    def middle(value: Callable[[Turn, float, float], float], digits: int = 2) -> float:
        return round(statistics.median(value(*turn) for turn in turns), digits)

    times = sorted(one for turn, _, _ in turns for one in turn.milliseconds)
    say(
        "consensus", replicas=replicas, waiting=work.waiting, size_bytes=work.size_bytes,
        operations_per_s=middle(lambda turn, leader, everybody: len(turn.milliseconds) / turn.seconds, 0),
        commits_per_s=middle(lambda turn, leader, everybody: turn.entries / turn.seconds, 0),
        p50_ms=round(statistics.median(times), 2), p99_ms=round(times[int(0.99 * len(times))], 2),
        leader_cpu_us=middle(lambda turn, leader, everybody: 1e6 * leader / len(turn.milliseconds)),
        all_cpu_us=middle(lambda turn, leader, everybody: 1e6 * everybody / len(turn.milliseconds)),
        n=len(times), rounds=rounds, **GOALS.get((replicas, work.waiting), {}),
    )  # fmt: skip


def say(name: str, **values: object) -> None:
    """Prints one result."""
    print(json.dumps({"benchmark": name, **values}), flush=True)


def tell_machine(folder: Path) -> None:
    """Prints what the numbers depend on."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        times = []
        for _ in range(200):
            started = time.perf_counter()
            os.write(file.fileno(), b"x" * 512)
            os.fdatasync(file.fileno())
            times.append(1000 * (time.perf_counter() - started))
    say("machine", cores=os.cpu_count(), python=platform.python_version(), release=__version__,
        load1=round(os.getloadavg()[0], 1), fdatasync_p50_ms=round(statistics.median(times), 3),
        fdatasync_p99_ms=round(sorted(times)[197], 3))  # fmt: skip


def numbers(text: str) -> list[int]:
    """Returns the numbers of a list with commas."""
    return [int(word) for word in text.split(",")]


def main() -> int:
    """Runs the benchmark. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=numbers, default=[1, 3, 5], help="default: 1,3,5")
    parser.add_argument("--waiting", type=numbers, default=[1, 10, 100, 1000], help="default: 1,10,100,1000")
    parser.add_argument("--size", type=int, default=100, help="bytes of a command")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=ROUND_S, help="how long a round takes")
    parser.add_argument("--profile", action="store_true", help="print where the leader's time goes, after each line")
    parser.add_argument("--dir", type=Path, help="where the journals go; default: the temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="depalma-consensus-", dir=options.dir) as folder:
        tell_machine(Path(folder))
        for replicas in options.replicas:
            cluster = Cluster(Path(folder) / str(replicas), replicas)
            try:
                for waiting in options.waiting:
                    work = Work(options.size, waiting, options.seconds)
                    measure(cluster, replicas, work, options.rounds)
                    if options.profile:
                        profiled = Work(options.size, waiting, options.seconds, profile=True)
                        print(cluster.turn(profiled)[0].profile, flush=True)
            finally:
                cluster.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
