"""Whose turn it is, on a cluster of real processes whose leader is killed in between."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from depalma import LocalCluster

Ctl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cluster(fresh_cluster: Callable[..., LocalCluster]) -> LocalCluster:
    return fresh_cluster(masters=3, agents=2, slots=2)


@pytest.mark.long
def test_limits_hold_over_a_fail_over(cluster: LocalCluster, ctl: Ctl, wait_until: Callable[..., Any]) -> None:
    """What runs is counted by the next leader, too; what is over the limit waits and says so."""
    ctl("order", "limit", "tag", "db", "1")
    ctl("order", "limit", "user", "*", "3")
    ctl("order", "share", "ann", "2")
    ctl("order", "quota", "user", "eve", "slots=2", "memory=1G")
    ctl("order", "set", "--half-life", "6h", "--age", "2h")
    hold = ["sh", "-c", "while ! test -e release; do sleep 0.05; done"]

    def tasks(job: int) -> dict[str, int]:
        found: dict[str, int] = json.loads(ctl("show", str(job), "-o", "json").stdout)["tasks"]
        return found

    ctl("submit", "--user", "ann", "--tag", "db", "--array", "0-1", "--cwd", ".", "--", *hold)
    ctl("submit", "--user", "bob", "--limit", "db=5", "--cwd", ".", "--", *hold)
    ctl("submit", "--user", "ann", "--array", "0-9", "--cwd", ".", "--", *hold)
    wait_until(lambda: tasks(1)["running"] + tasks(3)["running"], lambda running: running == 3)

    cluster.kill(cluster.leader())
    assert (tasks(1)["running"], tasks(2)["running"], tasks(3)["running"]) == (1, 0, 2)
    # The hosts have to find the next leader.
    wait_until(lambda: ctl("explain", "2").stdout, lambda text: "limit of tag db: 1 at once, 1 are on hosts" in text)
    assert "limit of each user (*): 3 at once, 3 are on hosts" in ctl("explain", "3").stdout
    users = {row["user"]: row for row in json.loads(ctl("order", "users", "-o", "json").stdout)}
    assert (users["ann"]["weight"], users["ann"]["tasks"], users["bob"]["waiting"]) == (2.0, 3, 1)
    (quota,) = json.loads(ctl("order", "quotas", "-o", "json").stdout)
    assert (quota["name"], quota["most"], quota["used"]) == ("eve", {"memory_bytes": 1 << 30, "slots": 2}, {})
    wide = ctl("submit", "--dry-run", "--user", "eve", "--cpus", "2", "--memory", "2G", "--", "true").stdout
    assert (
        "quota of user eve: at most 1073741824 bytes of memory at once, 0 are in use, a task needs 2147483648" in wide
    )
    ctl("order", "quota", "user", "eve", "none")
    assert "usage halves every 21600 s" in ctl("order", "show").stdout

    dry = wait_until(
        lambda: json.loads(ctl("submit", "--dry-run", "--user", "eve", "-o", "json", "--", "true").stdout),
        lambda seen: not seen["waiting"],  # one slot is free, once its host has found the next leader
    )
    assert (dry["tasks"], sum(dry["starting"].values()), dry["waiting"]) == (1, 1, 0)
    assert "At once" in ctl("submit", "--dry-run", "--user", "eve", "--", "true").stdout
    blocked = ctl("submit", "--dry-run", "--user", "ann", "--", "true").stdout
    assert "nobody can say when" in blocked
    assert "limit of each user" in blocked
    assert len(json.loads(ctl("jobs", "-o", "json").stdout)) == 3
    ctl("order", "limit", "user", "*", "none")
    wait_until(lambda: tasks(3)["running"], lambda running: running == 3)
    assert [row["name"] for row in json.loads(ctl("order", "limits", "-o", "json").stdout)] == ["db"]
    assert "not a number, or none" in ctl("order", "limit", "tag", "db", "few", code=2).stderr
    ctl("cancel", "1-3")


@pytest.mark.long
def test_a_job_that_preempts_is_made_room_for(
    cluster: LocalCluster, ctl: Ctl, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    """Tasks of lower priority are warned, end, and run again when it is over; without being asked nobody has to."""
    work = [
        "sh", "-c",
        f"trap 'echo warned; while ! test -e {tmp_path}/go; do sleep 0.05; done; exit 1' TERM; echo began;"
        " while ! test -e release; do sleep 0.05; done",
    ]  # fmt: skip

    def tasks(job: int) -> dict[str, int]:
        found: dict[str, int] = json.loads(ctl("show", str(job), "-o", "json").stdout)["tasks"]
        return found

    ctl("submit", "--array", "0-3", "--grace", "60", "--cwd", ".", "--", *work)
    wait_until(
        lambda: [ctl("logs", f"1.{task}", code=None).stdout for task in range(4)], lambda seen: seen == ["began\n"] * 4
    )
    ctl("submit", "--priority", "5", "--", "true")
    why = ctl("explain", "2").stdout
    assert "fits, but 2 of 2 slots are taken" in why
    assert "nobody can say when it starts: no task of job 1 has ended yet, and there is no time limit" in why
    ctl("cancel", "2")

    ctl("submit", "--priority", "5", "--preempt", "--", "true")
    making = "room is made for it; told to end: task 1."
    why = wait_until(lambda: ctl("explain", "3").stdout, lambda text: making in text)
    victim = why.partition(making)[2].split()[0]
    assert "told to end within 60 s: preempted by job 3 of priority 5" in ctl("explain", f"1.{victim}").stdout
    (tmp_path / "go").touch()
    ctl("wait", "3")
    wait_until(lambda: tasks(1)["running"], lambda running: running == 4)
    with cluster.client() as client:
        ((first, *_),) = [task.attempts for task in client.job(1).tasks() if len(task.attempts) > 1]
    assert (first.state, first.reason) == ("moved", "preempted by job 3 of priority 5")
    ctl("cancel", "1")
