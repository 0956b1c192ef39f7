"""Where tasks go, on a cluster of real processes: GPUs, counted resources, labels, wishes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from depalma import Client, LocalCluster, Rejected

Ctl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cluster(fresh_cluster: Callable[..., LocalCluster]) -> LocalCluster:
    return fresh_cluster(masters=1, agents=2, slots=4)


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with cluster.client() as made:
        yield made


def logs_of(ctl: Ctl, job: int) -> list[str]:
    """Returns what the first two tasks have written: nothing yet, when they have not begun."""
    return [ctl("logs", f"{job}.{task}", code=None).stdout for task in range(2)]


def test_what_a_task_needs_decides_where_it_runs(client: Client, ctl: Ctl, wait_until: Callable[..., Any]) -> None:
    """Each task of a GPU has one of its own; licences run out; labels are hard and wishes are not."""
    ctl("host", "set", "h1", "--gpus", "2", "--resource", "licence=1", "--label", "disk=ssd", "--label", "ram_gb=128")
    view = client.set_host("h2", labels={"disk": "hdd"}, resources={"tape": 2})
    assert view.resources == {"tape": 2}

    show = ["sh", "-c", "echo $DEPALMA_HOST $CUDA_VISIBLE_DEVICES; while ! test -e release; do sleep 0.05; done"]
    ctl("submit", "--gpus", "1", "--array", "0-2", "--cwd", ".", "--", *show)
    seen = wait_until(lambda: sorted(logs_of(ctl, 1)), lambda lines: "" not in lines)
    assert seen == ["h1 0\n", "h1 1\n"]
    why = ctl("explain", "1.2").stdout
    assert "h1: fits, but 2 of 2 GPUs are taken, a task needs 1" in why
    assert "h2: has 0 GPUs, a task needs 1" in why
    assert "gpus 2/2" in ctl("host", "show", "h1").stdout
    assert sorted(tuple(task.gpus) for task in client.job(1).tasks() if task.attempt) == [(0,), (1,)]

    ctl("submit", "--resource", "licence=1", "--array", "0-1", "--cwd", ".", "--", *show)
    wait_until(lambda: json.loads(ctl("show", "2", "-o", "json").stdout)["tasks"]["running"], lambda count: count == 1)
    assert "fits, but 1 of 1 licence are taken, a task needs 1" in ctl("explain", "2").stdout

    hard = client.command(["true"], labels=["disk in ssd,nvme", "ram_gb>64"])
    hard.wait()
    assert hard.tasks()[0].host == "h1"
    wished = client.command(["true"], prefer=["disk=hdd"])
    wished.wait()
    (task,) = wished.tasks()
    assert (task.host, "as preferred: disk=hdd" in task.reason) == ("h2", True)
    never = client.command(["true"], labels=["disk=tape"], resources={"licence": 1})
    assert "h1: its label is disk=ssd, the job wants disk=tape" in never.explain()
    with pytest.raises(Rejected, match="labels: 'a>b' given; allowed: KEY=VALUE"):
        client.command(["true"], labels=["a>b"])
    refused = ctl("submit", "--resource", "gpus=1", "--", "true", code=5).stderr
    assert "resources: 'gpus' given; allowed: names other than" in refused
    client.cancel(1, 2, never.id)


def test_two_tasks_share_a_gpu_and_a_third_waits(
    client: Client, ctl: Ctl, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    """Both see its number and their part; explain says why the third waits, the host what is taken, and what was used
    is counted by the part."""
    ctl("host", "set", "h1", "--gpus", "1")
    show = "echo $DEPALMA_HOST $CUDA_VISIBLE_DEVICES $DEPALMA_GPU_SHARE; while ! test -e release; do sleep 0.05; done"
    ctl("submit", "--gpus", "0.5", "--array", "0-2", "--cwd", ".", "--", "sh", "-c", show)
    seen = wait_until(lambda: logs_of(ctl, 1), lambda lines: "" not in lines)
    assert seen == ["h1 0 0.5\n"] * 2
    why = ctl("explain", "1.2").stdout
    assert "h1: fits, but no GPU has 0.5 free: all are taken" in why
    assert "h2: has 0 GPUs, a task needs 0.5" in why
    assert "gpus 1/1" in ctl("host", "show", "h1").stdout
    assert "0.5 of GPU 0" in ctl("show", "1.0").stdout
    assert [(task.gpus, task.gpu_share) for task in client.job(1).tasks()][:2] == [((0,), 0.5)] * 2
    refused = ctl("submit", "--gpus", "1.5", "--", "true", code=2).stderr
    assert "'1.5' given; allowed: a whole number up to 100000, or a part of one GPU in hundredths" in refused
    with pytest.raises(Rejected, match=r"gpus: 0\.125 given; allowed: a whole number"):
        client.command(["true"], gpus=0.125)
    (tmp_path / "release").touch()
    client.job(1).wait()
    (row,) = client.accounting()
    assert row.gpu_s == pytest.approx(row.attempt_s / 2, abs=0.01)

    (tmp_path / "release").unlink()
    wait = "echo $DEPALMA_ALTERNATIVE $DEPALMA_CPUS; while ! test -e release; do sleep 0.05; done"
    ctl("submit", "--gpus", "1", "--or", "cpus=4", "--array", "0-2", "--cwd", ".", "--", "sh", "-c", wait)
    seen = wait_until(lambda: logs_of(ctl, 2), lambda lines: "" not in lines)
    assert seen == ["0 1\n", "1 4\n"]
    why = ctl("explain", "2.2").stdout
    assert "h2: has 0 GPUs, a task needs 1; alternative 1: fits, but 4 of 4 slots are taken, a task needs 4" in why
    assert [(task.host, task.alternative) for task in client.job(2).tasks()][:2] == [("h1", 0), ("h2", 1)]
    (tmp_path / "release").touch()
    client.job(2).wait()
    row = next(client.accounting())
    other_s = sum(sum(use.ways_s) for use in row.hosts)
    assert row.slot_s == pytest.approx(row.attempt_s + 3 * other_s, abs=0.01)
    assert row.gpu_s == pytest.approx(row.attempt_s - other_s, abs=0.01)
