"""A local cluster starts, is found again, and ends to the last process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from depalma import DepalmaError, LocalCluster
from depalma.local import processes

WaitUntil = Callable[..., Any]


def test_it_starts_works_and_leaves_nothing(wait_until: WaitUntil) -> None:
    with LocalCluster(masters=1, agents=1) as cluster:
        directory = cluster.directory
        with cluster.client() as client:
            job = client.command(["sh", "-c", "sleep 600 & sleep 600"])
            wait_until(lambda: client.ps(job.id).processes)
    assert cluster.leftovers == []
    assert not directory.exists()
    assert processes.marked(str(directory), directory) == set()


def test_a_named_folder_is_kept_and_continues_where_it_was(tmp_path: Path) -> None:
    with LocalCluster(masters=1, agents=1, directory=tmp_path) as cluster, cluster.client() as client:
        assert client.submit(pow, 2, 5).result(60) == 32
        with pytest.raises(DepalmaError, match="runs there already"):
            LocalCluster(masters=1, agents=1, directory=tmp_path)
        assert client.submit(pow, 2, 6).result(60) == 64
    assert not (tmp_path / "cluster.json").exists()
    with LocalCluster(masters=1, agents=1, directory=tmp_path) as cluster, cluster.client() as client:
        assert [view.id for view in client.jobs()] == [2, 1]
        assert client.submit(pow, 2, 7).result(60) == 128


def test_a_detached_cluster_is_found_and_stopped_by_another_process(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom depalma import LocalCluster\n"
        "LocalCluster(masters=1, agents=1, directory=sys.argv[1]).detach()\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program, str(tmp_path)], check=True, timeout=60)
    said = json.loads((tmp_path / "cluster.json").read_text())
    assert [entry["role"] for entry in said["processes"]] == ["master", "agent"]
    cluster = LocalCluster.attach(tmp_path)
    with cluster.client() as client:
        assert client.submit(pow, 2, 5).result(60) == 32
    assert cluster.stop() == []
    assert processes.marked(str(tmp_path), tmp_path) == set()


def test_argv_run_again_by_somebody_else_restarts_a_process_and_stop_ends_it_too(
    tmp_path: Path, wait_until: WaitUntil
) -> None:
    with LocalCluster(masters=1, agents=1, directory=tmp_path) as cluster:
        said = json.loads((tmp_path / "cluster.json").read_text())
        master = said["processes"][0]
        os.kill(master["pid"], signal.SIGKILL)
        wait_until(lambda: psutil.Process(master["pid"]).status(), psutil.STATUS_ZOMBIE.__eq__)
        with (tmp_path / "again.log").open("ab") as log:
            again = subprocess.Popen(master["argv"], stdout=log, stderr=log, cwd="/", start_new_session=True)
        with cluster.client() as client:
            assert client.submit(pow, 2, 5).result(60) == 32
        cluster.stop()
        wait_until(lambda: again.poll() is not None)
    assert cluster.leftovers == []


def test_a_daemon_that_cannot_start_is_named_with_the_end_of_its_log() -> None:
    with pytest.raises(DepalmaError, match=r"master m1 ended with exit code 2; (?s:.*)lease_s"):
        LocalCluster(masters=1, agents=0, settings={"lease_s": 0.1})


def test_the_end_of_the_program_stops_it_even_by_control_c(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom depalma import LocalCluster\n"
        "cluster = LocalCluster(masters=1, agents=1, directory=sys.argv[1])\n"
        "print('ready', flush=True)\ntime.sleep(600)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    os.killpg(child.pid, signal.SIGINT)
    assert child.wait(60) != 0
    child.stdout.close()
    assert processes.marked(str(tmp_path), tmp_path) == set()


def test_a_program_that_is_killed_takes_its_cluster_with_it(tmp_path: Path, wait_until: WaitUntil) -> None:
    program = (
        "import tempfile, time\nfrom depalma import LocalCluster\n"
        "cluster = LocalCluster(masters=1, agents=1)\nprint(cluster.directory, flush=True)\ntime.sleep(600)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert child.stdout is not None
    directory = Path(child.stdout.readline().strip())
    assert processes.marked(str(directory), directory)
    child.kill()
    child.wait()
    child.stdout.close()
    wait_until(lambda: processes.marked(str(directory), directory), lambda left: not left)
    wait_until(directory.exists, lambda there: not there)


def test_control_c_while_it_starts_leaves_nothing(tmp_path: Path, wait_until: WaitUntil) -> None:
    program = (
        "import sys, time\nfrom depalma import LocalCluster\n"
        "LocalCluster(masters=3, agents=2, directory=sys.argv[1])\ntime.sleep(600)\n"  # if it should be quicker than we
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_until(lambda: (tmp_path / "cluster.json").exists())
    os.killpg(child.pid, signal.SIGINT)
    assert child.wait(60) != 0
    assert processes.marked(str(tmp_path), tmp_path) == set()


def test_kill_pause_restart_and_unknown_names() -> None:
    with LocalCluster(masters=3, agents=0) as cluster:
        leader = cluster.leader()
        before = {entry.id: entry.pid for entry in cluster.processes}
        cluster.kill(leader)
        assert {entry.id: entry.pid for entry in cluster.processes}[leader] is None
        cluster.restart(leader)
        after = {entry.id: entry.pid for entry in cluster.processes}
        assert after[leader] not in (None, before[leader])
        with pytest.raises(DepalmaError, match="no process 'm9' in this cluster; there are: m1, m2, m3"):
            cluster.kill("m9")
        frozen = cluster.leader()
        cluster.pause(frozen)
        assert "leads" in cluster.log(frozen)


def test_an_agent_that_is_started_again_is_waited_for_when_the_leader_takes_it_for_the_former() -> None:
    """The leader stood still while it died: the host is up all the time, first as a life that is over."""
    with LocalCluster(masters=1, agents=1) as cluster, cluster.client() as client:
        cluster.pause("m1")
        cluster.kill("h1")
        began_s = time.monotonic()
        cluster.restart("h1", wait_s=0)
        cluster.resume("m1")
        cluster.wait_ready()
        last_seen_s = client.host("h1").last_seen_s
        assert last_seen_s is not None
        assert last_seen_s < time.monotonic() - began_s
