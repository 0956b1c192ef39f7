"""`ps` and `load` on a real cluster: what runs on each host at that moment, and how busy it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from depalma import Client, LocalCluster
from depalma.client.verbs import Processes
from depalma.model import ProcessView
from tests.system.calm import START_S, STEADY

WaitUntil = Callable[..., Any]
Ctl = Callable[..., subprocess.CompletedProcess[str]]
HOSTS = ("h1", "h2", "h3")
#: How often what must always hold is tried.
ROUNDS = 6
#: What a task does once it is told to: a child, and one that hides: twice forked, in a session of its own.
FAMILY = """
import os, subprocess, sys, time

def start():
    child = subprocess.Popen(["sleep", "600"]).pid
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        hidden = subprocess.Popen(["sleep", "601"], start_new_session=True).pid
        os.write(writing, str(hidden).encode())
        os._exit(0)
    os.close(writing)
    hidden = int(os.read(reading, 20))
    os.wait()
    return child, hidden

def family(folder, rounds, index):
    for number in range(rounds):
        while not os.path.exists(f"{folder}/go{number}"):
            time.sleep(0.01)
        pids = start()
        with open(f"{folder}/{number}.{index}.tmp", "w") as file:
            file.write(f"{pids[0]} {pids[1]}")
        os.rename(f"{folder}/{number}.{index}.tmp", f"{folder}/{number}.{index}")
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Three agents with one slot each, so that a job of three tasks is everywhere."""
    made = LocalCluster(masters=3, agents=3, slots=1, settings=STEADY, start_s=START_S)
    yield made
    assert made.stop() == []


def start_as_command(client: Client, folder: Path) -> int:
    code = f"{FAMILY}\nfamily(sys.argv[1], {ROUNDS}, os.environ['DEPALMA_TASK_INDEX'])"
    return client.command([sys.executable, "-c", code, str(folder)], array="0-2").id


def start_as_function(client: Client, folder: Path, **options: Any) -> int:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(FAMILY, space)
    return client.map(partial(space["family"], str(folder), ROUNDS), range(3), **options).id


STARTS: dict[str, Callable[[Client, Path], int]] = {
    "command": start_as_command,
    "function": start_as_function,
    "isolated": lambda client, folder: start_as_function(client, folder, isolate=True),
}


@pytest.mark.parametrize("way", STARTS)
def test_a_new_process_is_in_the_next_answer_of_every_host(
    way: str, client: Client, tmp_path: Path, wait_until: WaitUntil
) -> None:
    job = STARTS[way](client, tmp_path)
    try:
        wait_until(lambda: {process.host for process in client.ps(job).processes}, lambda hosts: hosts == set(HOSTS))
        for number in range(ROUNDS):
            look_at_once(number, job, client, tmp_path, wait_until)
    finally:
        client.cancel(job)
    wait_until(lambda: client.ps(job).processes, lambda processes: not processes)


def look_at_once(number: int, job: int, client: Client, folder: Path, wait_until: WaitUntil) -> None:
    """Makes every task start its processes. All are in the next answer: none is of an earlier moment."""
    (folder / f"go{number}").touch()
    files = [folder / f"{number}.{index}" for index in range(3)]
    wait_until(lambda: all(file.exists() for file in files))
    pids = {int(pid) for file in files for pid in file.read_text().split()}
    # On a busy machine some may not answer in time.
    seen: Processes = wait_until(lambda: client.ps(job), lambda answer: not answer.missing)
    assert pids <= {process.pid for process in seen.processes}
    new = [process for process in seen.processes if process.pid in pids]
    assert {process.host for process in new} == set(HOSTS)
    assert sorted(process.command for process in new) == ["sleep 600"] * 3 + ["sleep 601"] * 3
    assert all(is_right(process) for process in new)


def is_right(process: ProcessView) -> bool:
    return process.ppid == int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_host_that_does_not_answer_is_named_and_holds_up_nobody(
    cluster: LocalCluster, client: Client, ctl: Ctl, wait_until: WaitUntil
) -> None:
    job = client.command(["sleep", "602"], array="0-2").id
    try:
        wait_until(lambda: len(client.ps(job).processes) == 3)
        cluster.pause("h2")
        wait_until(lambda: quick_without_h2(client, job))
        others = {"h1", "h3"}
        wait_until(lambda: {process.host for process in client.ps(job).processes}, others.__eq__)
        words = "warning: not shown: h2 did not answer in time\n"
        wait_until(lambda: ctl("ps", str(job)).stderr, words.__eq__)
        words = "no history: h2 did not answer in time"
        wait_until(lambda: ctl("load", "--history").stderr, lambda said: said.count(words) == 1)
    finally:
        cluster.resume("h2")
        client.cancel(job)
    wait_until(lambda: [host.state for host in client.hosts()], lambda states: states == ["up"] * 3)


def quick_without_h2(client: Client, job: int) -> bool:
    """Returns whether all but h2 answered, and the answer was there within a second: on a busy machine some is not."""
    began = time.monotonic()
    answer = client.ps(job)
    took_s = time.monotonic() - began
    assert "h2" in answer.missing
    return answer.missing == ("h2",) and took_s < 1.0


# ---------------------------------------------------------------- load


def test_load_tells_tasks_from_what_is_not_ours(
    client: Client, value: Callable[..., Any], wait_until: WaitUntil
) -> None:
    loop = [sys.executable, "-c", "while True: pass"]
    job = client.command(loop).id
    with subprocess.Popen(loop) as foreign:
        try:
            wait_until(lambda: any(shares_are_seen(row) for row in value("load")))
        finally:
            foreign.kill()
            client.cancel(job)
    (row,) = value("load", "h1")
    load = row["load"]
    assert load["memory_total_bytes"] == load["memory_available_bytes"] + load["memory_used_bytes"]
    assert 0 < load["folder_free_bytes"] <= load["folder_total_bytes"]


def shares_are_seen(row: dict[str, Any]) -> bool:
    """On the host of the task: part of the load is ours, part is not; on the others everything is foreign."""
    some = 10.0 / (os.cpu_count() or 1)  # percent of all CPUs
    return bool(row["load"]["tasks_cpu_percent"] > some and row["load"]["foreign_cpu_percent"] > some)


def test_the_last_hour_is_told_through_any_leader_until_the_agent_begins_anew(
    fresh_cluster: Callable[..., LocalCluster], ctl: Ctl, wait_until: WaitUntil
) -> None:
    cluster = fresh_cluster(agents=2)
    here = {"DEPALMA_MASTERS": ",".join(cluster.masters), "DEPALMA_TOKEN_FILE": cluster.token_file}
    with cluster.client() as client:
        look_at_the_last_hour(cluster, client, partial(ctl, env=here), wait_until)


def look_at_the_last_hour(cluster: LocalCluster, client: Client, ctl: Ctl, wait_until: WaitUntil) -> None:
    def began() -> dict[str, float]:
        rows = client.load(last_s=3600)
        return {row.host: row.history.began_at for row in rows if row.history is not None}

    before = wait_until(began, lambda found: len(found) == 2)
    old_leader = cluster.leader()
    cluster.kill(old_leader)
    after = wait_until(began, lambda found: len(found) == 2)
    assert cluster.leader() != old_leader
    cluster.restart(old_leader)
    assert after == {host: pytest.approx(at, abs=0.1) for host, at in before.items()}

    cluster.restart("h1")
    again = wait_until(began, lambda found: len(found) == 2)
    assert again["h1"] > before["h1"] + 0.5
    wait_until(lambda: [row for row in client.load("h1", last_s=300) if row.history and row.history.points])

    def told(*words: str) -> subprocess.CompletedProcess[str]:
        """What is told once the host has answered in time."""
        away = "did not answer in time"
        return wait_until(lambda: ctl("load", "h1", "--history", "5m", *words), lambda done: away not in done.stderr)

    done = told()
    assert "h1: nothing from before " in done.stderr
    assert done.stdout.splitlines()[0].split() == ["HOST", "WHAT", "NOW", "MEAN", "MAX", "OVER", "TIME"]
    assert any(line.startswith("h1    CPU ") and line[-1] in "▁▂▃▄▅▆▇█" for line in done.stdout.splitlines())

    (row,) = json.loads(told("-o", "json").stdout)
    assert row["history"]["step_s"] == 5
    assert row["history"]["began_at"] == pytest.approx(again["h1"], abs=0.1)
    for point in row["history"]["points"]:
        assert again["h1"] - 5 <= point["at"] <= time.time()
        assert point["samples"] >= 1
        assert point["mean"].keys() == point["max"].keys()
        assert 0 <= point["mean"]["cpu_percent"] <= point["max"]["cpu_percent"] + 0.01 <= 100.01
    assert json.loads(ctl("load", "h1", "-o", "jsonl").stdout)["history"] is None


def test_a_wrong_time_is_refused_with_what_is_allowed(ctl: Ctl) -> None:
    done = ctl("load", "--history", "2h", code=5)
    assert "history: '7200s' given; allowed: a duration like 30s, 500ms, 2m or 5 (seconds), up to 3600 s" in done.stderr
    assert "'soon' is not a duration" in ctl("load", "--history", "soon", code=2).stderr
    assert "no host 'h9'" in ctl("load", "h9", code=3).stderr
