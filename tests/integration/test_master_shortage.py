"""Strangers that open connections without end take no master its descriptors."""

from __future__ import annotations

import http.client
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from depalma.local.folder import free_ports

LIMIT = 64


def wait_ready(port: int, process: subprocess.Popen[bytes], timeout_s: float = 60) -> None:
    """Returns when /readyz answers; fails at once if the master ended."""
    deadline = time.monotonic() + timeout_s
    seen: object = None
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the master ended with {process.returncode}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return
        except (OSError, urllib.error.HTTPError) as error:
            seen = error
        time.sleep(0.05)
    raise AssertionError(f"not ready after {timeout_s} s, last: {seen}")


def status_of(connection: http.client.HTTPConnection, path: str, token: str) -> int:
    connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
    with connection.getresponse() as answer:
        answer.read()
        return answer.status


def wait_for_line(path: Path, text: bytes, process: subprocess.Popen[bytes], timeout_s: float = 60) -> None:
    """Returns when the log has `text`; fails at once if the master ended."""
    deadline = time.monotonic() + timeout_s
    while text not in path.read_bytes():
        assert process.poll() is None, path.read_text()
        assert time.monotonic() < deadline, f"no {text!r} in the log:\n{path.read_text()}"
        time.sleep(0.05)


def test_a_crowd_of_strangers_does_not_stop_a_master(tmp_path: Path) -> None:
    """It has descriptors left for its disk, and goes on with the connections that it has."""
    port, raft_port = free_ports(2)
    cluster = tmp_path / "cluster.yaml"
    own = f"{{id: m1, host: 127.0.0.1, port: {port}, raft_port: {raft_port}, dir: {tmp_path}/m1}}"
    cluster.write_text(f"masters: [{own}]\n")
    subprocess.run([sys.executable, "-m", "depalma.ctl", "cluster", "init", "-f", str(cluster)], check=True)
    argv = [sys.executable, "-m", "depalma.master", "--config", str(cluster), "--id", "m1"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(["prlimit", "--nofile=256:4096", *argv], stderr=log)
    try:
        wait_ready(port, process)
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (4096, 4096)  # it takes what it may
        token = (tmp_path / "secrets" / "token").read_text().strip()
        friend = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        assert status_of(friend, "/v1/jobs", token) == 200

        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
        crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(2 * LIMIT)]
        wait_for_line(tmp_path / "log", b"crowded", process)
        assert status_of(friend, "/v1/snapshot", token) == 200
        friend.close()
        for one in crowd:
            one.close()
        wait_ready(port, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert process.returncode == 0
