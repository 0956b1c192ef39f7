#!/usr/bin/env python3
"""What a task costs the dispatcher and the state as queue, history, hosts, users and constraints grow.

    benchmarks/slope.py                       all, about two minutes
    benchmarks/slope.py --only queue,hosts    some of: queue, jobs, history, hosts, users, labels, limits, waiting

The pure core of a leader in its everyday: every slot is taken, a few tasks end, others take their places. Prints a
JSON line a case: microseconds a task for planning, assigning and finishing; what a round costs that finds no room
(`idle_round_us`: a leader looks after every commit); and `ratio`, the whole by that of the first case of its row.
`goal_ratio` is for the whole of a row: what it may grow by from its smallest case to its largest.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import state as states

from depalma.dispatcher import HostRoom, plan
from depalma.model import Dependency
from depalma.state import commands
from depalma.state.machine import Machine

#: Tasks that end between two rounds.
ENDING = 20
ROUNDS = 300
#: A case: its name, what makes it, and for how many hosts.
Case = tuple[str, Callable[[Machine], None], int]
ROWS: dict[str, Callable[[], Iterator[Case]]] = {}
Row = Callable[[], Iterator[Case]]


def row(function: Row) -> Row:
    """Registers a row under its name."""
    ROWS[function.__name__] = function
    return function


def jobs_of_one(machine: Machine, number: int, **spec: object) -> None:
    """Submits so many jobs of one task each."""
    for _ in range(number):
        states.submit(machine, 1, **spec)


def each_of(machine: Machine, number: int, repeat: int, spec: Callable[[int], dict[str, object]]) -> None:
    """Submits jobs of so many kinds, `repeat` of each."""
    for _ in range(repeat):
        for kind in range(number):
            states.submit(machine, 1, **spec(kind))


@row
def queue() -> Iterator[Case]:
    """One job of many tasks."""
    for number in (1_000, 10_000, 100_000, 1_000_000):
        yield f"{number:,} tasks of one job queued", lambda m, n=number: states.submit(m, n + 20_000), 10  # type: ignore[misc]


@row
def jobs() -> Iterator[Case]:
    """Many jobs of one task."""
    for number in (1_000, 10_000, 100_000):
        yield f"{number:,} jobs of one task queued", lambda m, n=number: jobs_of_one(m, n + 8_000), 10  # type: ignore[misc]


def ended(machine: Machine, number: int) -> None:
    """Leaves so many finished jobs and as many finished tasks of one job behind."""
    means = {states.submit(machine, 1): 1e-6 for _ in range(number)}
    means[states.submit(machine, number)] = 1e-6
    if number:
        states.flow(machine, 2 * number, 1000, means)
    states.submit(machine, 30_000)


@row
def history() -> Iterator[Case]:
    """Finished jobs and tasks."""
    for number in (0, 10_000, 100_000):
        yield f"{number:,} finished jobs, as many tasks of another", lambda m, n=number: ended(m, n), 10  # type: ignore[misc]


@row
def hosts() -> Iterator[Case]:
    """More hosts, each with two slots."""
    for number in (3, 100, 1_000):
        yield f"{number:,} hosts", lambda m: states.submit(m, 30_000), number


@row
def users() -> Iterator[Case]:
    """Jobs of one task of many users."""
    for number in (1, 100, 10_000):
        yield (
            f"{number:,} users",
            lambda m, n=number: each_of(m, n, 20_000 // n, lambda kind: {"user": f"u{kind}"}),  # type: ignore[misc]
            10,
        )


@row
def labels() -> Iterator[Case]:
    """Jobs of many different label requirements: each may use all hosts, one host, or none that has room."""
    for number, count in ((1, 100), (100, 100), (1_000, 100), (1_000, 1_000)):
        yield (
            f"{number:,} label requirements that every host meets, {count:,} hosts",
            lambda m, n=number: each_of(m, n, 20_000 // n, lambda kind: {"labels": (f"x!={kind}",)}),  # type: ignore[misc]
            count,
        )
    for number in (1, 100, 1_000):
        yield (
            f"{number:,} label requirements, each met by one host of 1,000 hosts that have other work",
            lambda m, n=number: pinned(m, n),  # type: ignore[misc]
            1_000,
        )


def pinned(machine: Machine, number: int) -> None:
    """Jobs for one host each, ten for each of these, and a job behind them that may go anywhere."""
    each_of(machine, number, 10, lambda kind: {"priority": 5, "labels": (f"host=h{kind}",)})
    states.submit(machine, 30_000)


def stuck(machine: Machine, number: int, spec: Callable[[int], dict[str, object]]) -> None:
    """Jobs of higher priority that cannot start, 10 of each kind, before a job that can."""
    each_of(machine, number, 10, lambda kind: {"priority": 5, **spec(kind)})
    states.submit(machine, 30_000)


@row
def limits() -> Iterator[Case]:
    """Jobs that stand at limits or fit nowhere, before a job that does not."""
    for number in (1, 100, 1_000):
        yield (
            f"{number:,} label requirements that no host meets, at the head",
            lambda m, n=number: stuck(m, n, lambda kind: {"labels": (f"x={kind}",)}),  # type: ignore[misc]
            100,
        )
    for number in (1, 100, 1_000):
        yield (
            f"{number:,} tags at their limits, at the head",
            lambda m, n=number: stuck(m, n, lambda kind: {"tags": (f"t{kind}",), "limits": {f"t{kind}": 1}}),  # type: ignore[misc]
            100,
        )
    for number in (1, 100, 1_000, 10_000):
        yield f"{number:,} users at their limits, at the head", lambda m, n=number: capped(m, n), 100  # type: ignore[misc]


def capped(machine: Machine, number: int) -> None:
    """Users who may have one task at once and have more."""
    states.send(machine, commands.SetLimit("", "user", "*", 1, 1.0))
    states.send(machine, commands.SetLimit("", "user", "free", 100_000, 1.0))
    each_of(machine, number, 2 if number > 1_000 else 10, lambda kind: {"priority": 5, "user": f"u{kind}"})
    states.submit(machine, 30_000, user="free")


@row
def waiting() -> Iterator[Case]:
    """Jobs that wait for another one, or for their time."""
    for number in (1_000, 10_000, 50_000):
        yield f"{number:,} jobs blocked by a dependency, as many by time", lambda m, n=number: blocked(m, n), 10  # type: ignore[misc]


def blocked(machine: Machine, number: int) -> None:
    """Leaves jobs behind that may not start."""
    first = states.submit(machine, 1, hold=True)
    jobs_of_one(machine, number, after=(Dependency(first),))
    jobs_of_one(machine, number, start_at=1e9)
    states.submit(machine, 30_000)


class Leader:
    """Hosts whose slots are all taken; what ends is replaced. Cost a task of each step, in microseconds."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.rooms = {h.name: HostRoom(h.incarnation, 2) for h in machine.state.hosts.values()}
        self.mean_s: dict[int, float] = {}
        self.live: dict[str, list[commands.AttemptRef]] = {name: [] for name in self.rooms}
        self.now = 3.0
        self.spent = {"plan": [0.0], "assign": [0.0], "finish": [0.0], "idle": [0.0]}
        self.tasks = 0

    def fill(self) -> None:
        """Gives work to every free slot."""
        while self.round():
            pass

    def round(self) -> int:
        """Plans and assigns; returns how many tasks that were."""
        self.now += 0.01
        begin = time.process_time()
        planned = plan(self.machine.state, self.rooms, self.mean_s, self.now, 1, 2000)
        self.spent["plan"].append(time.process_time() - begin)
        encoded = [commands.encode(each) for each in planned]
        begin = time.process_time()
        answers = [self.machine.apply(data, 1) for data in encoded]
        self.machine.drain_changes()
        self.spent["assign"].append(time.process_time() - begin)
        for command, answer in zip(planned, answers, strict=True):
            assert isinstance(answer, commands.Applied)
            assert isinstance(answer.value, commands.AssignOutcome)
            self.live[command.host] += answer.value.accepted
        return sum(len(command.tasks) for command in planned)

    def finish(self, turn: int) -> None:
        """Ends the oldest task of some hosts."""
        names = list(self.live)
        reports = []
        for number in range(ENDING):
            name = names[(turn * ENDING + number) % len(names)]
            if self.live[name]:
                ref = self.live[name].pop(0)
                one = commands.AssignTasks(1, name, self.rooms[name].incarnation, (ref,), self.now, "")
                reports.append(states.reports(one, distinct=True))
        self.tasks += len(reports)
        begin = time.process_time()
        for data in reports:
            self.machine.apply(data, 1)
        self.machine.drain_changes()
        self.spent["finish"].append(time.process_time() - begin)

    def idle(self) -> None:
        """A round that finds no room."""
        begin = time.process_time()
        plan(self.machine.state, self.rooms, self.mean_s, self.now, 1, 2000)
        self.spent["idle"].append(time.process_time() - begin)


def measure(name: str, make: Callable[[Machine], None], hosts: int, first: float | None) -> float:
    """Prints one case. Returns microseconds a task."""
    machine = labelled(hosts)
    make(machine)
    gc.collect()
    gc.freeze()
    gc.set_threshold(1_000, 5, 200_000)  # as a master does
    leader = Leader(machine)
    leader.fill()
    leader.spent = {each: [] for each in leader.spent}
    for turn in range(ROUNDS):
        leader.finish(turn)
        leader.round()
        if turn % 10 == 0:
            leader.idle()
    cost = {step: 1e6 * sum(leader.spent[step]) / max(1, leader.tasks) for step in ("plan", "assign", "finish")}
    whole = sum(cost.values())
    print(
        json.dumps(
            {
                "case": name,
                "us_a_task": round(whole, 1),
                "ratio": round(whole / first, 2) if first else 1.0,
                **{f"{step}_us": round(value, 1) for step, value in cost.items()},
                "idle_round_us": round(1e6 * statistics.median(leader.spent["idle"]), 1),
                "tasks": leader.tasks,
            }
        ),
        flush=True,
    )
    return whole


def labelled(hosts: int) -> Machine:
    """Returns a machine with connected hosts, each with its own name as a label."""
    machine = Machine()
    for number in range(hosts):
        name = f"h{number}"
        states.send(machine, commands.AddHost("", name, (), {"host": name}, 0, 2, 0, 1.0))
        states.send(machine, commands.HostUp(name, f"i{number}", states.FACTS, 1.0))
    return machine


def run(name: str) -> None:
    """Measures a row."""
    first: float | None = None
    for case, make, count in ROWS[name]():
        whole = measure(case, make, count, first)
        first = first or whole


def main() -> int:
    """Runs the rows. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME,…", help=f"some of: {', '.join(ROWS)}")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else list(ROWS)
    unknown = [name for name in chosen if name not in ROWS]
    if unknown:
        parser.error(f"--only: {unknown[0]!r} given; there are: {', '.join(ROWS)}")
    print(
        json.dumps({"machine": platform.machine(), "python": platform.python_version(), "ending": ENDING}), flush=True
    )
    for name in chosen:
        # A process each: what one leaves in the allocator would slow the next.
        process = multiprocessing.get_context("fork").Process(target=run, args=(name,))
        process.start()
        process.join()
        if process.exitcode:
            return process.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main())
