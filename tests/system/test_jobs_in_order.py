"""Jobs that wait for others, on real clusters, also when the leader dies meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from depalma import Client, LocalCluster, Rejected

WaitUntil = Callable[..., Any]
Ctl = Callable[..., Any]

GRAPH = """
jobs:
  prepare: {{command: "echo prepare >> {log}"}}
  train:
    command: "[ $DEPALMA_TASK_INDEX != 1 ] && echo train >> {log}"
    array: 0-2
    after: prepare
  check: {{command: "echo check >> {log}", array: 0-2, after_each: train}}
  report: {{command: ["/bin/sh", "-c", "echo report >> {log}"], after: ["train:any", "check:any"]}}
  publish: {{command: "echo publish >> {log}", after: train}}
"""


def test_a_graph_of_a_file(ctl: Ctl, value: Callable[..., Any], tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "graph.yaml").write_text(GRAPH.format(log=log))
    made = value("submit", "-f", "graph.yaml")["jobs"]
    assert [job["name"] for job in made] == ["prepare", "train", "check", "report", "publish"]
    ids = {job["name"]: str(job["id"]) for job in made}
    ctl("wait", ids["report"])
    lines = log.read_text().split()
    assert lines[0] == "prepare"
    assert lines[-1] == "report"
    assert sorted(lines) == ["check", "check", "prepare", "report", "train", "train"]
    assert value("show", f"{ids['check']}.1")["reason"].startswith(
        f"waited for task {ids['train']}.1 to succeed; it fail"
    )
    publish = value("show", ids["publish"])
    assert publish["state"] == "cancelled"
    assert publish["reason"] == f"cancelled: it waited for job {ids['train']} to succeed; it failed"


def test_a_cycle_is_refused_by_name(ctl: Ctl, value: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "graph.yaml").write_text("jobs: {a: {command: x, after: b}, b: {command: x, after: a}}")
    before = value("jobs", "--all")
    assert "a cycle: a after b after a" in ctl("submit", "-f", "graph.yaml", code=5).stderr
    assert value("jobs", "--all") == before


def test_after_on_the_command_line(ctl: Ctl, value: Callable[..., Any]) -> None:
    first = ctl("submit", "-q", "--hold", "--", "false").stdout.strip()
    second = ctl("submit", "-q", "--after", f"{first}:fail", "--after-each", "last:any", "--", "true").stdout.strip()
    assert value("show", second)["state"] == "blocked"
    assert f"waits for job {first} to fail" in ctl("explain", second).stdout
    ctl("release", "-q", first)
    ctl("wait", second)
    assert value("show", second)["state"] == "succeeded"
    assert "is not a job and its end" in ctl("submit", "--after", "x", "--", "true", code=2).stderr
    assert "there is no job 987654" in ctl("submit", "--after", "987654", "--", "true", code=3).stderr


def double(x: int) -> int:
    return 2 * x


double.__module__ = "__main__"


def test_a_graph_in_python(client: Client) -> None:
    graph = client.graph()
    graph.map("double", double, [1, 2, 3], after="first")
    graph.command("first", ["true"])
    last = graph.command("last", ["true"], after=["double", "first:any"])
    handles = graph.submit()
    assert list(handles["double"].results(timeout=30)) == [2, 4, 6]
    assert handles[last].wait(30).state == "succeeded"
    again = client.command(["true"], after=[handles["last"], f"{handles['first'].id}:fail"])
    assert again.wait(30).state == "cancelled"

    cyclic = client.graph()
    cyclic.command("a", ["true"], after="b")
    cyclic.command("b", ["true"], after="a")
    with pytest.raises(Rejected, match="a cycle: a after b after a"):
        cyclic.submit()


@pytest.mark.long
def test_dependencies_outlive_the_leader(
    fresh_cluster: Callable[..., LocalCluster], tmp_path: Path, wait_until: WaitUntil
) -> None:
    """A chain of arrays, task by task; the leader is killed twice on the way. Each task ran once, and in its order."""
    cluster = fresh_cluster(masters=3, agents=2)
    with cluster.client() as client:
        log = tmp_path / "log"
        graph = client.graph()
        names = ["a", "b", "c", "d"]
        for place, name in enumerate(names):
            after = {"after_each": names[place - 1]} if place else {}
            graph.command(
                name, ["/bin/sh", "-c", f"sleep 0.05; echo {name}$DEPALMA_TASK_INDEX >> {log}"], array=15, **after
            )
        graph.command("end", ["/bin/sh", "-c", f"echo end >> {log}"], after="d")
        handles = graph.submit()
        for done in (8, 30):
            wait_until(lambda done=done: len(log.read_text().split()) if log.exists() else 0, lambda n, d=done: n >= d)
            leader = cluster.leader()
            cluster.kill(leader)
            cluster.restart(leader)
        assert handles["end"].wait(60).state == "succeeded"
        lines = log.read_text().split()
        assert len(lines) == len(set(lines)) == 61
        assert lines[-1] == "end"
        for index in range(15):
            order = [lines.index(f"{name}{index}") for name in names]
            assert order == sorted(order), index
