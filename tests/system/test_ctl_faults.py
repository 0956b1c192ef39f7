"""depalmactl while leaders die: what is followed goes on by itself, no line lost or doubled."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from depalma import LocalCluster
from tests.system.calm import STEADY

WaitUntil = Callable[..., Any]
COMMAND = [sys.executable, "-m", "depalma.ctl"]


@pytest.fixture
def cluster(fresh_cluster: Callable[..., LocalCluster], request: pytest.FixtureRequest) -> LocalCluster:
    return fresh_cluster(masters=3, agents=1, slots=2, settings=getattr(request, "param", {}))


@contextmanager
def started(environment: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A call that goes on; killed at the end of the block if it still does."""
    with subprocess.Popen(
        [*COMMAND, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def call(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [*COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def read_lines(process: subprocess.Popen[str], until: Callable[[str], object]) -> list[str]:
    """Returns the lines up to the first that `until` accepts."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if until(line):
            return lines
    raise AssertionError(f"ended with {process.wait()}: {lines[-5:]}, {process.stderr and process.stderr.read()}")


def read_errors(process: subprocess.Popen[str], until: Callable[[str], object]) -> list[str]:
    """Returns the lines of stderr up to the first that `until` accepts."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if until(line):
            return lines
    raise AssertionError(f"ended with {process.wait()}: {lines[-5:]}")


COUNT = "i=0; while test $i -lt 150; do echo line $i; i=$((i+1)); sleep 0.04; done"


def test_run_goes_on_when_the_leader_dies(cluster: LocalCluster, environment: dict[str, str]) -> None:
    with started(environment, "run", "-q", "--", "sh", "-c", f"{COUNT}; exit 3") as running:
        read_lines(running, lambda line: "line 20" in line)
        cluster.kill(cluster.leader())
        rest = read_lines(running, lambda line: "line 149" in line)
        assert rest == [f"line {number}" for number in range(21, 150)]
        assert running.wait(60) == 3


def test_what_waits_bears_a_time_without_any_master(fresh_cluster: Callable[..., LocalCluster], tmp_path: Path) -> None:
    """A cluster of one master that is started anew takes nobody along who waits or follows; others hear it soon."""
    cluster = fresh_cluster(masters=1, agents=1)
    environment = {**os.environ, "DEPALMA_MASTERS": cluster.masters[0], "DEPALMA_TOKEN_FILE": cluster.token_file}
    job = ["sh", "-c", f"echo began; while ! test -e {tmp_path}/go; do sleep 0.05; done; exit 3"]
    with started(environment, "run", "--", *job) as running:
        read_lines(running, lambda line: "began" in line)
        with (
            started(environment, "submit", "--wait", "--", "sh", "-c", job[2]) as waiting,
            started(environment, "events", "-f", "-n", "1") as following,
        ):
            read_lines(waiting, lambda line: line.strip().isdigit())  # each was answered once
            read_lines(following, bool)
            cluster.kill("m1")
            for each in (running, waiting, following):
                read_errors(each, lambda line: "no master answers; asking for up to 300 s" in line)
            refused = subprocess.run([*COMMAND, "jobs"], env=environment, capture_output=True, text=True, check=False)
            assert refused.returncode == 4
            cluster.restart("m1")
            (tmp_path / "go").touch()
            read_errors(waiting, lambda line: "a master answers again" in line)
            assert (running.wait(60), waiting.wait(60)) == (3, 3)
            read_lines(following, lambda line: "job.finished" in line)


def test_logs_follow_through_a_frozen_leader(cluster: LocalCluster, environment: dict[str, str]) -> None:
    job = call(environment, "submit", "-q", "--", "sh", "-c", COUNT).strip()
    with started(environment, "logs", "-f", job) as following:
        read_lines(following, lambda line: "line 20" in line)
        frozen = cluster.leader()
        cluster.pause(frozen)
        rest = read_lines(following, lambda line: "line 149" in line)
        cluster.resume(frozen)
        assert rest == [f"line {number}" for number in range(21, 150)]
        assert following.wait(60) == 0


def test_wait_and_submit_survive_the_leader(cluster: LocalCluster, environment: dict[str, str]) -> None:
    job = call(environment, "submit", "-q", "--", "sh", "-c", f"{COUNT}; exit 4").strip()
    with started(environment, "wait", job) as waiting:
        cluster.kill(cluster.leader())
        other = call(environment, "submit", "-q", "--", "true").strip()
        assert int(other) == int(job) + 1
        assert waiting.wait(60) == 4


def test_events_follow_without_gap_or_double(cluster: LocalCluster, environment: dict[str, str]) -> None:
    with started(environment, "events", "-f", "--after", "0", "-o", "jsonl") as following:
        first = call(environment, "submit", "-q", "--", "true").strip()
        begin = read_lines(following, lambda line: done(line, first))
        cluster.kill(cluster.leader())
        second = call(environment, "submit", "-q", "--", "true").strip()
        rest = read_lines(following, lambda line: done(line, second))
    indices = [json.loads(line)["index"] for line in [*begin, *rest]]
    assert indices == list(range(1, len(indices) + 1))


def done(line: str, job: str) -> bool:
    event = json.loads(line)
    return event["kind"] == "job.finished" and event["job"] == int(job)


def test_jobs_watch_prints_each_change_once(cluster: LocalCluster, environment: dict[str, str]) -> None:
    with started(environment, "jobs", "-w", "-o", "jsonl") as watching:
        first = call(environment, "submit", "-q", "--", "true").strip()
        lines = read_lines(watching, lambda line: over(line, first))
        cluster.kill(cluster.leader())
        second = call(environment, "submit", "-q", "--", "true").strip()
        lines += read_lines(watching, lambda line: over(line, second))
    seen = [(row["id"], row["state"]) for row in map(json.loads, lines)]
    assert len(seen) == len(set(seen))


def over(line: str, job: str) -> bool:
    row = json.loads(line)
    return row["id"] == int(job) and row["state"] == "succeeded"


# ---------------------------------------------------------------- no leader


def test_without_a_majority_it_says_so_in_time(cluster: LocalCluster, environment: dict[str, str]) -> None:
    for master in ("m1", "m2"):
        cluster.kill(master)
    begin = time.monotonic()
    done = subprocess.run(
        [*COMMAND, "--timeout", "6", "submit", "--", "true"],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.count("\n") == 1
    for url in cluster.masters:
        assert url in done.stderr
    assert time.monotonic() - begin < 20
    stale = subprocess.run(
        [*COMMAND, "master", "ls"], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert stale.stdout.count("unreachable") == 2
    doctor = subprocess.run(
        [*COMMAND, "--timeout", "1", "doctor"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert doctor.returncode == 1


# ---------------------------------------------------------------- top


class Screen:
    """A terminal of 80 by 24 with a program in it."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        self.text = ""
        self._terminal, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            env={**environment, "TERM": "xterm-256color"},
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
        )
        os.close(inside)

    def read_until(self, pattern: str, timeout_s: float = 60.0) -> None:
        """Returns once something drawn from now on matches; fails with what was drawn last."""
        deadline = time.monotonic() + timeout_s
        drawn = ""
        while not re.search(pattern, drawn):
            assert time.monotonic() < deadline, f"no {pattern!r} in {drawn[-3000:]!r}"
            if select.select([self._terminal], [], [], 0.1)[0]:
                drawn += os.read(self._terminal, 65536).decode("utf-8", "replace")
        self.text = drawn

    def press(self, key: str) -> None:
        os.write(self._terminal, key.encode())

    def close(self) -> int:
        """Returns the exit code."""
        try:
            deadline = time.monotonic() + 60
            while self.process.poll() is None and time.monotonic() < deadline:
                if select.select([self._terminal], [], [], 0.05)[0]:
                    try:
                        self.text += os.read(self._terminal, 65536).decode("utf-8", "replace")
                    except OSError:  # the program closed its side
                        break
            return self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self._terminal)


@pytest.mark.parametrize("cluster", [STEADY], indirect=True, ids=["without a leader for long enough to be seen"])
def test_top_shows_the_cluster_outlives_its_leader_and_ends_with_q(
    cluster: LocalCluster, environment: dict[str, str]
) -> None:
    screen = Screen(environment, "top")
    screen.read_until(r"leader m\d")
    cluster.pause(leader := cluster.leader())
    screen.read_until(r"no leader since \d+\.\d s")
    screen.read_until(r"depalma local  leader m\d")
    cluster.resume(leader)
    screen.press("?")
    screen.read_until("this help")
    screen.press("q")
    assert screen.close() == 0
    assert "\x1b[?1049l" in screen.text  # the terminal is as it was


# ---------------------------------------------------------------- dev


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment whose configuration and state are the test's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DEPALMA_") or "TEST" in name}
    return {**kept, "XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_STATE_HOME": str(tmp_path / "state")}


def still_there(told: dict[str, Any]) -> list[int]:
    """Returns those of the cluster's processes that exist, even if only until they are reaped."""
    return [entry["pid"] for entry in told["processes"] if Path(f"/proc/{entry['pid']}").exists()]


def test_dev_detached_is_current_runs_work_and_stops(home: dict[str, str], wait_until: WaitUntil) -> None:
    call(home, "context", "add", "before", "http://127.0.0.1:9")
    told = json.loads(call(home, "dev", "--masters", "1", "--agents", "1", "--slots", "1", "--detach", "-o", "json"))
    try:
        assert json.loads((Path(told["dir"]) / "cluster.json").read_text())["masters"] == told["masters"]
        assert [row["name"] for row in json.loads(call(home, "context", "ls", "-o", "json")) if row["current"]] == [
            "dev"
        ]
        assert call(home, "run", "--", "echo", "hello") == "hello\n"
        again = subprocess.run(
            [*COMMAND, "dev", "--detach"], env=home, capture_output=True, text=True, timeout=60, check=False
        )
        assert again.returncode == 1
        assert "runs there already" in again.stderr
    finally:
        call(home, "dev", "--stop")
    wait_until(lambda: still_there(told), lambda left: not left)
    assert [(row["name"], row["current"]) for row in json.loads(call(home, "context", "ls", "-o", "json"))] == [
        ("before", True)
    ]


def test_dev_keeps_its_jobs_for_the_next_start(home: dict[str, str], tmp_path: Path) -> None:
    folder = str(tmp_path / "lab")
    start = ("dev", "--masters", "1", "--agents", "1", "--dir", folder, "--detach")
    call(home, *start)
    job = call(home, "submit", "-q", "--wait", "--name", "kept", "--", "true").strip()
    call(home, "dev", "--stop", "--dir", folder)
    call(home, *start)
    try:
        assert json.loads(call(home, "show", job, "-o", "json"))["name"] == "kept"
        assert call(home, "run", "--", "echo", "again") == "again\n"
    finally:
        call(home, "dev", "--stop", "--dir", folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_dev_in_the_foreground_tells_what_it_is_and_stops_on_a_signal(
    number: int, home: dict[str, str], wait_until: WaitUntil
) -> None:
    with started(home, "dev", "--masters", "1", "--agents", "1", "-o", "json") as running:
        assert running.stdout is not None
        told = json.loads(running.stdout.readline())
        assert call(home, "--context", "dev", "run", "--", "echo", "hello") == "hello\n"
        running.send_signal(number)
        assert running.wait(60) == 0
    wait_until(lambda: still_there(told), lambda left: not left)


def test_dev_on_a_terminal_shows_the_live_view(home: dict[str, str]) -> None:
    screen = Screen(home, "dev", "--masters", "1", "--agents", "1")
    screen.read_until("leader m1")
    screen.read_until("1 of 1 up")
    screen.press("q")
    assert screen.close() == 0
    assert "stopping" in screen.text


def test_dev_stop_where_nothing_runs(home: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "dev", "--stop", "--dir", str(tmp_path)],
        env=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr


def test_run_goes_on_on_another_host_when_its_agent_dies(
    fresh_cluster: Callable[..., LocalCluster], tmp_path: Path
) -> None:
    cluster = fresh_cluster(masters=1, agents=2, slots=1)
    environment = {**os.environ, "DEPALMA_MASTERS": cluster.masters[0], "DEPALMA_TOKEN_FILE": cluster.token_file}
    script = "echo attempt $DEPALMA_ATTEMPT on $DEPALMA_HOST; test $DEPALMA_ATTEMPT = 2 || sleep 60"
    with started(environment, "run", "--", "sh", "-c", script) as running:
        (first,) = read_lines(running, lambda line: "attempt 1" in line)
        cluster.kill(first.rsplit(" ", 1)[1])
        assert running.stdout is not None
        (second,) = running.stdout.read().splitlines()
        assert second.startswith("attempt 2 on h")
        assert second[-2:] != first[-2:]
        assert running.wait(60) == 0
        assert running.stderr is not None
        assert "attempt 1 is over (lost on" in running.stderr.read()
