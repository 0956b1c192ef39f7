#!/usr/bin/env python3
"""What a heavy module costs a task that uses it: the first one, later ones, on a new worker, in a process of its own.

    benchmarks/imports.py                          a module that takes 1 s to import
    benchmarks/imports.py --module sklearn.tree --use "sklearn.tree.DecisionTreeClassifier().fit([[0], [1]], [0, 1])"

One agent with one slot, fed by a stand-in leader. Prints one JSON line a measure; `over_plain_ms` is how much longer
the task takes, from order to report, than one that uses nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pickle
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cloudpickle

from depalma.model import JobSpec, Payload
from depalma.protocol import Assignment
from depalma.testing.fake_leader import AgentProcess, FakeLeader, wait_until

GOAL_MS = 20
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def work(module: str, use: str, then: str) -> float:
    """Returns how long the import took."""
    began_s = time.perf_counter()
    __import__(module)
    took_s = time.perf_counter() - began_s
    if use:
        eval(use, {name: sys.modules[name] for name in (module.partition(".")[0], module)})
    if then == "crash":
        os._exit(1)
    return took_s


class Bench:
    """One agent, and a module."""

    def __init__(self, leader: FakeLeader, module: str, use: str) -> None:
        self.leader = leader
        self.module = module
        self.use = use
        self.index = 0
        self.plain: dict[str, float] = {}

    async def run(self, job: int, then: str = "") -> tuple[float, float]:
        """Returns the seconds of the import, and those from the order to the report."""
        self.index += 1
        argument = cloudpickle.dumps((None, (self.module, self.use, then), {}), 5)
        began_s = time.perf_counter()
        await self.leader.assign(Assignment(job, self.index, 1, 1, argument))
        report = await self.leader.report((job, self.index, 1), for_s=60)
        took_s = time.perf_counter() - began_s
        if then == "crash":
            return 0.0, took_s
        assert report.result is not None, report
        return pickle.loads(report.result.inline), took_s

    async def measure(self, times: int, plain: dict[str, float]) -> dict[str, float]:
        """Prints everything; returns the median seconds from order to report. `plain`: those of tasks without it."""
        data = cloudpickle.dumps(work, 5)
        for job, isolate in ((1, False), (2, True)):
            pickled = Payload(inline=data, size_bytes=len(data))
            self.leader.job(job, JobSpec(kind="function", function_pickle=pickled, isolate=isolate))
        self.plain = plain
        first_s, _ = await self.run(1)
        self.say("first_task", [first_s])
        end = time.monotonic() + 60
        while first_s > 0.01 and time.monotonic() < end:  # the fork server imports it meanwhile
            await self.run(1, "crash")
            if (await self.run(1))[0] <= first_s / 2:
                break
        return {
            "task": await self.several("task", times, 1),
            "task_on_a_new_worker": await self.several("task_on_a_new_worker", times, 1, "crash"),
            "isolated_task": await self.several("isolated_task", times, 2),
        }

    async def several(self, name: str, times: int, job: int, before: str = "") -> float:
        """Prints the measures of a kind of task; returns the median seconds from order to report."""
        imported, answered = [], []
        for number in range(times + 1):
            if before:
                await self.run(job, before)
            import_s, whole_s = await self.run(job)
            if number:  # the first one of its kind teaches the others
                imported.append(import_s)
                answered.append(whole_s)
        self.say(f"{name}_import", imported)
        median_s = statistics.median(answered)
        over = (
            {"over_plain_ms": round(1000 * (median_s - self.plain[name]), 3), "goal_ms": GOAL_MS} if self.plain else {}
        )
        self.say(f"{name}_order_to_report", answered, **over)
        return median_s

    def say(self, name: str, seconds: list[float], **more: object) -> None:
        """Prints one line, in milliseconds."""
        values = [1000 * each for each in seconds]
        line: dict[str, object] = {
            "measure": name,
            "module": self.module,
            "median_ms": round(statistics.median(values), 3),
        }
        print(json.dumps({**line, "worst_ms": round(max(values), 3), "runs": len(values), **more}), flush=True)


async def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", action="append", help="what to import (default: a module that takes 1 s)")
    parser.add_argument("--use", default="", help="what the task does with it: an expression (default: nothing)")
    parser.add_argument("--times", type=int, default=20, help="how often each (default 20)")
    options = parser.parse_args()
    plain = await of_module("sys", "", options.times, {})
    for module in options.module or ["slow_to_import"]:
        await of_module(module, options.use, options.times, plain)


async def of_module(module: str, use: str, times: int, plain: dict[str, float]) -> dict[str, float]:
    """Measures one module with an agent of its own."""
    with tempfile.TemporaryDirectory(prefix="depalma-imports-") as folder:
        async with FakeLeader() as leader:
            agent = AgentProcess(Path(folder), [leader.url], slots=1)
            agent.start()
            try:
                await wait_until(lambda: leader.connected, "connection")
                text = "import time\ntime.sleep(1)\n"
                (agent.root / "code" / "trees" / "0" / "slow_to_import.py").write_text(text)
                return await Bench(leader, module, use).measure(times, plain)
            finally:
                await agent.stop()


if __name__ == "__main__":
    asyncio.run(main())
