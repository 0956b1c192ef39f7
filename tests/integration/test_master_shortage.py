"""A master that has no file descriptor left goes on with the connections that it has."""

from __future__ import annotations

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


def wait_ready(port: int, process: subprocess.Popen[bytes], timeout_s: float = 20) -> None:
    """Returns when /readyz answers; fails at once if the master ended."""
    deadline = time.monotonic() + timeout_s
    seen: object = None
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the master ended with {process.returncode}"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
                return
        except (OSError, urllib.error.HTTPError) as error:
            seen = error
        time.sleep(0.05)
    raise AssertionError(f"not ready after {timeout_s} s, last: {seen}")


def wait_for_line(path: Path, text: bytes, process: subprocess.Popen[bytes], timeout_s: float = 10) -> None:
    """Returns when the log has `text`; fails at once if the master ended."""
    deadline = time.monotonic() + timeout_s
    while text not in path.read_bytes():
        assert process.poll() is None, path.read_text()
        assert time.monotonic() < deadline, f"no {text!r} in the log:\n{path.read_text()}"
        time.sleep(0.05)


def test_a_full_table_of_descriptors_does_not_stop_a_master(tmp_path: Path) -> None:
    port, raft_port = free_ports(2)
    cluster = tmp_path / "cluster.yaml"
    own = f"{{id: m1, host: 127.0.0.1, port: {port}, raft_port: {raft_port}, dir: {tmp_path}/m1}}"
    cluster.write_text(f"masters: [{own}]\n")
    subprocess.run([sys.executable, "-m", "depalma.ctl", "cluster", "init", "-f", str(cluster)], check=True)
    argv = [sys.executable, "-m", "depalma.master", "--config", str(cluster), "--id", "m1"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(argv, stderr=log)
    try:
        wait_ready(port, process)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(2 * LIMIT)]
        wait_for_line(tmp_path / "log", b"new connections wait", process)
        for one in idle:
            one.close()
        wait_ready(port, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)
    assert process.returncode == 0
