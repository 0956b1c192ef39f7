"""What the tasks of command jobs read: a file of the submitter's, on whatever host they run."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from depalma import Client, LocalCluster

WaitUntil = Callable[..., Any]
Ctl = Callable[..., subprocess.CompletedProcess[str]]

#: Says what it read, and waits on its first host until that is killed.
READS = 'echo $(wc -c) >>"read.$DEPALMA_HOST"; [ $DEPALMA_ATTEMPT -gt 1 ] || sleep 60'


@pytest.fixture
def cluster(fresh_cluster: Callable[..., LocalCluster]) -> LocalCluster:
    return fresh_cluster(masters=1, agents=2, slots=2)


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with cluster.client() as made:
        yield made


def test_each_task_reads_the_file_wherever_it_runs(
    cluster: LocalCluster, client: Client, ctl: Ctl, tmp_path: Path, wait_until: WaitUntil
) -> None:
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(b"0123456789\n" * 60_000)
    small.write_text("few words\n")
    moved = client.command(["sh", "-c", READS], stdin=large, cwd=tmp_path)
    read = wait_until(lambda: [file for file in tmp_path.glob("read.*") if file.read_text().endswith("\n")])
    cluster.kill(read[0].suffix[1:], signal.SIGKILL)
    assert moved.wait(60).state == "succeeded"
    assert {file.name: file.read_text() for file in tmp_path.glob("read.*")} == {
        "read.h1": "660000\n",
        "read.h2": "660000\n",
    }

    assert ctl("run", "--stdin", "small", "--", "tr", "a-z", "A-Z").stdout == "FEW WORDS\n"
    assert ctl("run", "--stdin", "-", "--cpu-time", "60", "--", "wc", "-l", stdin="1\n2\n3\n").stdout == "3\n"
    assert ctl("run", "--", "wc", "-c").stdout == "0\n", "without it there is nothing to read"
    job = ctl("map", "-q", "--stdin", "large", "--wait", "echo {} $(wc -l)", ":::", "a", "b").stdout.strip()
    assert [ctl("logs", f"{job}.{index}").stdout for index in (0, 1)] == ["a 60000\n", "b 60000\n"]

    graph = client.graph()
    graph.command("first", ["cat"], stdin=small)
    graph.command("then", ["wc", "-c"], stdin=b"12345", after="first")
    jobs = graph.submit()
    assert [jobs[name].wait(60).state for name in ("first", "then")] == ["succeeded", "succeeded"]
    assert [jobs[name].logs() for name in ("first", "then")] == ["few words\n", "5\n"]
    (tmp_path / "graph.yaml").write_text("jobs: {count: {command: [wc, -w], stdin: small, inputs: [small]}}\n")
    counted = ctl("submit", "-q", "--wait", "-f", "graph.yaml").stdout.split()[0]
    assert ctl("logs", counted).stdout == "2\n"
    (tmp_path / "graph.yaml").write_text("jobs: {count: {command: [wc], stdin: nowhere}}\n")
    assert "count: stdin: nowhere: No such file" in ctl("submit", "-f", "graph.yaml", code=2).stderr
