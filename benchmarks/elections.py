#!/usr/bin/env python3
"""Whether a cluster under full load elects without need: three masters, and tasks and writes as fast as both cores go.

    benchmarks/elections.py [--minutes 10] [--burners 0] [--dir FOLDER]

No process is killed or stopped, so each new term is needless. Prints JSON lines: one a minute, and the result. If there
was an election, what the masters' logs say of it follows on stderr. `--burners` adds processes that only take
processor time, as whatever else a workstation does would.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from depalma import Client, LocalCluster, __version__

#: a snapshot every some seconds at these rates: forks belong to the load
SETTINGS = {"snapshot_every_entries": 5_000}
_STALL = re.compile(r'depalma_loop_stall_seconds_bucket\{le="(.+)"\}')
_TOLD = re.compile(r" leads in term | no longer leads | connection with .* closed| has been silent | stops")


def say(name: str, **values: object) -> None:
    """Prints one result."""
    print(json.dumps({"benchmark": name, **values}), flush=True)


def nothing(_: int) -> None:
    """The task that costs nothing, so that the cluster has the most to do."""


def burn() -> None:
    """Takes a core."""
    while True:
        sum(range(10_000))


# ---------------------------------------------------------------- the load


def map_functions(client: Client, done: Counter[str]) -> None:
    """Python functions, a map after the other."""
    done["functions"] += sum(1 for _ in client.map(nothing, range(2_000)).results())


def run_commands(client: Client, done: Counter[str]) -> None:
    """Commands, an array after the other."""
    client.command(["/bin/true"], array=500).wait()
    done["commands"] += 500


def write(client: Client, done: Counter[str]) -> None:
    """Small writes, one after the other."""
    job = client.command(["/bin/true"], hold=True)
    job.cancel()
    done["writes"] += 2


class Load:
    """Clients that go on until it ends."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.done: Counter[str] = Counter()
        self.errors: list[str] = []
        self._stop = threading.Event()
        work = [map_functions, run_commands, write, write, write, write]
        self._threads = [threading.Thread(target=self._run, args=(cluster, one)) for one in work]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, cluster: LocalCluster, work: Callable[[Client, Counter[str]], None]) -> None:
        with cluster.client() as client:
            while not self._stop.is_set():
                try:
                    work(client, self.done)
                except Exception as error:  # a client's failure is a result of this benchmark, not its end
                    self.errors.append(f"{work.__name__}: {type(error).__name__}: {error}")
                    self._stop.wait(1.0)


# ---------------------------------------------------------------- what is looked at


def metrics(cluster: LocalCluster) -> dict[str, dict[str, float]]:
    """Returns the metrics of each master. Errors: OSError."""
    token = Path(cluster.token_file).read_text().strip()
    found = {}
    for process in cluster.processes:
        if process.role == "master":
            request = urllib.request.Request(process.url + "/metrics", headers={"Authorization": f"Bearer {token}"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
            found[process.id] = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}
    return found


def stalls(values: dict[str, float]) -> dict[str, int]:
    """Returns how often a loop stood still for longer than this many milliseconds."""
    total = values['depalma_loop_stall_seconds_bucket{le="+Inf"}']
    bounds = {match[1]: count for name, count in values.items() if (match := _STALL.fullmatch(name))}
    return {f">{1000 * float(le):g}ms": round(total - bounds[le]) for le in ("0.08", "0.1", "0.2", "0.3", "0.5")}


def busy_s() -> tuple[float, float]:
    """Returns the seconds that the cores have worked, and what was taken from them, since the machine started."""
    user, nice, system, _, _, irq, softirq, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / tick, stolen / tick


def snapshots(cluster: LocalCluster) -> int:
    """Returns the log index of the newest snapshot of any master."""
    names = [path.name for path in cluster.directory.glob("*/raft/snapshot-*.snap")]
    return max((int(name[9:29]) for name in names), default=0)


def observe(cluster: LocalCluster, minutes: float) -> None:
    """Loads the cluster and prints what happened."""
    before, began, (busy, stolen), loads = metrics(cluster), time.monotonic(), busy_s(), []
    with Load(cluster) as load:
        while (left := began + 60 * minutes - time.monotonic()) > 0:
            time.sleep(min(left, 60.0))
            loads.append(os.getloadavg()[0])
            now = metrics(cluster)
            say("elections_so_far", minutes=round((time.monotonic() - began) / 60, 1), load1=round(loads[-1], 1),
                terms=terms(before, now), errors=len(load.errors), **load.done)  # fmt: skip
    took = time.monotonic() - began
    after = metrics(cluster)
    busy_now, stolen_now = busy_s()
    say(
        "elections", value=terms(before, after), unit="new terms", goal=0, minutes=round(took / 60, 2),
        leader_changes=sum("leads in term" in line for line in told(cluster)) - 1, load1_highest=round(max(loads), 1),
        cores_busy=round((busy_now - busy) / took, 2), cores_stolen=round((stolen_now - stolen) / took, 3),
        newest_snapshot=snapshots(cluster), commands_applied=max(
            after[name]["depalma_applied_index"] - before[name]["depalma_applied_index"] for name in after
        ), **load.done, client_errors=load.errors[:5], stalls={name: stalls(values) for name, values in after.items()},
    )  # fmt: skip
    if terms(before, after):
        print("\n".join(told(cluster)), file=sys.stderr)


def terms(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> int:
    """Returns how many terms began in between."""
    first, last = (max(values["depalma_term"] for values in found.values()) for found in (before, after))
    return round(last - first)


def told(cluster: LocalCluster) -> list[str]:
    """Returns what the masters have logged of leaders and connections, in order of time."""
    lines = []
    for process in cluster.processes:
        if process.role == "master":
            log = (cluster.directory / "log" / f"{process.id}.log").read_text(errors="replace")
            lines += [f"{line[:23]} {process.id} {line[24:]}" for line in log.splitlines() if _TOLD.search(line)]
    return sorted(line for line in lines if "depalma.master" not in line)


def main() -> int:
    """Runs the benchmark. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--burners", type=int, default=0, help="processes that only take processor time")
    parser.add_argument("--dir", type=Path, help="where the cluster keeps its files; default: the temporary folder")
    options = parser.parse_args()
    say("machine", cores=os.cpu_count(), python=platform.python_version(), release=__version__,
        load1=round(os.getloadavg()[0], 1), burners=options.burners)  # fmt: skip
    burners = [multiprocessing.Process(target=burn, daemon=True) for _ in range(options.burners)]
    with tempfile.TemporaryDirectory(prefix="depalma-elections-", dir=options.dir) as folder:
        for burner in burners:
            burner.start()
        try:
            with LocalCluster(masters=3, agents=2, slots=1, directory=folder, settings=SETTINGS) as cluster:
                observe(cluster, options.minutes)
        finally:
            for burner in burners:
                burner.kill()
                burner.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
