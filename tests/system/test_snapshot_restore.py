"""A saved snapshot becomes a new cluster of another size, with its jobs."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from depalma import LocalCluster
from depalma.local.folder import free_ports


def ctl(*words: str) -> str:
    """Returns what depalmactl printed; fails with what it said when it did not end well."""
    done = subprocess.run(
        [sys.executable, "-m", "depalma.ctl", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def listens(port: int) -> bool:
    with socket.socket() as made:
        return made.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.timeout(180)
def test_jobs_live_on_in_a_cluster_that_is_restored_from_a_snapshot(
    tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    saved = tmp_path / "saved.snap"
    with LocalCluster(masters=3, agents=1, directory=tmp_path / "old") as cluster, cluster.client() as client:
        done = client.command(["true"], name="done").wait(60)
        assert done.exit_code == 0
        target = ["--masters", ",".join(cluster.masters), "--token-file", str(cluster.token_file)]
        ctl(*target, "submit", "--hold", "--name", "waiting", "--", "true")
        ctl(*target, "snapshot", "save", str(saved))
    assert "Jobs        2: 1 held, 1 succeeded" in ctl("snapshot", "inspect", str(saved))

    port, raft_port = free_ports(2)
    config = tmp_path / "new.yaml"
    one = f"{{id: a, host: 127.0.0.1, port: {port}, raft_port: {raft_port}, dir: {tmp_path}/a}}"
    config.write_text(f"cluster: new\nmasters: [{one}]\n")
    ctl("cluster", "init", "-f", str(config))
    ctl("snapshot", "restore", str(saved), "-f", str(config))
    with (tmp_path / "log").open("wb") as log:
        master = subprocess.Popen(
            [sys.executable, "-m", "depalma.master", "--config", str(config), "--id", "a"], stderr=log
        )
    try:
        token = str(tmp_path / "secrets" / "token")
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: listens(port), timeout_s=60)  # depalmactl soon gives up where nobody listens
        jobs = ctl("--masters", url, "--token-file", token, "--timeout", "60", "jobs", "--all", "-o", "jsonl")
    finally:
        master.terminate()
        master.wait(60)
    names = {line.split('"name":"')[1].split('"')[0] for line in jobs.splitlines()}
    assert names == {"done", "waiting"}
    assert master.returncode == 0


def test_a_damaged_snapshot_is_refused_by_name(tmp_path: Path) -> None:
    bad = tmp_path / "bad.snap"
    bad.write_bytes(b"no snapshot at all" * 10)
    done = subprocess.run(
        [sys.executable, "-m", "depalma.ctl", "snapshot", "inspect", str(bad)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert str(bad) in done.stderr
