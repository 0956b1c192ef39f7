#!/usr/bin/env python3
"""What the whole cluster does on this machine: three masters that sync each write to disk, and agents with two slots.

    benchmarks/run.py                        everything, about three minutes
    benchmarks/run.py --quick                the same with a tenth of the work
    benchmarks/run.py --only failover,writes
    benchmarks/run.py --tls                  the API speaks TLS
    benchmarks/run.py --dir FOLDER           put the masters' disks there (a RAM disk would flatter the numbers)

Prints one JSON line a measure; the first line describes the machine. `goal` is the figure of docs/architecture.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from depalma import Client, LocalCluster, __version__

Measure = Callable[[LocalCluster, Client, float], None]
MEASURES: dict[str, Measure] = {}
KILLS = 10
T = TypeVar("T")


def measure(function: Measure) -> Measure:
    """Registers a benchmark under its name."""
    MEASURES[function.__name__] = function
    return function


def nothing(_: int) -> None:
    """The task that costs nothing, so that only the cluster is measured."""


# ---------------------------------------------------------------- measures


@measure
def python_tasks(cluster: LocalCluster, client: Client, scale: float) -> None:
    """No-op Python functions: from the submission of all to the last result."""
    count = int(20_000 * scale)
    rates = []
    for _ in range(3):
        started = time.monotonic()
        job = client.map(nothing, range(count), name="nothing")
        done = sum(1 for _ in job.results())
        rates.append(done / (time.monotonic() - started))
    say("python_tasks", statistics.median(rates), "tasks/s", goal=5000, tasks=count, runs=rounded(rates))


@measure
def command_tasks(cluster: LocalCluster, client: Client, scale: float) -> None:
    """`/bin/true`: from the submission of all to the end of the job."""
    count = int(5_000 * scale)
    rates = []
    for _ in range(3):
        started = time.monotonic()
        job = client.command(["/bin/true"], array=count, name="true").wait()
        rates.append(count / (time.monotonic() - started))
        assert job.exit_code == 0, job.view()
    say("command_tasks", statistics.median(rates), "tasks/s", goal=1200, tasks=count, runs=rounded(rates))


@measure
def output_tasks(cluster: LocalCluster, client: Client, scale: float) -> None:
    """`/bin/echo`, as `command_tasks`: a word, which travels in the report, and 1 KiB, which goes beside the log."""
    count = int(2_000 * scale)
    for name, size_bytes in (("word", 10), ("kib", 1024)):
        rates = []
        for _ in range(3):
            started = time.monotonic()
            job = client.command(["/bin/echo", "x" * size_bytes], array=count, name=name).wait()
            rates.append(count / (time.monotonic() - started))
            assert job.exit_code == 0, job.view()
        say(f"output_tasks_{name}", statistics.median(rates), "tasks/s", tasks=count, runs=rounded(rates))


@measure
def latency(cluster: LocalCluster, client: Client, scale: float) -> None:
    """From the submission of one Python function to its result, one at a time."""
    times = [timed(lambda: client.submit(nothing, 0).result()) for _ in range(int(500 * scale))]
    say_times("submit_to_result", times, goal_p50_ms=6, goal_p99_ms=25)


@measure
def writes(cluster: LocalCluster, client: Client, scale: float) -> None:
    """Acknowledged writes as a client sees them: a job that is submitted on hold, over HTTP, on two disks at least."""
    times = [timed(lambda: held_job(client)) for _ in range(int(1000 * scale))]
    say_times("lone_write", times, goal_p50_ms=2.5, goal_p99_ms=6)
    clients, each = 16, int(300 * scale)
    started = time.monotonic()
    threads = [threading.Thread(target=lambda: [held_job(client) for _ in range(each)]) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say("writes", clients * each / (time.monotonic() - started), "writes/s", clients=clients)


@measure
def failover(cluster: LocalCluster, client: Client, scale: float) -> None:
    """SIGKILL of the leader → the next acknowledged write, and the start of the task that it submitted."""
    writes_s, starts_s = [], []
    for _ in range(max(2, int(KILLS * min(1.0, scale * 3)))):
        client.submit(nothing, 0).result()  # connections and workers are warm
        leader = cluster.leader()
        pid = next(process.pid for process in cluster.processes if process.id == leader)
        assert pid is not None
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        future = client.submit(time.monotonic)  # one clock for all processes of a machine
        writes_s.append(time.monotonic() - killed)
        starts_s.append(future.result() - killed)
        cluster.kill(leader)
        cluster.restart(leader)
        wait_until_equal(client)
    say_times("failover_write", writes_s, goal_p50_ms=350, goal_p99_ms=800)
    say_times("failover_task", starts_s, goal_p50_ms=350, goal_p99_ms=800)


@measure
def agent_loss(cluster: LocalCluster, client: Client, scale: float) -> None:
    """SIGKILL of an agent → its task runs elsewhere."""
    times = [lose_agent(cluster, client) for _ in range(max(2, int(5 * min(1.0, scale * 3))))]
    say_times("agent_loss", times, goal_p99_ms=2000)


# ---------------------------------------------------------------- tools


def lose_agent(cluster: LocalCluster, client: Client) -> float:
    """Returns how long a task did not run after its agent was killed, in seconds."""
    job = client.command(["sleep", "600"], name="sleep")
    first = wait_for(lambda: job.tasks()[0], lambda task: task.state == "running")
    killed = time.time()
    cluster.kill(first.host)
    again = wait_for(lambda: job.tasks()[0], lambda task: task.state == "running" and task.attempt > first.attempt)
    job.cancel()
    job.wait()
    cluster.restart(first.host)
    return float(again.started_at or 0) - killed


def held_job(client: Client) -> None:
    client.post("/v1/jobs", {"kind": "command", "argv": ["/bin/true"], "hold": True})


def timed(work: Callable[[], object]) -> float:
    """Returns how long it took, in seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def wait_for(look: Callable[[], T], until: Callable[[T], bool], timeout_s: float = 60.0) -> T:
    """Returns what was seen when it was so. Errors: TimeoutError with what was last seen."""
    deadline = time.monotonic() + timeout_s
    while True:
        seen = look()
        if until(seen):
            return seen
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout_s:g} s: {seen}")
        time.sleep(0.01)


def wait_until_equal(client: Client) -> None:
    """Returns when every master has applied about the same."""
    wait_for(
        client.masters,
        lambda masters: (
            all(master.role in ("leader", "follower") for master in masters)
            and max(m.applied_index for m in masters) - min(m.applied_index for m in masters) < 10
        ),
    )


def say(name: str, value: float, unit: str, **more: object) -> None:
    """Prints one result."""
    print(json.dumps({"benchmark": name, "value": round(value, 2), "unit": unit, **more}), flush=True)


def say_times(name: str, seconds: Sequence[float], **more: object) -> None:
    """Prints median and tail of some durations, in milliseconds."""
    ordered = sorted(1000 * value for value in seconds)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    tail = {"p99_ms": round(p99, 2), "worst_ms": round(ordered[-1], 2), "n": len(ordered)}
    say(name, statistics.median(ordered), "ms", **tail, **more)


def rounded(values: Sequence[float]) -> list[int]:
    return [round(value) for value in values]


def machine(folder: Path) -> dict[str, object]:
    """Returns what the numbers depend on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    with tempfile.NamedTemporaryFile(dir=folder) as file:

        def sync() -> None:
            os.write(file.fileno(), b"x" * 512)
            os.fdatasync(file.fileno())

        syncs = [timed(sync) for _ in range(200)]
    return {
        "machine": model,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "depalma": __version__,
        "load1": round(os.getloadavg()[0], 2),
        "fdatasync_p50_ms": round(1000 * statistics.median(syncs), 3),
        "fdatasync_p99_ms": round(1000 * sorted(syncs)[197], 3),
    }


def main() -> int:
    """Runs the benchmarks. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME,…", help=f"some of: {', '.join(MEASURES)}")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument("--dir", type=Path, help="where the cluster keeps its files; default: the temporary folder")
    parser.add_argument("--tls", action="store_true", help="masters' API by TLS, as between machines")
    options = parser.parse_args()
    settings = {"api_tls": "on"} if options.tls else {}
    chosen = options.only.split(",") if options.only else list(MEASURES)
    unknown = [name for name in chosen if name not in MEASURES]
    if unknown:
        parser.error(f"--only: {unknown[0]!r} given; there are: {', '.join(MEASURES)}")
    folder = Path(tempfile.mkdtemp(prefix="depalma-bench-", dir=options.dir))
    try:
        print(json.dumps(machine(folder)), flush=True)
        made = LocalCluster(masters=3, agents=2, slots=1, directory=folder, settings=settings)
        with made as cluster, cluster.client() as client:
            client.submit(nothing, 0).result()
            for name in chosen:
                MEASURES[name](cluster, client, 0.1 if options.quick else 1.0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
