#!/usr/bin/env python3
"""What the import of a heavy module costs a task: the first one, one on a new worker, and one in its own process.

    benchmarks/imports.py                          a module that takes 1 s to import
    benchmarks/imports.py --module sklearn.ensemble --module numpy

One agent with one slot, fed by a stand-in leader. Prints one JSON line a measure.
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


def imports(module: str, then: str) -> tuple[float, int]:
    """Returns how long the import took, and which process did it."""
    began_s = time.perf_counter()
    __import__(module)
    took_s = time.perf_counter() - began_s
    if then == "crash":
        os._exit(1)
    return took_s, os.getpid()


class Bench:
    """One agent, and a module."""

    def __init__(self, leader: FakeLeader, module: str) -> None:
        self.leader = leader
        self.module = module
        self.index = 0

    async def run(self, job: int, then: str = "") -> tuple[float, float]:
        """Returns the seconds of the import, and those from the order to the report."""
        self.index += 1
        argument = cloudpickle.dumps((None, (self.module, then), {}), 5)
        began_s = time.perf_counter()
        await self.leader.assign(Assignment(job, self.index, 1, 1, argument))
        report = await self.leader.report((job, self.index, 1), for_s=60)
        took_s = time.perf_counter() - began_s
        if then == "crash":
            return 0.0, took_s
        assert report.result is not None, report
        return pickle.loads(report.result.inline)[0], took_s

    async def measure(self, times: int) -> None:
        """Prints everything."""
        data = cloudpickle.dumps(imports, 5)
        for job, isolate in ((1, False), (2, True)):
            pickled = Payload(inline=data, size_bytes=len(data))
            self.leader.job(job, JobSpec(kind="function", function_pickle=pickled, isolate=isolate))
        first_s, _ = await self.run(1)
        self.say("first_task", [first_s])
        end = time.monotonic() + 60
        while time.monotonic() < end:  # the fork server imports it meanwhile
            await self.run(1, "crash")
            if (await self.run(1))[0] < first_s / 2:
                break
        new, answered, isolated, alone = [], [], [], []
        for _ in range(times):
            await self.run(1, "crash")
            import_s, whole_s = await self.run(1)
            new.append(import_s)
            answered.append(whole_s)
        for _ in range(times):
            import_s, whole_s = await self.run(2)
            isolated.append(import_s)
            alone.append(whole_s)
        self.say("task_on_a_new_worker", new, goal_ms=GOAL_MS)
        self.say("task_on_a_new_worker_order_to_report", answered)
        self.say("isolated_task", isolated, goal_ms=GOAL_MS)
        self.say("isolated_task_order_to_report", alone)

    def say(self, name: str, seconds: list[float], **more: object) -> None:
        """Prints one line, in milliseconds."""
        values = [1000 * each for each in seconds]
        line = {"measure": name, "module": self.module, "median_ms": round(statistics.median(values), 3)}
        print(json.dumps({**line, "worst_ms": round(max(values), 3), "runs": len(values), **more}), flush=True)


async def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", action="append", help="what to import (default: a module that takes 1 s)")
    parser.add_argument("--times", type=int, default=20, help="how often each (default 20)")
    options = parser.parse_args()
    for module in options.module or ["slow_to_import"]:
        with tempfile.TemporaryDirectory(prefix="depalma-imports-") as folder:
            async with FakeLeader() as leader:
                agent = AgentProcess(Path(folder), [leader.url], slots=1)
                agent.start()
                try:
                    await wait_until(lambda here=leader: here.connected, "connection")
                    text = "import time\ntime.sleep(1)\n"
                    (agent.root / "code" / "trees" / "0" / "slow_to_import.py").write_text(text)
                    await Bench(leader, module).measure(options.times)
                finally:
                    await agent.stop()


if __name__ == "__main__":
    asyncio.run(main())
