#!/usr/bin/env python3
"""Whether the cluster stays what it is when it has much to hold: a million queued tasks, a thousand agents, thousands
of small jobs.

    benchmarks/scale.py                         everything, about three minutes
    benchmarks/scale.py --only hosts            some of: queue, submits, hosts, where
    benchmarks/scale.py --dir FOLDER            put the masters' disks there (a RAM disk would flatter the numbers)

Three real masters as processes, each write synced to disk. Prints a JSON line a measure with its goal; the first line
describes the machine. Two cores are not enough for a cluster and those who use it, so what is not measured gives way:

- `queue`, `submits`: everything shares the cores, clients included, as in `run.py`.
- `hosts`: the leader has core 0, in the end with those who ask it; agents, followers and who submits share core 1. The
  agents are one process (`agents.py`) that speaks their protocol over a thousand real WebSockets.
"""

from __future__ import annotations

import argparse
import gc
import http.client
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import run as whole
from run import say, wait_for
from snapshots import metrics, stall

from depalma import LocalCluster

MIB = 1 << 20
TICKS = os.sysconf("SC_CLK_TCK")
MILLION = 1_000_000
WARM, MEASURED = 20_000, 60_000
CLIENTS, JOBS = 32, 10_000
AGENTS = 1_000
NOOP: dict[str, Any] = {"kind": "function", "function": "builtins:dict", "name": "noop"}


def nothing(_: int) -> None:
    """The task that costs nothing, so that only the cluster is measured."""


# ---------------------------------------------------------------- looking


def pid_of(cluster: LocalCluster, name: str) -> int:
    """Returns the process id of a master or an agent."""
    pid = next(process.pid for process in cluster.processes if process.id == name)
    assert pid is not None
    return pid


def resident_mib(pid: int) -> float:
    """Returns what a process has in memory now."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def cpu_s(pid: int) -> float:
    """Returns the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory(cluster: LocalCluster) -> list[float]:
    """Returns the memory of each master, the largest first."""
    return sorted((round(resident_mib(pid_of(cluster, name)), 1) for name in masters(cluster)), reverse=True)


def masters(cluster: LocalCluster) -> list[str]:
    """Returns the names of the masters."""
    return [process.id for process in cluster.processes if process.role == "master"]


class Caller:
    """One connection to the leader, one request after the other."""

    def __init__(self, cluster: LocalCluster) -> None:
        leader = cluster.leader()
        self.url = urlsplit(next(process.url for process in cluster.processes if process.id == leader))
        self._connection = http.client.HTTPConnection(self.url.hostname or "", self.url.port, timeout=60)
        self._headers = {
            "Authorization": f"Bearer {Path(cluster.token_file).read_text().strip()}",
            "Content-Type": "application/json",
        }

    def ask(self, path: str, body: object = None) -> tuple[float, Any]:
        """Returns how long the answer took, in seconds, and what it was. Errors: SystemExit when it is a refusal."""
        data = None if body is None else json.dumps(body).encode()
        started = time.perf_counter()
        self._connection.request("GET" if data is None else "POST", path, data, self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        took = time.perf_counter() - started
        if answer.status not in (200, 201):
            raise SystemExit(f"{path}: {answer.status} {content[:500]!r}")
        return took, json.loads(content)


class Looker(threading.Thread):
    """Asks for `jobs`, `show` and `explain` all the time, as a few users would who are curious. `cores`: where it runs,
    if not where the rest of this process does."""

    def __init__(self, cluster: LocalCluster, job: int, cores: frozenset[int] | None = None) -> None:
        super().__init__()
        self._cores = cores
        self._caller = Caller(cluster)
        self._paths = {"jobs": "/v1/jobs", "show": f"/v1/jobs/{job}", "explain": f"/v1/jobs/{job}/explain"}
        self._over = threading.Event()
        self.took_s: dict[str, list[float]] = {name: [] for name in self._paths}
        self.start()

    def run(self) -> None:
        """Asks, with a little pause, until it is stopped."""
        if self._cores is not None:
            os.sched_setaffinity(0, self._cores)  # of this thread
        while not self._over.wait(0.02):
            for name, path in self._paths.items():
                self.took_s[name].append(self._caller.ask(path)[0])

    def stop(self, when: str) -> None:
        """Ends, and prints what it saw."""
        self._over.set()
        self.join()
        for name, took in self.took_s.items():
            times(f"{name}_{when}", took, goal_worst_ms=100)


def times(name: str, seconds: Sequence[float], **more: object) -> None:
    """Prints durations, the worst of which counts."""
    ordered = sorted(1000 * each for each in seconds)
    tail = {"p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))], 2), "worst_ms": round(ordered[-1], 2)}
    say(name, statistics.median(ordered), "ms", **tail, n=len(ordered), **more)


@contextmanager
def calm() -> Any:
    """Nothing of this process's own stands in the way of what it measures."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# ---------------------------------------------------------------- a million queued tasks


def rate_of(caller: Caller, count: int) -> tuple[float, int]:
    """Submits a job of no-op functions; returns tasks a second after the first ones, and the job."""
    job = caller.ask("/v1/jobs", {**NOOP, "count": count})[1]["id"]

    def done() -> int:
        return int(caller.ask(f"/v1/jobs/{job}")[1]["tasks"]["succeeded"])

    first = wait_for(done, lambda number: number >= WARM)
    began = time.monotonic()
    last = wait_for(done, lambda number: number >= WARM + MEASURED)
    return (last - first) / (time.monotonic() - began), job


def queue(directory: Path) -> None:
    """Dispatch with an empty queue and with a million tasks in it, in turns; and what a master takes."""
    with LocalCluster(masters=3, agents=2, slots=1, directory=directory) as cluster, cluster.client() as client:
        caller = Caller(cluster)
        client.submit(nothing, 0).result()
        say("memory_empty", memory(cluster)[0], "MiB", masters=memory(cluster))
        empty, full = [], []
        for turn in range(3):
            rate, job = rate_of(caller, WARM + MEASURED)
            empty.append(rate)
            client.job(job).wait()
            rate, job = rate_of(caller, MILLION + WARM + MEASURED)
            full.append(rate)
            if turn == 2:
                say("memory_million_queued", memory(cluster)[0], "MiB", goal=400, masters=memory(cluster))
                looker = Looker(cluster, job)
                time.sleep(3)
                looker.stop("with_a_million")
            caller.ask("/v1/jobs/cancel", {"jobs": [job]})
            client.job(job).wait()
        ratios = [with_it / without for with_it, without in zip(full, empty, strict=True)]
        say("dispatch_empty_queue", statistics.median(empty), "tasks/s", runs=whole.rounded(empty))
        say("dispatch_million_queued", statistics.median(full), "tasks/s", runs=whole.rounded(full))
        say("dispatch_ratio", statistics.median(ratios), "", goal=0.9, runs=[round(each, 2) for each in ratios])
        memory_of_jobs(cluster)


def memory_of_jobs(cluster: LocalCluster) -> None:
    """A million tasks once more, in many jobs: what is kept of each job counts then."""
    before, jobs = memory(cluster)[0], 10_000
    spec = {"kind": "command", "argv": ["/bin/true"], "count": MILLION // jobs, "on_host": "nowhere"}
    submit_all(cluster, spec)
    say("memory_million_in_10000_jobs", memory(cluster)[0], "MiB", goal=400, before=before, masters=memory(cluster))


# ---------------------------------------------------------------- many small jobs


def submits(directory: Path) -> None:
    """Jobs of one task, submitted one at a time by each of 32 clients, while others look: first into a queue that
    nobody serves, then while agents run them."""
    with LocalCluster(masters=3, agents=2, slots=1, directory=directory) as cluster, cluster.client() as client:
        caller = Caller(cluster)
        job = client.command(["/bin/true"], array=MILLION, on_host="nowhere", name="waits")
        for name, spec in (
            ("waiting", {"kind": "command", "argv": ["/bin/true"], "on_host": "nowhere"}),
            ("running", NOOP),
        ):
            looker = Looker(cluster, job.id)
            before = spent(cluster)
            with calm():
                rate, took = submit_all(cluster, spec)
            looker.stop(f"while_submitting_{name}")
            used = {
                who: round(1e6 * (spent(cluster)[who] - before[who]) / len(took)) for who in ("leader", "followers")
            }
            say(f"submits_{name}", rate, "jobs/s", goal=1000, clients=CLIENTS, jobs=len(took), us_a_job=used)
            times(f"submit_{name}", took)
        wait_for(
            lambda: caller.ask("/v1/jobs?name=noop&state=queued,running,blocked&limit=1")[1]["jobs"], lambda j: not j
        )


def submit_all(cluster: LocalCluster, spec: dict[str, Any]) -> tuple[float, list[float]]:
    """Returns acknowledged jobs a second, and how long each took. Clients are processes, as real ones would be."""
    each = -(-JOBS // CLIENTS)
    here = Path(__file__).resolve()
    workers = 2
    command = [sys.executable, str(here), "--client", json.dumps(spec), str(CLIENTS // workers), str(each)]
    leader = Caller(cluster).url.geturl()
    clients = [subprocess.Popen([*command, leader, cluster.token_file], stdout=subprocess.PIPE) for _ in range(workers)]
    told = [json.loads(process.communicate()[0]) for process in clients]
    took = [one for each_of in told for one in each_of["took_s"]]
    begin, end = min(each_of["began"] for each_of in told), max(each_of["ended"] for each_of in told)
    return len(took) / (end - begin), took


def be_clients(spec: str, number: int, each: int, url: str, token_file: str) -> None:
    """Is some of the clients: an own connection each, one job after the other, on one loop."""
    import asyncio

    import aiohttp

    body = spec.encode()
    headers = {"Authorization": f"Bearer {Path(token_file).read_text().strip()}", "Content-Type": "application/json"}
    took: list[float] = []

    async def one(http_: aiohttp.ClientSession, name: str) -> None:
        for turn in range(each):
            started = time.perf_counter()
            key = {"Idempotency-Key": f"{name}-{turn}"}
            async with http_.post(url + "/v1/jobs", data=body, headers={**headers, **key}) as answer:
                await answer.read()
                assert answer.status == 201, await answer.text()
            took.append(time.perf_counter() - started)

    async def everyone() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http_:
            await asyncio.gather(*(one(http_, f"{os.getpid()}-{started}-{client}") for client in range(number)))

    started = time.monotonic()
    gc.disable()
    asyncio.run(everyone())
    print(json.dumps({"took_s": took, "began": started, "ended": time.monotonic()}))


# ---------------------------------------------------------------- a thousand agents


def hosts(directory: Path) -> None:
    """The leader's processor time with a thousand agents: with nothing to do, and with tasks on all of them."""
    with LocalCluster(masters=3, agents=0, directory=directory) as cluster, cluster.client() as client:
        caller = Caller(cluster)
        leader = cluster.leader()
        for name in masters(cluster):
            os.sched_setaffinity(pid_of(cluster, name), {0} if name == leader else {1})
        os.sched_setaffinity(0, {1})
        for number in range(AGENTS):
            caller.ask("/v1/hosts", {"name": f"s{number}"})
        agents = Simulated(cluster, directory, run_s=10.0)
        try:
            agents.until(lambda seen: seen.get("connected") == AGENTS)
            time.sleep(5)
            agents.look("idle", pid_of(cluster, leader), 15)
            job = client.command(["/bin/true"], array=30_000, name="long").id
            time.sleep(12)
            agents.look("busy", pid_of(cluster, leader), 15)
            before = metrics(cluster, leader)
            looker = Looker(cluster, job, frozenset({0}))
            agents.look("asked", pid_of(cluster, leader), 15)
            looker.stop("with_a_thousand_hosts")
            say("leader_loop_stall_at_most", 1000 * stall(before, metrics(cluster, leader)), "ms")
            say("memory_thousand_hosts", memory(cluster)[0], "MiB", masters=memory(cluster))
        finally:
            agents.stop()


class Simulated:
    """The process of the agents, and what it told last."""

    def __init__(self, cluster: LocalCluster, directory: Path, run_s: float) -> None:
        here = Path(__file__).resolve().with_name("agents.py")
        url = Caller(cluster).url.geturl()
        token = directory / "secrets" / "agent.token"
        self.process = subprocess.Popen(
            [sys.executable, str(here), url, str(token), str(AGENTS), "--run-s", str(run_s)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.seen: list[dict[str, float]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            told = json.loads(line)
            if "refused" in told:
                print(json.dumps(told), file=sys.stderr, flush=True)
            else:
                self.seen.append(told)

    def until(self, ready: Callable[[dict[str, float]], bool]) -> None:
        """Waits for what they tell."""
        wait_for(lambda: self.seen[-1] if self.seen else {}, ready, timeout_s=120)

    def look(self, name: str, leader: int, seconds: float) -> None:
        """Measures for a while, and prints it."""
        before, first, started = cpu_s(leader), len(self.seen), time.monotonic()
        own = cpu_s(self.process.pid)
        time.sleep(seconds)
        passed = time.monotonic() - started
        share = 100 * (cpu_s(leader) - before) / passed
        seen = self.seen[first:]
        beats = sum(each["beats"] for each in seen) / len(seen)
        tasks = (seen[-1]["finished"] - seen[0]["finished"]) / (len(seen) - 1)
        say(
            f"leader_core_{name}", share, "%", goal=50, agents=int(seen[-1]["connected"]), beats_per_s=round(beats),
            tasks_per_s=round(tasks), agents_core_percent=round(100 * (cpu_s(self.process.pid) - own) / passed),
        )  # fmt: skip
        answered = [each for each in seen if "worst_ms" in each]
        say(
            f"heartbeat_answer_{name}", statistics.median(each["p50_ms"] for each in answered), "ms",
            worst_ms=round(max(each["worst_ms"] for each in answered), 1),
        )  # fmt: skip

    def stop(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)
        self._reader.join()


# ---------------------------------------------------------------- where the time goes


def where(directory: Path) -> None:
    """Processor time a task, by who spends it: it adds up to what two cores can do."""
    with LocalCluster(masters=3, agents=2, slots=1, directory=directory) as cluster, cluster.client() as client:
        for name, count, work in (
            ("function", 20_000, lambda n: list(client.map(nothing, range(n)).results())),
            ("command", 2_000, lambda n: client.command(["/bin/true"], array=n).wait()),
            ("job_on_hold", 2_000, lambda n: [whole.held_job(client) for _ in range(n)]),
        ):
            work(count // 10)
            before, started = spent(cluster), time.monotonic()
            work(count)
            passed = time.monotonic() - started
            used = {who: round(1e6 * (after - before[who]) / count, 1) for who, after in spent(cluster).items()}
            say(f"where_{name}", sum(used.values()), "us/task", per_s=round(count / passed), **used)


def spent(cluster: LocalCluster) -> dict[str, float]:
    """Returns the processor time so far, in seconds: of the leader, of both followers, and so on."""
    leader = cluster.leader()
    used = dict.fromkeys(("leader", "followers", "agents", "monitors", "tasks", "client"), 0.0)
    used["client"] = time.process_time()
    for process in cluster.processes:
        assert process.pid is not None
        if process.role == "master":
            used["leader" if process.id == leader else "followers"] += cpu_s(process.pid)
            continue
        used["agents"] += cpu_s(process.pid)
        for child in psutil.Process(process.pid).children():
            used["monitors"] += cpu_s(child.pid)
            used["tasks"] += sum(child.cpu_times()[2:4])
            used["tasks"] += sum(sum(each.cpu_times()[:4]) for each in child.children(recursive=True))
    return used


MEASURES: dict[str, Callable[[Path], None]] = {"queue": queue, "submits": submits, "hosts": hosts, "where": where}


def main() -> int:
    """Runs the benchmarks. Returns the exit code."""
    if sys.argv[1:2] == ["--client"]:
        spec, number, each, url, token_file = sys.argv[2:]
        be_clients(spec, int(number), int(each), url, token_file)
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME,…", help=f"some of: {', '.join(MEASURES)}")
    parser.add_argument("--dir", type=Path, help="where the cluster keeps its files; default: the temporary folder")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else list(MEASURES)
    unknown = [name for name in chosen if name not in MEASURES]
    if unknown:
        parser.error(f"--only: {unknown[0]!r} given; there are: {', '.join(MEASURES)}")
    folder = Path(tempfile.mkdtemp(prefix="depalma-scale-", dir=options.dir))
    try:
        print(json.dumps(whole.machine(folder)), flush=True)
        for name in chosen:
            MEASURES[name](folder / name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
