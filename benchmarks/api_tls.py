#!/usr/bin/env python3
"""What TLS on the masters' API costs, as processor time of all together: masters, agents, workers and the client.

    benchmarks/api_tls.py         two clusters of each kind by turns, about a minute

Processor time hardly depends on what else the machine does; the times of `benchmarks/run.py` and `run.py --tls` do.
Prints one JSON line a measure.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable

import psutil

from depalma import Client, LocalCluster

TASKS, CALLS, READS, ROUNDS = 20_000, 500, 1_000, 2


def nothing(_: int) -> None:
    """The task that costs nothing."""


def used_s(cluster: LocalCluster) -> float:
    """Returns the processor time of this process, of the daemons and of everything below them."""
    found = [psutil.Process()]
    for entry in cluster.processes:
        daemon = psutil.Process(entry.pid)
        found += [daemon, *daemon.children(recursive=True)]
    return sum(sum(process.cpu_times()) for process in found)


def cost_us(cluster: LocalCluster, work: Callable[[], object], count: int) -> tuple[float, float]:
    """Returns microseconds of processor time, and of time, for one of `count`."""
    before, began_s = used_s(cluster), time.monotonic()
    work()
    took_s = time.monotonic() - began_s
    return 1e6 * (used_s(cluster) - before) / count, 1e6 * took_s / count


def main() -> int:
    """Runs the benchmark. Returns the exit code."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        for mode in ("off", "on"):
            made = LocalCluster(masters=3, agents=2, slots=1, settings={"api_tls": mode})
            with made as cluster, cluster.client() as client:
                client.submit(nothing, 0).result()
                for name, count, work in measures(client):
                    found.setdefault((name, mode), []).append(cost_us(cluster, work, count))
    for name, mode in found:
        cpu_us, took_us = map(statistics.mean, zip(*found[name, mode], strict=True))
        print(json.dumps({"benchmark": name, "api_tls": mode, "cpu_us": round(cpu_us), "took_us": round(took_us)}))
    return 0


def measures(client: Client) -> list[tuple[str, int, Callable[[], object]]]:
    """Returns name, number and work of each."""
    return [
        ("no-op task of a large job", TASKS, lambda: list(client.map(nothing, range(TASKS)).results())),
        ("submit and result, one at a time", CALLS, lambda: [client.submit(nothing, 0).result() for _ in range(CALLS)]),
        ("read", READS, lambda: [client.hosts() for _ in range(READS)]),
    ]


if __name__ == "__main__":
    sys.exit(main())
