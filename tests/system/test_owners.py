"""Owners of machines come and go while a cluster of real processes works, and leaders die."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from depalma import Client, LocalCluster
from tests.system.lives import LIVES, Lives

WaitUntil = Callable[..., Any]
Ctl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cluster(fresh_cluster: Callable[..., LocalCluster]) -> LocalCluster:
    return fresh_cluster(masters=3, agents=2, slots=2)


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with cluster.client() as made:
        yield made


def switch(ctl: Ctl, cluster: LocalCluster, verb: str, *options: str) -> dict[str, Any]:
    """Uses the switch of the machine of h1, without any master."""
    nowhere = {"DEPALMA_MASTERS": "http://127.0.0.1:9", "DEPALMA_TOKEN_FILE": "/nowhere"}
    folder = str(cluster.directory / "h1")
    done = ctl("-o", "json", "host", verb, "h1", "--dir", folder, *options, env=nowhere)
    (row,) = json.loads(done.stdout)
    return dict(row)


def test_what_makes_way_for_an_owner_runs_elsewhere_exactly_once_whoever_leads(
    cluster: LocalCluster, client: Client, ctl: Ctl, value: Callable[..., Any], tmp_path: Path, wait_until: WaitUntil
) -> None:
    job = client.command(["sh", "-c", LIVES], cwd=tmp_path, array=4, grace_s=20.0)
    kept = client.command(["sh", "-c", LIVES], cwd=tmp_path, on_host="h1", restartable=False, array="9-9")
    wait_until(lambda: len(Lives(tmp_path).of("began")) == 4)
    there = {task for task, _, host in Lives(tmp_path).of("began") if host == "h1"}
    assert len(there) == 2
    ctl("host", "set", "h1", "--slots", "3")
    wait_until(lambda: (9, 1, "h1") in Lives(tmp_path).of("began"))
    wait_until(lambda: client.job(kept.id).state == "running")
    ctl("host", "set", "h1", "--owner", "suspend_s=0", "--owner", "warn_s=1h", "--owner", "requeue_s=61m")

    assert switch(ctl, cluster, "pause")["runs"] is True
    wait_until(lambda: client.host("h1").owner_step, "suspended".__eq__)
    seen = value("host", "show", "h1")
    assert seen["state"] == "owner"
    assert seen["reason"].startswith("paused")
    assert {task["state"] for task in (value("show", f"{job.id}.{index}") for index in there)} == {"suspended"}
    former = cluster.leader()
    cluster.kill(former, signal.SIGKILL)
    after = value("host", "show", "h1")
    assert [after[name] for name in ("state", "reason", "since", "owner_step", "owner_policy", "running")] == [
        seen[name] for name in ("state", "reason", "since", "owner_step", "owner_policy", "running")
    ]
    waiting = client.command(["true"], on_host="h1")
    assert f"h1: owner: {seen['reason']}" in waiting.explain()
    assert Lives(tmp_path).of("warned") == []

    ctl("host", "set", "h2", "--slots", "4")
    client.set_owner("h1", warn_s=0.0, requeue_s=30.0)
    wait_until(lambda: len(Lives(tmp_path).of("began")) == 7)
    assert {task for task, _, _ in Lives(tmp_path).of("warned")} == there
    assert {(task, number) for task, number, host in Lives(tmp_path).of("began") if host == "h2"} == {
        *((task, 2) for task in there),
        *((task, 1) for task in range(4) if task not in there),
    }
    assert client.job(kept.id).state == "running"
    assert value("show", f"{kept.id}.9")["state"] == "suspended"
    (tmp_path / "release").touch()
    assert job.wait(60).state == "succeeded"
    assert client.job(kept.id).state == "running", "what may not run elsewhere waits for the owner to go"

    cluster.restart(former)
    switch(ctl, cluster, "unpause")
    assert kept.wait(60).state == "succeeded"
    assert waiting.wait(60).state == "succeeded"
    wait_until(lambda: client.host("h1").state, "up".__eq__)
    assert len(Lives(tmp_path).of("began")) == 7, "an attempt began twice, or one too many"
    moved = next(task for task in job.tasks() if task.index in there)
    assert [(attempt.state, attempt.host) for attempt in moved.attempts] == [("moved", "h1"), ("succeeded", "h2")]
    assert moved.attempts[0].reason.startswith("its owner uses the machine: paused")
    kinds = [event.kind for event in client.events() if event.host == "h1" and event.kind.startswith("host.")]
    assert kinds[-1] == "host.owner_left"
    assert kinds.count("host.owner_returned") == 1


def test_a_pause_holds_for_an_agent_that_does_not_run(
    cluster: LocalCluster, client: Client, ctl: Ctl, tmp_path: Path, wait_until: WaitUntil
) -> None:
    cluster.kill("h1", signal.SIGKILL)
    wait_until(lambda: client.host("h1").state, "lost".__eq__)
    wait_until(lambda: switch(ctl, cluster, "pause", "--for", "1h")["runs"], False.__eq__)
    cluster.restart("h1")
    wait_until(lambda: client.host("h1").state, "owner".__eq__)
    job = client.command(["true"], on_host="h1")
    assert [line for line in job.explain() if line.startswith("h1: owner: paused")]
    switch(ctl, cluster, "unpause")
    assert job.wait(60).state == "succeeded"
    assert "there are: h1" in ctl("host", "pause", "h7", "--dir", str(cluster.directory / "h1"), code=3).stderr


def test_the_cluster_file_says_what_owners_allow_until_somebody_else_does(
    fresh_cluster: Callable[..., LocalCluster], ctl: Ctl, wait_until: WaitUntil
) -> None:
    cluster = fresh_cluster(masters=1, agents=1)
    file = cluster.directory / "cluster.yaml"
    described = yaml.safe_load(file.read_text())
    described["hosts"][0]["owner"] = {"hours": "mon-sun", "suspend_s": 7}
    cluster.kill("m1", signal.SIGKILL)
    file.write_text(yaml.safe_dump(described))
    cluster.restart("m1")
    with cluster.client() as client:
        policy = wait_until(lambda: client.host("h1").owner_policy, lambda found: found.hours == "mon-sun")
        assert (policy.suspend_s, policy.warn_s) == (7.0, 300.0)
        client.set_owner("h1", suspend_s=None)
        cluster.kill("m1", signal.SIGKILL)
        cluster.restart("m1")
        policy = wait_until(lambda: client.host("h1").owner_policy)
        assert (policy.hours, policy.suspend_s) == ("mon-sun", None)
