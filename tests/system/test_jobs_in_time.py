"""What happens at a time, on a real cluster: back-offs and start deadlines, also when the leader dies before."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from depalma import LocalCluster

Ctl = Callable[..., Any]
WaitUntil = Callable[..., Any]


def test_a_back_off_outlives_the_leader(
    fresh_cluster: Callable[..., LocalCluster], tmp_path: Path, wait_until: WaitUntil
) -> None:
    """The task fails twice; each next attempt comes after its pause, once, whoever leads then."""
    cluster = fresh_cluster(masters=3, agents=1)
    with cluster.client() as client:
        job = client.command(
            ["/bin/sh", "-c", "date +%s.%N >> times; [ $(wc -l < times) = 3 ]"], cwd=tmp_path, retries=5, backoff_s=1.5
        )
        view = wait_until(job.view, lambda view: view.state == "blocked")
        assert "1 failed tasks are tried again, the first at" in view.reason
        leader = cluster.leader()
        cluster.kill(leader)
        assert job.wait(60).state == "succeeded"
        times = [float(line) for line in (tmp_path / "times").read_text().split()]
        assert len(times) == 3
        # The pause begins when the end of the attempt is recorded, so it is never shorter for the task.
        assert times[1] - times[0] >= 1.5
        assert times[2] - times[1] >= 3.0
        cluster.restart(leader)


def test_a_start_deadline_on_the_command_line(ctl: Ctl, value: Callable[..., Any]) -> None:
    job = ctl("submit", "-q", "--hold", "--start-within", "1", "--", "true").stdout.strip()
    ctl("wait", job, code=None)
    view = value("show", job)
    assert (view["state"], view["reason"]) == ("cancelled", "cancelled: it had not started 1 s after its submission")


def test_exit_codes_that_are_worth_a_retry(ctl: Ctl, value: Callable[..., Any]) -> None:
    options = ("--retries", "3", "--backoff", "0.1", "--retry-exit-code", "75")
    first = ctl("submit", "-q", *options, "--", "sh", "-c", "exit 75").stdout.strip()
    second = ctl("submit", "-q", *options, "--", "sh", "-c", "exit 9").stdout.strip()
    ctl("wait", first, second, code=None)
    assert [value("show", f"{job}.0")["attempt"] for job in (first, second)] == [4, 1]


def test_a_job_starts_at_its_time(ctl: Ctl, value: Callable[..., Any]) -> None:
    began_at = time.time()
    job = ctl("submit", "-q", "--at", "+1", "--", "true").stdout.strip()
    ctl("wait", job)
    assert value("show", job)["started_at"] - began_at >= 1.0
    assert "is not a time" in ctl("submit", "--at", "tomorrow", "--", "true", code=2).stderr
