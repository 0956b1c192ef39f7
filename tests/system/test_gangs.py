"""A gang on a cluster of real processes: together or not at all, told of each other, ended and run again together."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from depalma import Client, LocalCluster

Ctl = Callable[..., subprocess.CompletedProcess[str]]
WaitUntil = Callable[..., Any]

#: A member says who it is and who the others are, and goes on until it may end.
MEMBER = """
echo "$DEPALMA_ATTEMPT $DEPALMA_GANG_RANK $DEPALMA_GANG_SIZE $DEPALMA_GANG_HOSTS $DEPALMA_HOST" >>members
while ! test -e release; do sleep 0.05; done
"""


@pytest.fixture
def cluster(fresh_cluster: Callable[..., LocalCluster]) -> LocalCluster:
    return fresh_cluster(masters=3, agents=3, slots=2)


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with cluster.client() as made:
        yield made


class Members:
    """What the members have written: attempt, rank, size, hosts in order of rank, own host."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "members"

    def of(self, attempt: int) -> list[tuple[int, int, list[str], str]]:
        """Returns what those of an attempt wrote, by rank."""
        lines = [line.split() for line in self._file.read_text().splitlines()] if self._file.exists() else []
        return sorted(
            (int(rank), int(size), hosts.split(","), own) for n, rank, size, hosts, own in lines if int(n) == attempt
        )


def told(lines: list[tuple[int, int, list[str], str]]) -> list[str]:
    """Returns the hosts that all members were told, which are those where they are."""
    hosts = [own for _, _, _, own in lines]
    assert lines == [(rank, len(hosts), hosts, own) for rank, own in enumerate(hosts)]
    return hosts


def env_of_gang(_item: object = None) -> tuple[str, str, str, int]:
    """Runs as a function."""
    import os

    names = ("DEPALMA_GANG_RANK", "DEPALMA_GANG_SIZE", "DEPALMA_GANG_HOSTS")
    return (*(os.environ.get(name, "") for name in names), os.getpid())  # type: ignore[return-value]


def test_a_gang_loses_a_host_and_runs_again_whole(
    cluster: LocalCluster, client: Client, ctl: Ctl, tmp_path: Path, wait_until: WaitUntil
) -> None:
    """All start at once or none; when a host is lost the rest is ended, and the whole gang runs again elsewhere, also
    under another leader. Who is who is in the environment."""
    members = Members(tmp_path)
    blocker = client.command(["sleep", "1000"], array=3)
    wait_until(lambda: blocker.view().tasks.running, lambda running: running == 3)
    ctl("submit", "--array", "0-3", "--gang", "--cwd", ".", "--", "sh", "-c", MEMBER)
    missing = "a gang of 4 needs 4 slots at once: 3 are free on hosts that fit, room for 3 of its tasks"
    wait_until(lambda: ctl("explain", "2").stdout, lambda text: missing in text)
    small = client.command(["true"])  # is behind the gang, and would never end by a time limit
    assert "jobs with queued tasks before it: 1 (1 of the same user)" in ctl("explain", str(small.id)).stdout
    assert small.view().tasks.queued == 1

    blocker.cancel()
    first = told(wait_until(lambda: members.of(1), lambda seen: len(seen) == 4))
    assert len(set(first)) > 1
    lost = first[-1]
    cluster.kill(cluster.leader())
    cluster.kill(lost)
    second = told(wait_until(lambda: members.of(2), lambda seen: len(seen) == 4))
    assert lost not in second
    assert members.of(3) == []

    why = ctl("explain", "2.0").stdout
    assert "gang member lost: task 2." in why
    assert f" on {lost}: host {lost} was lost" in why
    assert "placed there: gang of 4, all at once: " in why
    (tmp_path / "release").touch()
    job = client.job(2)
    assert job.wait().view().tasks.succeeded == 4
    assert {task.attempt for task in job.tasks()} == {2}

    seen = list(client.map(env_of_gang, [(), ()], gang="all").results())
    assert [(rank, size, len(hosts.split(","))) for rank, size, hosts, _ in seen] == [("0", "2", 2), ("1", "2", 2)]
    assert client.submit(env_of_gang).result()[:3] == ("", "", "")
    refused = ctl("submit", "--array", "0-3", "--gang", "3", "--", "true", code=5).stderr
    assert "gang: 3 given; allowed: a number that divides that of the tasks, 4" in refused
