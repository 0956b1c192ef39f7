#!/usr/bin/env python3
"""How long calls of depalmactl take beyond bare Python, against a local cluster.

    benchmarks/cli.py [--rounds 20] [--jobs 50]

Prints one JSON line a call: the median of what it takes more than `python -c pass`, in milliseconds, as time and as
CPU time (which a busy machine disturbs less). Rounds are interleaved, so that what disturbs, disturbs all calls alike.
`goal_ms` is the bar of docs/architecture.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from depalma import LocalCluster, __version__

#: Call → what it may take beyond bare Python, in milliseconds.
GOALS_MS = {"--version": 70, "jobs -o json": 150, "jobs": 220, "submit -q -- true": 220, "run -q -- true": 300}


def timed(argv: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """Returns the seconds that a program takes, and its CPU seconds. Errors: CalledProcessError."""
    begin = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, env=dict(environment), stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return time.perf_counter() - begin, cpu


def medians(times: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Returns the medians of time and CPU time, in milliseconds."""
    return statistics.median(t[0] for t in times) * 1000, statistics.median(t[1] for t in times) * 1000


def main() -> int:
    """Measures and prints. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=50, help="rows that `jobs` prints")
    options = parser.parse_args()
    print(json.dumps({"depalma": __version__, "python": platform.python_version(), "cpus": os.cpu_count()}))
    with LocalCluster(masters=3, agents=1, slots=2) as cluster, cluster.client() as client:
        jobs = [client.command(["true"], name=f"job {number}") for number in range(options.jobs)]
        for job in jobs:
            job.wait(60)
        environment = {
            **os.environ,
            "DEPALMA_MASTERS": ",".join(cluster.masters),
            "DEPALMA_TOKEN_FILE": cluster.token_file,
        }
        taken: dict[str, list[tuple[float, float]]] = {call: [] for call in ("", *GOALS_MS)}
        for _ in range(options.rounds):
            for call, times in taken.items():
                ctl = [sys.executable, "-m", "depalma.ctl", *call.split()]
                times.append(timed(ctl if call else [sys.executable, "-c", "pass"], environment))
    bare, bare_cpu = medians(taken.pop(""))
    for call, times in taken.items():
        wall, cpu = medians(times)
        line = {"benchmark": "cli", "call": call, "more_ms": wall - bare, "goal_ms": GOALS_MS[call]}
        line |= {"cpu_more_ms": cpu - bare_cpu, "bare_ms": bare, "ok": wall - bare <= GOALS_MS[call]}
        print(json.dumps({name: round(v, 1) if isinstance(v, float) else v for name, v in line.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
