"""Schedules on a real cluster: one job a tick, also when leaders die at the ticks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from depalma import Client, LocalCluster

Ctl = Callable[..., Any]
WaitUntil = Callable[..., Any]


def test_cron_on_the_command_line(ctl: Ctl, value: Callable[..., Any], client: Client) -> None:
    made = value("cron", "add", "nightly", "0 3 * * *", "--zone", "Europe/Berlin", "--array", "0-1", "--", "echo", "x")
    assert (made["name"], made["zone"], made["runs"]) == ("nightly", "Europe/Berlin", 0)
    assert [row["name"] for row in value("cron", "ls")] == ["nightly"]
    assert "0 3 * * *" in ctl("cron", "ls").stdout
    assert "echo x" in ctl("cron", "show", "nightly").stdout
    assert "a schedule nightly already" in ctl("cron", "add", "nightly", "@daily", "--", "x", code=5).stderr
    assert "hour: '25'" in ctl("cron", "add", "other", "0 25 * * *", "--", "x", code=5).stderr
    assert value("cron", "rm", "nightly") == {"name": "nightly"}
    assert value("cron", "ls") == []
    ctl("cron", "show", "nightly", code=3)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_one_job_a_tick_across_fail_overs(
    fresh_cluster: Callable[..., LocalCluster], tmp_path: Path, wait_until: WaitUntil
) -> None:
    """The leader is killed just before a tick, and again: each tick of the log has one job, and each job ran once."""
    cluster = fresh_cluster(masters=3, agents=1)
    with cluster.client() as client:
        client.add_schedule("tick", "* * * * *", ["/bin/sh", "-c", "echo $DEPALMA_JOB_ID >> runs"], cwd=str(tmp_path))
        for ticks in (1, 2):
            schedule = client.schedules()[0]
            wait_until(time.time, lambda now, at=schedule.next_at: now >= at - 0.3, timeout_s=70)
            leader = cluster.leader()
            cluster.kill(leader)
            wait_until(lambda: client.schedules()[0], lambda one, ticks=ticks: one.runs >= ticks)
            cluster.restart(leader)
        schedule = client.schedules()[0]
        client.remove_schedule("tick")
        events = [event for event in client.events() if event.kind == "schedule.ticked"]
        jobs = [event.job for event in events]
        assert len(jobs) == len(set(jobs)) == len({event.detail["tick_at"] for event in events}) == schedule.runs >= 2
        assert all(event.detail["tick_at"] % 60 == 0 for event in events)
        for job in jobs:
            assert client.job(job).wait(60).state == "succeeded"
        assert sorted((tmp_path / "runs").read_text().split(), key=int) == [str(job) for job in jobs]
