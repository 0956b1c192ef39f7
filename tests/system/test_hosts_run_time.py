"""Hosts and groups that change while a cluster of real processes works, and masters and agents die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from depalma import Client, LocalCluster, Rejected
from tests.system.lives import LIVES, Lives

WaitUntil = Callable[..., Any]
Ctl = Callable[..., subprocess.CompletedProcess[str]]

#: Of the cluster where one is over: so long that there is time to look between suspect and lost.
LEASE_S = 6.0


@pytest.fixture
def cluster(fresh_cluster: Callable[..., LocalCluster], request: pytest.FixtureRequest) -> LocalCluster:
    return fresh_cluster(masters=3, agents=2, slots=2, settings=getattr(request, "param", {}))


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with cluster.client() as made:
        yield made


@pytest.mark.long
def test_a_drain_holds_through_the_death_of_the_leader_and_of_its_agent(
    cluster: LocalCluster, client: Client, ctl: Ctl, value: Callable[..., Any], tmp_path: Path, wait_until: WaitUntil
) -> None:
    lives = Lives(tmp_path)
    job = client.command(["sh", "-c", LIVES], cwd=tmp_path, array=4, grace_s=20.0)
    wait_until(lambda: len(lives.of("began")) == 4)
    there = {task for task, _, host in lives.of("began") if host == "h1"}
    assert len(there) == 2

    ctl("host", "drain", "h1", "--reason", "new kernel")
    former = cluster.leader()
    cluster.kill(former, signal.SIGKILL)
    seen = value("host", "show", "h1")
    assert (seen["state"], seen["running"], seen["deadline_at"]) == ("draining", 2, None)
    assert seen["reason"].startswith("new kernel (by ")
    assert lives.of("warned") == []
    cluster.restart(former)
    seen = value("host", "drain", "h1", "--deadline", "2s", "--reason", "new kernel")
    cluster.kill(cluster.leader(), signal.SIGKILL)

    drained = wait_until(lambda: client.host("h1"), lambda host: host.state == "drained")
    assert (drained.running, drained.reason) == (0, seen["reason"])
    assert drained.since >= seen["deadline_at"]
    assert {task for task, _, host in lives.of("warned") if host == "h1"} == there
    assert lives.first("warned") >= seen["deadline_at"]
    assert {task for task, _, _ in lives.of("warned")} == there, "only what ran on the drained host was told to end"
    # The other host is full: what was moved waits, and runs as soon as there is room.
    client.set_host("h2", slots=4)
    wait_until(lambda: len(lives.of("began")) == 6)
    assert {(task, number) for task, number, host in lives.of("began") if host == "h2"} == {
        *((task, 2) for task in there),
        *((task, 1) for task in range(4) if task not in there),
    }
    cluster.restart("h1")
    assert client.host("h1").state == "drained"

    (tmp_path / "release").touch()
    assert job.wait(60).state == "succeeded"
    assert lives.overlaps() == []
    assert len(lives.of("began")) == 6, "nothing was started again by the new leader, or the new agent"
    moved = next(task for task in job.tasks() if task.index in there)
    assert [(attempt.state, attempt.host) for attempt in moved.attempts] == [("moved", "h1"), ("succeeded", "h2")]
    assert moved.attempts[0].reason == f"host h1 is being drained: {seen['reason']}"
    waiting = client.command(["true"], on_host="h1")
    assert f"h1: drained: {seen['reason']}" in waiting.explain()
    ctl("host", "undrain", "h1")
    assert waiting.wait(60).state == "succeeded"
    kinds = [event.kind for event in client.events() if event.host == "h1" and event.kind.startswith("host.")]
    order = [kind for kind in kinds if kind in ("host.draining", "host.drained", "host.undrained")]
    assert order == ["host.draining", "host.draining", "host.drained", "host.undrained"]


def test_slots_and_groups_change_while_jobs_wait(
    cluster: LocalCluster, client: Client, ctl: Ctl, value: Callable[..., Any], tmp_path: Path, wait_until: WaitUntil
) -> None:
    lives = Lives(tmp_path)
    job = client.command(["sh", "-c", LIVES], cwd=tmp_path, array=6, group="render")
    assert job.explain()[1] == "no host is in group render"
    assert "there is no group render" in ctl("group", "remove", "render", code=3).stderr
    ctl("group", "add", "render", "h2")
    wait_until(lambda: len(lives.of("began")) == 2)
    assert value("group", "ls") == [{"name": "render", "hosts": ["h2"], "slots": 2, "free_slots": 0}]
    refused = ctl("group", "remove", "render", code=5).stderr
    assert refused == f"error: no host would be left in group render, which queued jobs name: {job.id}\n"

    cluster.kill(cluster.leader(), signal.SIGKILL)
    ctl("host", "set", "h2", "--slots", "3", "--label", "disk=ssd", "--priority", "7")
    wait_until(lambda: len(lives.of("began")) == 3)
    assert {host for _, _, host in lives.of("began")} == {"h2"}
    ctl("group", "set", "render", "h1", "h2")
    wait_until(lambda: len(lives.of("began")) == 5)
    cluster.kill("h2", signal.SIGKILL)
    cluster.restart("h2")
    host = value("host", "show", "h2")
    assert (host["slots"], host["labels"], host["priority"], host["groups"]) == (3, {"disk": "ssd"}, 7, ["render"])
    assert ctl("group", "remove", "render", "--force").stderr == "group render: no host\n"

    (tmp_path / "release").touch()
    ctl("group", "add", "render", "h1")
    assert job.wait(60).state == "succeeded"
    assert len(set(lives.of("began"))) == len(lives.of("began")), "an attempt began twice"


@contextmanager
def agent_of(cluster: LocalCluster, name: str, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An agent with a cluster file of its own that names masters and no host."""
    file = cluster.directory / f"{name}.yaml"
    text = (cluster.directory / "cluster.yaml").read_text()
    assert "hosts:\n" in text
    lines = text.splitlines(keepends=True)
    first = lines.index("hosts:\n")
    after = next((n for n in range(first + 1, len(lines)) if lines[n][0] not in " -"), len(lines))
    file.write_text("".join(lines[:first] + lines[after:]))
    argv = [sys.executable, "-m", "depalma.remote", "--config", str(file), "--name", name]
    with (home / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(argv, env={**os.environ, "HOME": str(home)}, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def test_a_host_of_no_cluster_file_joins_works_and_is_removed(
    cluster: LocalCluster, client: Client, ctl: Ctl, value: Callable[..., Any], tmp_path: Path, wait_until: WaitUntil
) -> None:
    lives = Lives(tmp_path)
    with agent_of(cluster, "h9", tmp_path) as early:
        assert early.wait(60) == 3
    assert "'h9' is not in the cluster; add it with: depalmactl host add h9" in (tmp_path / "h9.log").read_text()
    assert value("host", "add", "h9", "--slots", "1", "--group", "night")["state"] == "down"
    assert "there is a host h9 already" in ctl("host", "add", "h9", code=5).stderr
    with agent_of(cluster, "h9", tmp_path) as late:
        job = client.command(["sh", "-c", LIVES], cwd=tmp_path, group="night", grace_s=20.0)
        wait_until(lambda: lives.of("began") == [(0, 1, "h9")])
        assert "host h9 has 1 task;" in ctl("host", "remove", "h9", code=5).stderr
        client.add_to_group("night", ["h2"])
        answer = value("host", "remove", "h9", "--force")
        assert answer == {"name": "h9", "removed": False, "waits_for": 1}
        assert late.wait(60) == 3
    wait_until(lambda: [host.name for host in client.hosts()] == ["h1", "h2"])
    wait_until(lambda: (0, 2, "h2") in lives.of("began"))
    assert ctl("host", "remove", "h9", code=3).stderr == "error: there is no host h9\n"
    (tmp_path / "release").touch()
    assert job.wait(60).state == "succeeded"
    # One of the masters' own file does not come back with the next leader, nor when its agent tries.
    client.remove_host("h1")
    wait_until(lambda: "was removed from the cluster" in cluster.log("h1"))
    cluster.kill(cluster.leader(), signal.SIGKILL)
    assert [host.name for host in client.hosts()] == ["h2"]
    with pytest.raises(Rejected, match="there is no host h1"):
        client.drain_host("h1")


@pytest.mark.parametrize("cluster", [{"lease_s": LEASE_S}], indirect=True, ids=["lease of 6 s"])
def test_a_host_goes_from_up_to_suspect_to_lost_and_comes_back_with_nothing(
    cluster: LocalCluster, client: Client, tmp_path: Path, wait_until: WaitUntil
) -> None:
    lives = Lives(tmp_path)
    job = client.command(["sh", "-c", LIVES], cwd=tmp_path, array=4)
    wait_until(lambda: len(lives.of("began")) == 4)
    cluster.pause("h1")
    suspect = wait_until(lambda: client.host("h1"), lambda host: host.state == "suspect")
    assert (suspect.reason[:10], suspect.running) == ("silent for", 2)
    killed_at = time.time()
    cluster.kill(cluster.leader(), signal.SIGKILL)
    lost = wait_until(lambda: client.host("h1"), lambda host: host.state == "lost")
    assert "longer than lease and margin" in lost.reason
    assert lost.since > suspect.since > 0
    # The next leader does not know whom the one before has answered: it waits for all of the lease and the margin.
    assert lost.since - killed_at >= 1.25 * LEASE_S
    assert lost.running == 0
    cluster.resume("h1")
    back = wait_until(lambda: client.host("h1"), lambda host: host.state == "up")
    assert back.since > lost.since
    assert back.reason == ""
    (tmp_path / "release").touch()
    assert job.wait(60).state == "succeeded"
    kinds = [event.kind for event in client.events() if event.host == "h1" and event.kind.startswith("host.")]
    assert kinds == ["host.added", "host.up", "host.suspect", "host.lost", "host.up"]
    told = "".join(cluster.log(master) for master in ("m1", "m2", "m3"))
    for line in ("host h1 is suspect: silent", "host h1 is lost: silent", "host h1 is up"):
        assert line in told


def test_what_had_finished_before_its_agent_died_is_not_run_again(
    fresh_cluster: Callable[..., LocalCluster], tmp_path: Path, wait_until: WaitUntil
) -> None:
    """No master heard of the end: all were dead. The report waited on the host's disk."""
    cluster = fresh_cluster(masters=1, agents=1, slots=1)
    lives = Lives(tmp_path)
    with cluster.client() as client:
        job = client.command(["sh", "-c", LIVES], cwd=tmp_path)
        wait_until(lambda: lives.of("began"))
        wait_until(lambda: client.job(job.id).state == "running")
        cluster.kill("m1", signal.SIGKILL)
        (tmp_path / "release").touch()
        wait_until(lambda: lives.of("ended"))
        wait_until(lambda: (cluster.directory / "h1" / "reports").stat().st_size)
        cluster.kill("h1", signal.SIGKILL)
        cluster.restart("m1")
        cluster.restart("h1")
        assert job.wait(60).state == "succeeded"
        assert [attempt.number for attempt in job.tasks()[0].attempts] == [1]
    assert lives.of("began") == [(0, 1, "h1")]


def test_another_machine_of_the_same_name_waits_for_the_lease_and_the_first_one_does_not(
    fresh_cluster: Callable[..., LocalCluster], tmp_path: Path, wait_until: WaitUntil
) -> None:
    """Agent and supervisor were killed at once, so nobody could say that nothing of them lives."""
    cluster = fresh_cluster(masters=1, agents=1, slots=1, settings={"lease_s": 300.0})
    lives = Lives(tmp_path)
    with cluster.client() as client:
        job = client.command(["sh", "-c", LIVES], cwd=tmp_path)
        wait_until(lambda: lives.of("began") == [(0, 1, "h1")])
        agent = next(entry for entry in cluster.processes if entry.id == "h1").pid
        (monitor,) = (child for child in psutil.Process(agent).children() if "monitor.py" in " ".join(child.cmdline()))
        monitor.suspend()
        cluster.kill("h1", signal.SIGKILL)
        monitor.kill()

        with agent_of(cluster, "h1", tmp_path):
            refused = "another agent of host 'h1' is not connected any more and may run its tasks for"
            wait_until(lambda: refused in (tmp_path / "h1.log").read_text())
            assert client.job(job.id).state == "running"
        assert len(lives.of("began")) == 1
        cluster.restart("h1")
        wait_until(lambda: lives.of("began") == [(0, 1, "h1"), (0, 2, "h1")])
        (tmp_path / "release").touch()
        assert job.wait(30).state == "succeeded"
