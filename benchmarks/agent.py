"""How fast one agent is by itself, before a fake leader that costs next to nothing. JSON lines.

`python benchmarks/agent.py [--tasks N] [--slots N]`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pickle
import platform
import statistics
import tempfile
import time
from pathlib import Path

import psutil

from depalma.model import JobSpec
from depalma.protocol import Assignment
from depalma.testing.fake_leader import AgentProcess, FakeLeader, wait_until


def show(**values: object) -> None:
    print(json.dumps(values), flush=True)


def processes(agent: AgentProcess) -> dict[str, psutil.Process]:
    return {"agent": psutil.Process(agent.pid), "monitor": psutil.Process(agent.monitor_pid())}


def used_s(agent: AgentProcess) -> dict[str, float]:
    return {name: sum(process.cpu_times()[:2]) for name, process in processes(agent).items()}


async def throughput(name: str, leader: FakeLeader, agent: AgentProcess, job: int, spec: JobSpec, count: int) -> None:
    """Runs `count` tasks, at most 256 of them assigned at a time, as a leader would."""
    argument = pickle.dumps((None, (1,), {})) if spec.kind == "function" else None
    leader.job(job, spec)
    before, begun_s = used_s(agent), time.perf_counter()
    done = len(leader.reports)
    given = 0
    while given < count or len(leader.reports) - done < count:
        room = 256 - (given - (len(leader.reports) - done))
        if room >= 64 and given < count:
            upto = min(count, given + room)
            await leader.assign(*[Assignment(job, index, 1, 1, argument) for index in range(given, upto)])
            given = upto
        else:
            await asyncio.sleep(0.001)
    seconds = time.perf_counter() - begun_s
    failed = sum(report.outcome != "succeeded" for ref, report in leader.reports.items() if ref[0] == job)
    cost = {f"{part}_us_a_task": round(1e6 * (used - before[part]) / count, 1) for part, used in used_s(agent).items()}
    show(measure=name, tasks=count, failed=failed, per_s=round(count / seconds), **cost)


async def latency(name: str, leader: FakeLeader, job: int, spec: JobSpec, count: int) -> None:
    """Assign to report, one at a time."""
    leader.job(job, spec)
    took_ms = []
    for index in range(count):
        begun_s = time.perf_counter()
        await leader.assign(Assignment(job, index, 1, 1))
        while (job, index, 1) not in leader.reports:  # noqa: ASYNC110 - an event would be measured with it
            await asyncio.sleep(0)
        took_ms.append(1000 * (time.perf_counter() - begun_s))
    cuts = statistics.quantiles(took_ms, n=100)
    show(measure=name, p50_ms=round(cuts[49], 2), p99_ms=round(cuts[98], 2))


def bare_spawns(count: int, at_once: int) -> float:
    """Returns how many /bin/true a loop without any agent starts and reaps a second: the machine's own limit now."""
    begun_s = time.perf_counter()
    running = 0
    for _ in range(count):
        if running == at_once:
            os.wait()
            running -= 1
        os.posix_spawn("/bin/true", ["/bin/true"], os.environ)
        running += 1
    for _ in range(running):
        os.wait()
    return count / (time.perf_counter() - begun_s)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--slots", type=int, default=os.cpu_count())
    args = parser.parse_args()
    show(machine=platform.machine(), cpus=os.cpu_count(), python=platform.python_version(), slots=args.slots)
    show(measure="bare posix_spawn of /bin/true", per_s=round(bare_spawns(args.tasks // 10, args.slots)))
    with tempfile.TemporaryDirectory() as folder:
        async with FakeLeader(heartbeat_s=1.0, lease_s=10.0) as leader:
            agent = AgentProcess(Path(folder), [leader.url], slots=args.slots)
            agent.start()
            try:
                await wait_until(lambda: leader.connected, "connection")
                function = JobSpec(kind="function", function="builtins:abs")
                command = JobSpec(kind="command", argv=("/bin/true",))
                none = JobSpec(kind="function", function="builtins:dict")
                await latency("function, one at a time", leader, 1, none, 300)
                await latency("/bin/true, one at a time", leader, 2, command, 300)
                await throughput("functions", leader, agent, 3, function, args.tasks)
                await throughput("/bin/true", leader, agent, 4, command, args.tasks // 5)
            finally:
                await agent.stop()


if __name__ == "__main__":
    asyncio.run(main())
