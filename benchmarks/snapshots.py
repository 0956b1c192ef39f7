#!/usr/bin/env python3
"""What snapshots cost a cluster with a large state: three real masters, each write synced to disk.

    benchmarks/snapshots.py                          1,000,000 queued tasks, 200,000 finished, in two jobs
    benchmarks/snapshots.py --jobs 120000            the same tasks in so many jobs: a larger state to hold
    benchmarks/snapshots.py --result-bytes 2000      larger results that cannot be compressed
    benchmarks/snapshots.py --only snapshot,restart

Prints JSON lines. `goal` is the figure of issue 3: no stall of the leader's loop above 100 ms, at most twice the
state's memory, a restart within 15 s, half of the commit rate while a replica is brought up. What the machine does to
a master without any snapshot is measured in the same run and stands beside it as `without`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import re
import shutil
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import state as states

from depalma import LocalCluster, __version__
from depalma.consensus import recovery
from depalma.consensus.snapshot_format import Header
from depalma.local import folder
from depalma.model import Payload, Report
from depalma.offline import founding
from depalma.state import commands
from depalma.state.machine import Machine

QUEUED, FINISHED = 1_000_000, 200_000
#: snapshots are asked for, and nothing is forgotten: the jobs are as old as the clock
SETTINGS = {"snapshot_every_entries": 10**9, "history_days": 100_000, "history_jobs": 10**9}
WRITERS = 8
MIB = 1 << 20


def say(name: str, value: float, unit: str, **more: object) -> None:
    """Prints one result."""
    print(json.dumps({"benchmark": name, "value": round(value, 3), "unit": unit, **more}), flush=True)


def until(look: Callable[[], object], timeout_s: float = 120.0) -> None:
    """Returns once it is so."""
    deadline = time.monotonic() + timeout_s
    while not look():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {timeout_s:g} s: {look}")
        time.sleep(0.01)


# ---------------------------------------------------------------- the state


def large_state(jobs: int, result_bytes: int) -> Machine:
    """Returns a state with QUEUED and FINISHED tasks in `jobs` jobs, each result another one."""
    machine = states.machine_with(2)
    done = max(1, jobs * FINISHED // (QUEUED + FINISHED))
    left = jobs - done
    finish(machine, [states.submit(machine, FINISHED // done) for _ in range(done)], FINISHED // done, result_bytes)
    for _ in range(left):
        states.submit(machine, QUEUED // left)
    machine.drain_changes()
    return machine


def finish(machine: Machine, jobs: list[int], each: int, result_bytes: int) -> None:
    """Runs all tasks of the jobs, a thousand at a time."""
    for job in jobs:
        for first in range(0, each, 1000):
            tasks = tuple((job, task, 1) for task in range(first, min(first + 1000, each)))
            states.send(machine, commands.AssignTasks(1, "h0", "i0", tasks, 3.0, "least loaded"))
            reports = tuple(report(ref, result_bytes) for ref in tasks)
            states.send(machine, commands.FinishTasks("h0", "i0", reports, 4.0))


def report(ref: tuple[int, int, int], result_bytes: int) -> Report:
    """Returns the report of a task with a result of its own."""
    return Report(
        *ref, "succeeded", 0, result=Payload(inline=os.urandom(result_bytes)), started_at=3.0 + ref[1] * 1e-3,
        finished_at=3.1 + ref[1] * 1e-3, code_index=0, code_digest="ab" * 32,
    )  # fmt: skip


def prepare(directory: Path, machine: Machine | None) -> None:
    """Makes the folder of a cluster that begins with the state."""
    config = folder.make(directory, masters=3, agents=0, slots=1, settings=SETTINGS)
    if machine is not None:
        saved = directory / "state.snap"
        recovery.write_file(saved, Header(1000, 1, machine.state.version), machine.snapshot())
        say("saved_state", saved.stat().st_size / MIB, "MiB")
        founding.restore(saved, config, [master.id for master in config.masters], force=False)


# ---------------------------------------------------------------- what is looked at


def ask(cluster: LocalCluster, url: str) -> urllib.request.Request:
    """Returns a request with the cluster's token."""
    token = Path(cluster.token_file).read_text().strip()
    return urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})


def metrics(cluster: LocalCluster, name: str) -> dict[str, float]:
    """Returns the metrics of a master. Errors: OSError."""
    with urllib.request.urlopen(ask(cluster, url_of(cluster, name) + "/metrics"), timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


def pss(pid: int) -> int:
    """Returns the memory of a process in bytes; what it shares with its parent counts half for each."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def children(pid: int) -> list[int]:
    """Returns the child processes."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


class Watch:
    """Samples the memory of a master and its children, and asks its /healthz all the time."""

    def __init__(self, pid: int, url: str) -> None:
        self.pid = pid
        self.url = url
        self.peak = 0
        self.forked_s = 0.0
        self.slowest_s = 0.0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._memory), threading.Thread(target=self._health)]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _memory(self) -> None:
        while not self._stop.wait(0.02):
            pids = children(self.pid)
            self.forked_s += 0.02 * bool(pids)
            self.peak = max(self.peak, pss(self.pid) + sum(pss(pid) for pid in pids))

    def _health(self) -> None:
        while not self._stop.wait(0.005):
            started = time.monotonic()
            with urllib.request.urlopen(self.url + "/healthz", timeout=30):
                self.slowest_s = max(self.slowest_s, time.monotonic() - started)


class Load:
    """Writers that send one small command after the other (to cancel a job that has ended), and when each was
    acknowledged. The state hardly grows, so what is measured is not the load itself."""

    def __init__(self, cluster: LocalCluster, leader: str) -> None:
        with cluster.client() as client:
            job = client.command(["true"], hold=True)
            job.cancel()
        self._body = json.dumps({"jobs": [job.id]}).encode()
        self._url = urlsplit(url_of(cluster, leader))
        self._token = Path(cluster.token_file).read_text().strip()
        self._stop = threading.Event()
        self._done: list[list[tuple[float, float]]] = [[] for _ in range(WRITERS)]
        self._threads = [threading.Thread(target=self._write, args=(n,)) for n in range(WRITERS)]
        for thread in self._threads:
            thread.start()

    def _write(self, number: int) -> None:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        connection = http.client.HTTPConnection(self._url.hostname or "", self._url.port)
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                connection.request("POST", "/v1/jobs/cancel", self._body, headers)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                time.sleep(0.05)
                continue
            if answer.status == 200:
                self._done[number].append((time.monotonic(), time.monotonic() - started))
        connection.close()

    def rate(self, since: float, to: float) -> float:
        """Returns the writes a second in a stretch of time."""
        return sum(since <= at < to for done in self._done for at, _ in done) / max(1e-9, to - since)

    def slowest_s(self, since: float, to: float) -> float:
        """Returns the longest that a write took which ended in that time."""
        return max((took for done in self._done for at, took in done if since <= at < to), default=0.0)

    def stop(self) -> None:
        """Ends the writers."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


@contextmanager
def loaded(cluster: LocalCluster, leader: str) -> Iterator[Load]:
    """A leader under load that has settled."""
    load_ = Load(cluster, leader)
    try:
        time.sleep(2)
        yield load_
    finally:
        load_.stop()


def pid_of(cluster: LocalCluster, name: str) -> int:
    """Returns the process id of a master."""
    pid = next(process.pid for process in cluster.processes if process.id == name)
    assert pid is not None
    return pid


def url_of(cluster: LocalCluster, name: str) -> str:
    """Returns the base URL of a master."""
    return next(process.url for process in cluster.processes if process.id == name)


def save(cluster: LocalCluster, url: str) -> int:
    """Has the leader write a snapshot of now; returns its size."""
    with urllib.request.urlopen(ask(cluster, url + "/v1/snapshot"), timeout=600) as answer:
        return sum(map(len, iter(lambda: answer.read(MIB), b"")))


# ---------------------------------------------------------------- measures


def measure_snapshots(cluster: LocalCluster, empty_bytes: int, count: int) -> None:
    """Snapshots of the leader under load: its loop, its memory, its commits, beside as long without a snapshot."""
    leader = cluster.leader()
    pid, url = pid_of(cluster, leader), url_of(cluster, leader)
    with loaded(cluster, leader) as load_:
        before = pss(pid)
        state_bytes = max(1, before - empty_bytes)
        say("state_memory", state_bytes / MIB, "MiB", master_mib=round(before / MIB, 1))
        rows: dict[str, list[tuple[float, ...]]] = {"with": [], "without": []}
        took = 1.0
        for _ in range(count):
            for kind in rows:
                earlier, began, held = stalls(cluster, leader), time.monotonic(), pss(pid)
                with Watch(pid, url) as watch:
                    if kind == "with":
                        save(cluster, url)
                    else:
                        time.sleep(took)
                    took = time.monotonic() - began
                    time.sleep(0.3)
                ended = time.monotonic()
                cost = (watch.peak - held) / state_bytes
                stalled = stall(earlier, metrics(cluster, leader))
                slowest, rate = load_.slowest_s(began, ended), load_.rate(began, ended)
                rows[kind].append((stalled, watch.slowest_s, slowest, rate, cost, took, watch.forked_s))
    tell_snapshots(rows, state_bytes)


def stalls(cluster: LocalCluster, name: str) -> dict[str, float]:
    """Returns the metrics, without what it costs a master to count so many jobs for the first time."""
    metrics(cluster, name)
    time.sleep(0.1)
    return metrics(cluster, name)


def stall(before: dict[str, float], after: dict[str, float]) -> float:
    """Returns the bound that no stall in between exceeded."""
    names = [name for name in after if name.startswith('depalma_loop_stall_seconds_bucket{le="')]
    total = (
        after['depalma_loop_stall_seconds_bucket{le="+Inf"}'] - before['depalma_loop_stall_seconds_bucket{le="+Inf"}']
    )
    for name in names:
        if after[name] - before.get(name, 0) >= total:
            bound = name.split('"')[1]
            return float("inf") if bound == "+Inf" else float(bound)
    return float("inf")


def tell_snapshots(rows: dict[str, list[tuple[float, ...]]], state_bytes: int) -> None:
    """Prints the worst and the median of the runs."""
    columns = {kind: list(zip(*runs, strict=True)) for kind, runs in rows.items()}
    for place, (name, unit, scale, worst, goal) in enumerate((
        ("snapshot_loop_stall_at_most", "ms", 1000, max, 100), ("snapshot_slowest_healthz", "ms", 1000, max, None),
        ("snapshot_slowest_write", "ms", 1000, max, None), ("snapshot_writes", "writes/s", 1, min, None),
        ("snapshot_memory", "x state", 1, max, 2), ("snapshot_time", "s", 1, max, None),
        ("snapshot_child_time", "s", 1, max, None),
    )):  # fmt: skip
        values, plain = columns["with"][place], columns["without"][place]
        say(name, scale * worst(values), unit, median=round(scale * statistics.median(values), 3),
            without=round(scale * worst(plain), 3), n=len(values), **({"goal": goal} if goal else {}))  # fmt: skip


def measure_restart(cluster: LocalCluster) -> None:
    """A master is killed and started again: until it is ready and has what the others have; then all of them."""
    leader = cluster.leader()
    follower = next(process.id for process in cluster.processes if process.id != leader)
    cluster.kill(follower)
    began = time.monotonic()
    cluster.restart(follower, wait_s=0)
    until(lambda: ready(url_of(cluster, follower)))
    say("restart_of_one", time.monotonic() - began, "s", goal=15)
    names = [process.id for process in cluster.processes]
    for name in names:
        cluster.kill(name)
    began = time.monotonic()
    for name in names:
        cluster.restart(name, wait_s=0)
    with cluster.client(deadline_s=120) as client:
        client.command(["true"], hold=True)
    say("restart_of_all_until_a_write", time.monotonic() - began, "s", goal=15)


def ready(url: str) -> bool:
    """Whether a master is ready."""
    try:
        with urllib.request.urlopen(url + "/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def measure_lagging(cluster: LocalCluster) -> None:
    """A replica that lost its disk is brought up by the leader's snapshot, under load."""
    leader = cluster.leader()
    lagging = next(process.id for process in cluster.processes if process.id != leader)
    with loaded(cluster, leader) as load_:
        began = time.monotonic()
        time.sleep(5)
        alone = load_.rate(began, time.monotonic())
        cluster.kill(lagging)
        shutil.rmtree(cluster.directory / lagging / "raft")
        earlier, began = stalls(cluster, leader), time.monotonic()
        cluster.restart(lagging, wait_s=0)
        until(lambda: caught_up(cluster, leader, lagging))
        ended = time.monotonic()
        during = load_.rate(began, ended)
        say("lagging_replica_brought_up", ended - began, "s", n=1)
        say("lagging_writes", during, "writes/s", without=round(alone, 1))
        say("lagging_share_of_rate", 100 * during / alone, "%", goal=50)
        say("lagging_loop_stall_at_most", 1000 * stall(earlier, metrics(cluster, leader)), "ms", goal=100)
        say("lagging_slowest_write", 1000 * load_.slowest_s(began, ended), "ms",
            without=round(1000 * load_.slowest_s(began - 5, began), 1))  # fmt: skip


def caught_up(cluster: LocalCluster, leader: str, other: str) -> bool:
    """Whether a master has what the leader has, but for what is on its way."""
    try:
        one, two = (metrics(cluster, name)["depalma_applied_index"] for name in (leader, other))
    except OSError:
        return False
    return two > 0 and one - two < 50


def empty_master_bytes(directory: Path) -> int:
    """Returns what a master without any state takes, under the same load."""
    prepare(directory, None)
    with LocalCluster(masters=3, agents=0, directory=directory) as cluster:
        leader = cluster.leader()
        with loaded(cluster, leader):
            return pss(pid_of(cluster, leader))


def main() -> int:
    """Runs the benchmark. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="how many jobs hold the tasks")
    parser.add_argument("--result-bytes", type=int, default=100)
    parser.add_argument("--count", type=int, default=10, help="snapshots to take")
    parser.add_argument("--only", default="snapshot,restart,lagging")
    parser.add_argument("--dir", type=Path, help="where the disks of the masters are; default: the temporary folder")
    options = parser.parse_args()
    wanted = options.only.split(",")
    say("machine", os.cpu_count() or 0, "cores", python=platform.python_version(), release=__version__,
        load1=os.getloadavg()[0], jobs=options.jobs, result_bytes=options.result_bytes)  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="depalma-snapshots-", dir=options.dir) as base:
        empty = empty_master_bytes(Path(base) / "empty")
        directory = Path(base) / "cluster"
        prepare(directory, large_state(options.jobs, options.result_bytes))
        with LocalCluster(masters=3, agents=0, directory=directory, settings=SETTINGS) as cluster:
            if "snapshot" in wanted:
                measure_snapshots(cluster, empty, options.count)
            if "restart" in wanted:
                measure_restart(cluster)
            if "lagging" in wanted:
                measure_lagging(cluster)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
