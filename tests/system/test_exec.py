"""Commands and shells inside running tasks, on a cluster of real processes that speak TLS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from depalma import AsyncClient, Client, LocalCluster, Rejected
from depalma.client.connections import Connections
from depalma.client.job import JobHandle
from depalma.client.visiting import VisitResult
from depalma.visits import WINDOW_BYTES, Data, from_task
from tests.system.calm import START_S, STEADY

WaitUntil = Callable[..., Any]
Ctl = Callable[..., subprocess.CompletedProcess[str]]
Hide = Callable[[JobHandle, str], subprocess.Popen[bytes]]

#: Leaves its session, ignores signals, is nobody's child, and can be found by its number.
HIDES = "trap '' TERM HUP INT; setsid sleep {0} & (setsid sh -c 'trap \"\" TERM HUP; sleep {0}' &); sleep {0}"
TASK = "echo mine >file; echo $$ >pid; while ! test -e done; do sleep 0.02; done; exit 4"

#: A shell that reads no settings of whoever runs the tests.
ENVIRONMENT = {"COLOUR": "a b", "SHELL": "/bin/sh"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A host and a master of it are killed here; the others are enough for all tests, in any order."""
    made = LocalCluster(masters=3, agents=2, slots=2, settings={**STEADY, "api_tls": "on"}, start_s=START_S)
    yield made
    assert made.stop() == []


@pytest.fixture
def environment(environment: dict[str, str], cluster: LocalCluster) -> dict[str, str]:
    return {**environment, "DEPALMA_CA": cluster.ca, "SHELL": "/bin/bash"}


@pytest.fixture
def job(client: Client, wait_until: WaitUntil) -> Iterator[JobHandle]:
    """A job whose only task runs on h1 until the file `done` is in its folder."""
    made = client.command(["sh", "-c", TASK], on_host="h1", env=ENVIRONMENT, memory="300m")
    wait_until(lambda: made.state, "running".__eq__)
    wait_until(lambda: entered(client, made, "cat", "pid"), lambda done: done is not None and done.exit_code == 0)
    yield made
    client.cancel(made)
    made.wait(60)


def of_ours(number: int) -> str:
    """Returns seconds to sleep that nobody else sleeps on this machine, not even another run of these tests."""
    return f"{number}.{os.getpid()}"


def living(number: str) -> list[psutil.Process]:
    """Returns the processes called `sleep NUMBER`, or with something else that only they have as their argument."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[1:] == [number] and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.fixture
def hide(environment: dict[str, str], wait_until: WaitUntil) -> Iterator[Hide]:
    """`hide(job, number)` starts a client whose command has hidden itself as well as it can: three processes."""
    made: list[subprocess.Popen[bytes]] = []

    def begin(job: JobHandle, number: str) -> subprocess.Popen[bytes]:
        words = ["exec", str(job.id), "--", "sh", "-c", HIDES.format(number)]
        made.append(subprocess.Popen([sys.executable, "-m", "depalma.ctl", *words], env=environment, stderr=-1))
        wait_until(lambda: len(living(number)) == 3)
        return made[-1]

    yield begin
    for client in made:
        client.kill()
        client.communicate(timeout=60)


def entered(client: Client, job: JobHandle, *words: str) -> VisitResult | None:
    """Returns what the command has done; None if its host has not found the next leader yet, as the refusal says."""
    try:
        return client.run_in(job, words)
    except Rejected as refusal:
        if refusal.code != "host_away":
            raise
        return None


def test_it_feels_like_a_local_command(
    client: Client, job: JobHandle, ctl: Ctl, value: Callable[..., Any], environment: dict[str, str]
) -> None:
    done = ctl("exec", str(job.id), "--", "sh", "-c", "echo out; echo err >&2; exit 7", code=7)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    assert ctl("exec", f"{job.id}.0", stdin="echo $0; exit 9\n", code=9).stdout == "/bin/sh\n"
    assert ctl("exec", "last", "sh", "-c", "kill $$", code=143).stdout == ""
    assert ctl("exec", str(job.id), "nosuch", code=127).stderr == "error: nosuch: command not found\n"
    told = value("exec", str(job.id), "--", "sh", "-c", "cat file; echo bad >&2; exit 3", code=3)
    assert told == {
        "task": f"{job.id}.0", "attempt": 1, "host": "h1", "exit_code": 3, "stdout": "mine\n", "stderr": "bad\n",
    }  # fmt: skip
    data = os.urandom(5 * 1024 * 1024)
    words = [sys.executable, "-m", "depalma.ctl", "exec", str(job.id), "cat"]
    whole = subprocess.run(words, env=environment, input=data, capture_output=True, check=True, timeout=60)
    assert whole.stdout == data
    kinds = {event.kind: event for event in client.events() if event.job == job.id}
    assert kinds["task.visited"].detail["command"] == "cat"
    assert kinds["task.visited"].detail["by"]


def test_what_it_finds_there_is_what_the_task_has(client: Client, job: JobHandle) -> None:
    look = "cat /proc/$p/cgroup; readlink /proc/$p/cwd; tr '\\0' '\\n' </proc/$p/environ | grep -v _PROCESS | sort"
    its = client.run_in(job, ["sh", "-c", f"p=$(cat pid); {look}"])
    own = client.run_in(job, ["sh", "-c", f"p=$$; {look}"])
    assert its.stdout == own.stdout
    assert b"COLOUR=a b" in own.stdout
    assert b"DEPALMA_JOB_ID=%d" % job.id in own.stdout
    assert own.host == "h1"


async def test_for_programs(cluster: LocalCluster, client: Client, job: JobHandle, wait_until: WaitUntil) -> None:
    done = client.run_in(job.id, ["sh", "-c", "cat; echo bad >&2; exit 3"], task=0, input=b"\0in\xff")
    assert (done.task, done.exit_code, done.stdout, done.stderr) == (f"{job.id}.0", 3, b"\0in\xff", b"bad\n")
    with pytest.raises(TimeoutError):
        client.run_in(job, ["sleep", of_ours(3030)], timeout_s=0.5)
    wait_until(lambda: not living(of_ours(3030)))
    with pytest.raises(Rejected, match=f"job {job.id} has no task 7"):
        client.run_in(job, ["true"], task=7)
    async with AsyncClient(cluster.masters, token_file=cluster.token_file, ca=cluster.ca) as aio:
        both = await asyncio.gather(*(aio.run_in(job, ["echo", word]) for word in ("a", "b")))
    assert [done.stdout for done in both] == [b"a\n", b"b\n"]


class Terminal:
    """`depalmactl` on a terminal of its own."""

    def __init__(self, environment: dict[str, str], *words: str) -> None:
        self.fd, inside = os.openpty()
        self._mode = termios.tcgetattr(self.fd)  # before anybody can change it
        command = ["setsid", "--ctty", sys.executable, "-m", "depalma.ctl", *words]
        self._process = subprocess.Popen(command, env=environment, stdin=inside, stdout=inside, stderr=inside)
        os.close(inside)
        self.seen = b""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, text: str, timeout_s: float = 60.0) -> None:
        end = time.monotonic() + timeout_s
        while text.encode() not in self.seen:
            assert time.monotonic() < end, f"no {text!r} in {self.seen!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                self.seen += os.read(self.fd, 4096)

    def exit_code(self) -> int:
        with contextlib.suppress(OSError):  # the other end is closed
            while piece := os.read(self.fd, 4096):
                self.seen += piece
        code = self._process.wait(60)
        assert termios.tcgetattr(self.fd) == self._mode, "the terminal is not as it was"
        os.close(self.fd)
        return code


def test_a_shell_at_a_terminal(environment: dict[str, str], job: JobHandle, wait_until: WaitUntil) -> None:
    shell = Terminal({**environment, "TERM": "vt100"}, "exec", str(job.id))
    shell.until(f"task {job.id}.0 on host h1")
    subprocess.run(["stty", "rows", "33", "columns", "77"], stdin=shell.fd, check=True)
    # What is typed may overtake the news of the size.
    shell.type("until stty size | grep '33 77'; do sleep 0.05; done; echo $TERM; cat file\r")
    shell.until("33 77\r\nvt100\r\nmine\r\n")
    shell.type("while ! stty size | grep '44 8.'; do sleep 0.05; done\r")
    subprocess.run(["stty", "rows", "44", "columns", "88"], stdin=shell.fd, check=True)
    shell.until("44 88\r\n")
    shell.type(f"sleep {of_ours(3031)}\r")
    wait_until(lambda: living(of_ours(3031)))
    shell.type("\x03")
    wait_until(lambda: not living(of_ours(3031)))
    shell.type("echo a$?z\r")
    shell.until("a130z\r\n")
    shell.type("exit 3\r")
    assert shell.exit_code() == 3

    leaves = Terminal(environment, "exec", str(job.id))
    leaves.type(f"echo o''k; sleep {of_ours(3032)}\r")
    leaves.until("ok\r\n")
    wait_until(lambda: living(of_ours(3032)))
    leaves.type("\r~.")
    assert leaves.exit_code() == 125
    wait_until(lambda: not living(of_ours(3032)))


def test_it_changes_nothing_of_how_the_task_ends_and_ends_with_it(
    client: Client, job: JobHandle, hide: Hide, wait_until: WaitUntil
) -> None:
    number = of_ours(3033)
    visitor = hide(job, number)
    wait_until(lambda: [seen.command for seen in client.ps(job.id).processes].count(f"sleep {number}"), (3).__eq__)
    Path(client.run_in(job, ["pwd"]).stdout.decode().rstrip(), "done").touch()

    view = job.wait(60).view()
    assert (view.state, view.exit_code, [task.attempt for task in job.tasks()]) == ("failed", 4, [1])
    assert living(number) == [], "the end was told before all of it was dead"
    _, error = visitor.communicate(timeout=60)
    assert visitor.returncode == 125
    # A shell of its own may still have had the time to say that its child was killed.
    assert error.decode().endswith(f"error: attempt 1 of task {job.id}.0 has ended, and what was run in it with it\n")
    with pytest.raises(Rejected, match=f"task {job.id}.0 is failed; it can be entered only while it runs"):
        client.run_in(job, ["true"])


def test_nothing_of_it_outlives_a_cancelled_task_a_killed_client_or_a_killed_agent(
    cluster: LocalCluster, client: Client, job: JobHandle, hide: Hide, wait_until: WaitUntil
) -> None:
    killed = hide(job, of_ours(3034))
    killed.kill()
    killed.communicate(timeout=60)
    wait_until(lambda: not living(of_ours(3034)))
    interrupted = hide(job, of_ours(3035))
    wait_until(lambda: interrupted.poll() is not None or interrupted.send_signal(signal.SIGINT))
    interrupted.communicate(timeout=60)
    # The first is passed on, the second ends it, and another one may find it on its way out.
    assert interrupted.returncode in (130, -signal.SIGINT)
    wait_until(lambda: not living(of_ours(3035)))
    assert job.state == "running"

    visitor = hide(job, of_ours(3036))
    client.cancel(job)
    assert job.wait(60).state == "cancelled"
    assert living(of_ours(3036)) == []
    visitor.communicate(timeout=60)
    assert visitor.returncode == 125

    other = client.command(["sleep", of_ours(3037)], on_host="h2")
    wait_until(lambda: other.state, "running".__eq__)
    visitor = hide(other, of_ours(3038))
    cluster.kill("h2", signal.SIGKILL)
    _, error = visitor.communicate(timeout=60)
    assert visitor.returncode == 125
    assert error == b"error: the connection to host h2 is lost; what ran there is ended with it\n"
    wait_until(lambda: not living(of_ours(3038)))


def test_a_leader_that_dies_ends_it_with_a_clear_word(
    cluster: LocalCluster, client: Client, job: JobHandle, hide: Hide, wait_until: WaitUntil
) -> None:
    visitor = hide(job, of_ours(3039))
    former = cluster.leader()
    cluster.kill(former)
    _, error = visitor.communicate(timeout=60)
    assert visitor.returncode == 125
    assert error.startswith(b"error: the connection to https://")
    assert error.endswith(b" broke; what ran on h1 is ended, and nothing is run again\n")
    wait_until(lambda: not living(of_ours(3039)))
    seen: VisitResult = wait_until(lambda: entered(client, job, "cat", "file"))
    assert seen.stdout == b"mine\n"
    assert job.state == "running"


async def test_who_does_not_read_costs_the_leader_nothing(
    cluster: LocalCluster, client: Client, job: JobHandle, wait_until: WaitUntil, tmp_path: Path
) -> None:
    """His program waits; the host stays up, and the leader keeps its size."""
    zeros = tmp_path / "zeros"
    zeros.symlink_to("/dev/zero")
    leader = cluster.leader()
    (entry,) = [entry for entry in cluster.processes if entry.id == leader]
    size_bytes = psutil.Process(entry.pid).memory_info().rss
    connections: Connections = client._connections
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {connections.token}"}) as http:
        users = []
        for _ in range(4):
            granted = client.post(f"/v1/jobs/{job.id}/exec", {"argv": ["cat", str(zeros)]})
            url = client.endpoints.leader + granted["path"]
            assert connections.trust is not None
            users.append(await http.ws_connect(url, ssl=connections.trust.context))
        for user in users:
            user._conn.transport.pause_reading()  # type: ignore[union-attr]
        # Two seconds in which they could write gigabytes; for others it is as ever.
        assert (await asyncio.to_thread(client.run_in, job, ["sleep", "2"])).exit_code == 0
        grown_bytes = psutil.Process(entry.pid).memory_info().rss - size_bytes
        assert grown_bytes < 4 * 2 * WINDOW_BYTES + 16 * 1024 * 1024
        assert client.host("h1").state == "up"
        assert job.state == "running"
        got = 0
        users[0]._conn.transport.resume_reading()  # type: ignore[union-attr]
        while got < WINDOW_BYTES:
            message = from_task((await users[0].receive()).data)
            assert isinstance(message, Data)
            got += len(message.data)
        assert got == WINDOW_BYTES
    wait_until(lambda: not living(str(zeros)))
