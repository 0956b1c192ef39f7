"""Jobs that are suspended and resumed on a cluster of real processes, while its leader and a host die."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from depalma import AsyncClient, Client, LocalCluster

WaitUntil = Callable[..., Any]
Ctl = Callable[..., subprocess.CompletedProcess[str]]

#: Writes down when it began, and each of its many small steps, until it may end.
STEPS = """
say() { echo "$1 $DEPALMA_TASK_INDEX $DEPALMA_ATTEMPT $DEPALMA_HOST" >>lives; }
say began
while ! test -e release; do echo . >>"steps.$DEPALMA_TASK_INDEX"; sleep 0.02; done
say ended
"""


@pytest.fixture
def cluster(fresh_cluster: Callable[..., LocalCluster]) -> LocalCluster:
    return fresh_cluster(masters=3, agents=2, slots=2)


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with cluster.client() as made:
        yield made


def lives(folder: Path, what: str) -> list[tuple[int, int, str]]:
    """Returns task, attempt and host of each line of a kind."""
    file = folder / "lives"
    lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    return [(int(task), int(number), host) for kind, task, number, host in lines if kind == what]


def steps(folder: Path) -> list[int]:
    return [file.stat().st_size for file in sorted(folder.glob("steps.*"))]


def is_still(client: Client, job: int) -> bool:
    seen = client.ps(job)  # from those hosts that answered at once
    still = all(process.state in ("stopped", "disk-sleep") for process in seen.processes)
    return bool(seen.processes) and not seen.missing and still


def test_a_suspended_job_stands_still_whoever_leads_and_wherever_its_tasks_go(
    cluster: LocalCluster, client: Client, ctl: Ctl, value: Callable[..., Any], tmp_path: Path, wait_until: WaitUntil
) -> None:
    job = client.command(["sh", "-c", STEPS], cwd=tmp_path, array=5, name="steps")
    wait_until(lambda: len(lives(tmp_path, "began")) == 4)

    assert value("suspend", str(job.id), "--reason", "the disk is full") == {"changed": [job.id], "unchanged": []}

    wait_until(lambda: is_still(client, job.id))
    taken = steps(tmp_path)
    (row,) = value("jobs")
    assert row["state"] == "suspended"
    assert row["reason"].startswith("suspended by ")
    assert row["reason"].endswith(": the disk is full")
    assert {task["state"] for task in value("show", str(job.id), "--tasks", "suspended")} == {"suspended"}
    assert "the disk is full" in ctl("explain", f"{job.id}.4").stdout
    words = f"{job.id}.0 stands still: its job is suspended"
    shown = wait_until(lambda: ctl("ps", str(job.id)), lambda done: words in done.stderr)
    assert "suspended" in shown.stdout

    former = cluster.leader()
    cluster.kill(former, signal.SIGKILL)
    cluster.kill("h2", signal.SIGKILL)
    wait_until(lambda: client.host("h2").state, "lost".__eq__)
    cluster.restart("h2")
    wait_until(lambda: client.host("h2").state, "up".__eq__)
    other = client.command(["true"], on_host="h2").wait(60)
    assert other.state == "succeeded", "h2 has room, and works for others"
    assert (job.view().state, len(lives(tmp_path, "began"))) == ("suspended", 4)
    assert steps(tmp_path) == taken, "something of it moved"
    assert value("suspend", str(job.id)) == {"changed": [], "unchanged": [job.id]}

    assert ctl("resume", str(job.id)).stdout == f"{job.id}\n"
    wait_until(lambda: len(lives(tmp_path, "began")) == 6)
    wait_until(lambda: all(now > before for now, before in zip(steps(tmp_path), taken, strict=False)))
    (tmp_path / "release").touch()
    assert job.wait(60).state == "succeeded"
    assert len(lives(tmp_path, "began")) == 7
    assert sorted(index for index, _, _ in lives(tmp_path, "ended")) == [0, 1, 2, 3, 4]
    kinds = [event.kind for event in client.events() if event.job == job.id and event.kind.startswith("job.")]
    assert kinds == ["job.submitted", "job.suspended", "job.resumed", "job.finished"]


async def test_a_suspended_job_can_be_cancelled(
    cluster: LocalCluster, client: Client, tmp_path: Path, wait_until: WaitUntil
) -> None:
    async with AsyncClient(cluster.masters, token_file=cluster.token_file) as aio:
        job = await aio.command(["sh", "-c", STEPS], cwd=tmp_path, array=3, grace_s=10.0)
        wait_until(lambda: len(lives(tmp_path, "began")) == 3)
        assert await job.suspend("for the test")
        assert not await job.suspend()
        wait_until(lambda: is_still(client, job.id))

        assert await job.cancel()

        assert (await job.wait(60)).state == "cancelled"
    wait_until(lambda: not client.ps(job.id).processes)
    assert lives(tmp_path, "ended") == []
