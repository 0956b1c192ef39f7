"""What the replicated state costs by itself: microseconds a task, bytes a task, seconds a snapshot.

    python benchmarks/state.py [--tasks 200000] [--batch 200]

Prints one JSON line a measure. No network, no disk, no other process: these are the costs that every master pays for
every task, so they bound what the whole system can reach.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import platform
import resource
import time
from collections.abc import Callable

from depalma.dispatcher import HostRoom, plan
from depalma.model import HostFacts, JobSpec, Payload, Report
from depalma.state import commands
from depalma.state.commands import AssignTasks
from depalma.state.machine import Machine

FACTS = HostFacts(2, 2, 8 << 30, 0, "0.1.0", "3.11", "10.0.0.1")
RESULT = b"\x80\x05\x95\x03\x00\x00\x00\x00\x00\x00\x00K\x2a."


def say(measure: str, value: float, unit: str, **more: object) -> None:
    """Prints one result."""
    print(json.dumps({"measure": measure, "value": round(value, 4), "unit": unit, **more}), flush=True)


def resident_bytes() -> int:
    """Returns the memory of this process now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def machine_with(hosts: int) -> Machine:
    """Returns a machine with connected hosts h0, h1, …"""
    machine = Machine()
    for number in range(hosts):
        name = f"h{number}"
        send(machine, commands.AddHost("", name, (), {}, 0, 2, 0, 1.0))
        send(machine, commands.HostUp(name, f"i{number}", FACTS, 1.0))
    return machine


def send(machine: Machine, command: commands.AnyCommand) -> object:
    """Applies a command as replicas do, from bytes."""
    outcome = machine.apply(commands.encode(command), machine.state.version + 1)
    if not isinstance(outcome, commands.Applied):
        raise SystemExit(f"refused: {outcome}")
    return outcome.value


def submit(machine: Machine, count: int, **spec: object) -> int:
    """Submits a job of no-op tasks; returns its id."""
    job = JobSpec(kind="function", function="pkg:noop", count=count, **spec)  # type: ignore[arg-type]
    value = send(machine, commands.SubmitJob("", job, 2.0))
    assert isinstance(value, int)
    return value


def reports(assigned: AssignTasks, distinct: bool) -> bytes:
    """Returns the encoded FinishTasks of an assignment."""
    done = tuple(
        Report(
            job,
            task,
            attempt,
            "succeeded",
            0,
            result=Payload(inline=RESULT + task.to_bytes(4, "big") if distinct else RESULT),
            started_at=3.0 + task * 1e-3,
            finished_at=3.001 + task * 1e-3,
            code_index=1,
            code_digest="ab" * 32,
        )
        for job, task, attempt in assigned.tasks
    )
    return commands.encode(commands.FinishTasks(assigned.host, assigned.incarnation, done, 4.0))


def flow(machine: Machine, tasks: int, batch: int, mean_s: dict[int, float], distinct: bool = True) -> dict[str, float]:
    """Plans, assigns and finishes `tasks` tasks; returns microseconds a task of each."""
    state = machine.state
    rooms = {h.name: HostRoom(h.incarnation, 2, batch) for h in state.hosts.values()}
    spent = {"plan": 0.0, "assign": 0.0, "finish": 0.0}
    left = tasks
    while left > 0:
        begin = time.perf_counter()
        planned = plan(state, rooms, mean_s, 3.0, 1, min(left, batch))
        spent["plan"] += time.perf_counter() - begin
        if not planned:
            raise SystemExit("nothing was planned")
        encoded = [commands.encode(command) for command in planned]
        begin = time.perf_counter()
        for data in encoded:
            machine.apply(data, 1)
        spent["assign"] += time.perf_counter() - begin
        ended = [reports(command, distinct) for command in planned]
        begin = time.perf_counter()
        for data in ended:
            machine.apply(data, 1)
        spent["finish"] += time.perf_counter() - begin
        left -= sum(len(command.tasks) for command in planned)
    return {name: seconds / tasks * 1e6 for name, seconds in spent.items()}


def measure_flow(tasks: int, batch: int) -> None:
    """One job of many tasks, with the queue empty otherwise and with a million queued."""
    for name, hosts, queued, jobs in (
        ("one job", 2, 0, 0),
        ("one job, a million queued behind", 2, 1_000_000, 0),
        ("one job, 100,000 jobs queued behind", 2, 0, 100_000),
        ("one job, 200 hosts", 200, 0, 0),
    ):
        machine = machine_with(hosts)
        job = submit(machine, tasks)
        if queued:
            submit(machine, queued)
        for _ in range(jobs):
            submit(machine, 1)
        for step, micros in flow(machine, tasks, batch, {job: 1e-6}).items():
            say(f"{step}: {name}", micros, "us/task", tasks=tasks, batch=batch)
    measure_lines(tasks // 4, batch)
    machine = machine_with(2)
    means = {submit(machine, 1): 1e-6 for _ in range(tasks // 4)}
    for step, micros in flow(machine, tasks // 4, batch, means).items():
        say(f"{step}: jobs of one task", micros, "us/task", tasks=tasks // 4, batch=batch)


def measure_lines(tasks: int, batch: int) -> None:
    """Jobs of one task again, of more and more users, priorities, and kinds of hosts that they ask for."""
    for users, priorities, shapes in ((1, 1, 1), (100, 1, 1), (10_000, 1, 1), (1, 100, 1), (1, 1, 100)):
        machine = machine_with(2)
        means = {}
        for number in range(tasks):
            more = {"user": f"u{number % users}", "priority": number % priorities}
            means[submit(machine, 1, prefer=(f"x={number % shapes}",), **more)] = 1e-6
        for step, micros in flow(machine, tasks, batch, means).items():
            say(f"{step}: {users} users, {priorities} priorities, {shapes} shapes", micros, "us/task", tasks=tasks)


def measure_submit(number: int) -> None:
    """Small jobs one after another."""
    machine = machine_with(2)
    data = [
        commands.encode(commands.SubmitJob(f"request-{n}", JobSpec(kind="command", argv=("true",)), 2.0))
        for n in range(number)
    ]
    before = resident_bytes()
    begin = time.perf_counter()
    for each in data:
        machine.apply(each, 1)
    say("submit: jobs of one task", (time.perf_counter() - begin) / number * 1e6, "us/job")
    say("memory: queued jobs of one task", (resident_bytes() - before) / number, "bytes/job")
    flow(machine, number, 200, dict.fromkeys(machine.state.jobs, 1e-06))
    gc.collect()
    say("memory: finished jobs of one task", (resident_bytes() - before) / number, "bytes/job")


def timed(measure: str, action: Callable[[], object], **more: object) -> object:
    """Runs the action and prints how long it took."""
    begin = time.perf_counter()
    value = action()
    say(measure, time.perf_counter() - begin, "s", **more)
    return value


def measure_memory(tasks: int) -> None:
    """A million queued, then a million finished, and the snapshot of both."""
    machine = machine_with(2)
    before = resident_bytes()
    job = submit(machine, 1_000_000)
    say("memory: a million queued tasks", (resident_bytes() - before) / 1e6, "MB")
    finished = submit(machine, tasks)
    machine.state.jobs[job].held = True
    machine.state.ready.refresh(machine.state.jobs[job], 2.0)
    before = resident_bytes()
    flow(machine, tasks, 1000, {finished: 1e-6})
    gc.collect()
    say("memory: finished tasks with a result of their own", (resident_bytes() - before) / tasks, "bytes/task")
    pieces: list[bytes] = []
    timed("snapshot: a million queued, the rest finished", lambda: pieces.extend(machine.snapshot()), finished=tasks)
    say("snapshot size", sum(map(len, pieces)) / 1e6, "MB", pieces=len(pieces), largest=max(map(len, pieces)))
    timed("restore", lambda: Machine().restore(pieces))
    timed("cancel a million queued tasks", lambda: send(machine, commands.CancelJobs("", (1,), 9.0)))


def main() -> None:
    """Runs all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=200)
    options = parser.parse_args()
    say("machine", 0, "", python=platform.python_version(), cpu=platform.machine())
    for measure, *arguments in (
        (measure_flow, options.tasks, options.batch),
        (measure_submit, options.tasks // 4),
        (measure_memory, options.tasks),
    ):
        # A process each: what one leaves in the allocator would hide what the next one takes.
        process = multiprocessing.get_context("fork").Process(target=measure, args=arguments)
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
