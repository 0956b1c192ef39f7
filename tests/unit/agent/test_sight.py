"""What the machine says of its owner: real terminals, devices that give something to read, load of others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from depalma.agent import sight
from depalma.agent.sight import ForeignCpu, Input, desktop_idle, foreign_gpu_percent, machine_ticks, own_ticks

#: Makes a terminal, and uses it a moment later.
ON_A_TERMINAL = """
import os, signal, sys, time
master, slave = os.openpty()
print(os.ttyname(slave), flush=True)
time.sleep(0.1)
if os.fork() == 0:
    os.close(master)
    os.login_tty(slave)
    signal.pause()
os.close(slave)
sys.stdin.read()
"""


def wait_until(look: Callable[[], Any], what: str, for_s: float = 20.0) -> Any:
    end = time.monotonic() + for_s
    while not (seen := look()):
        assert time.monotonic() < end, what
        time.sleep(0.01)
    return seen


@contextmanager
def terminal() -> Iterator[tuple[int, str]]:
    master, slave = os.openpty()
    try:
        yield master, os.ttyname(slave)
    finally:
        os.close(slave)
        os.close(master)


def typed(master: int, name: str) -> None:
    """Types a line at a terminal whose program reads it; the terminal was made long ago."""
    os.utime(name, (1_000_000.0, 1_000_000.0))
    os.write(master, b"x\n")
    slave = os.open(name, os.O_RDWR | os.O_NOCTTY)
    try:
        assert os.read(slave, 100) == b"x\n"
    finally:
        os.close(slave)


def test_a_key_at_a_terminal_is_seen_with_the_terminal() -> None:
    with terminal() as (master, name):
        seen = Input((name,), "/nowhere/*", logins=False)
        os.utime(name, (1_000_000.0, 1_000_000.0))
        assert seen.last(time.time(), 0.0) == (1_000_000.0, name.removeprefix("/dev/"))
        before = time.time()
        typed(master, name)
        at, where = seen.last(time.time(), 1.0)
        assert at is not None
        assert abs(at - before) < 10  # the kernel notes it to some seconds
        assert where == name.removeprefix("/dev/")


def test_a_terminal_of_a_task_of_ours_is_nobody() -> None:
    """Tasks are below the agent; what they type to themselves keeps no owner at the machine."""
    task = subprocess.Popen([sys.executable, "-c", ON_A_TERMINAL], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert task.stdout is not None
        name = task.stdout.readline().decode().strip()
        seen = Input((name,), "/nowhere/*", logins=False)
        wait_until(lambda: seen.last(time.time(), 0.0) == (None, ""), "a terminal of ours was taken for an owner's")
        with terminal() as (_, other):
            os.utime(other, (1_000_000.0, 1_000_000.0))
            both = Input((name, other), "/nowhere/*", logins=False)
            assert both.last(time.time(), 0.0) == (1_000_000.0, other.removeprefix("/dev/"))
    finally:
        task.communicate()


def test_a_device_tells_that_something_came_and_one_without_keys_is_not_listened_to(tmp_path: Path) -> None:
    for name, keys in (("event0", "10000 0\n"), ("event1", "0 0\n")):
        os.mkfifo(tmp_path / name)
        (tmp_path / "class" / name / "device" / "capabilities").mkdir(parents=True)
        (tmp_path / "class" / name / "device" / "capabilities" / "key").write_text(keys)
    ends = [os.open(tmp_path / name, os.O_RDWR) for name in ("event0", "event1")]
    seen = Input((), str(tmp_path / "event*"), logins=False, classes=str(tmp_path / "class"))
    try:
        assert seen.last(50.0, 1.0) == (None, "")
        os.write(ends[1], b"it moved by itself")
        assert seen.last(51.0, 2.0) == (None, "")
        os.write(ends[0], b"x" * 10_000)
        assert seen.last(52.0, 3.0) == (52.0, f"{tmp_path}/event0")
        assert seen.last(60.0, 4.0) == (52.0, f"{tmp_path}/event0"), "all of it was read, nothing more came"
    finally:
        seen.close()
        for end in ends:
            os.close(end)


def test_what_is_below_us_is_ours_also_when_it_has_ended() -> None:
    busy = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    before = own_ticks()
    subprocess.run([sys.executable, "-c", busy], check=True)
    assert own_ticks() - before >= 0.4 * os.sysconf("SC_CLK_TCK")


def is_not_counted(pid: int) -> None:
    """Whatever else runs on the machine, and whenever this process stands still: what `pid` uses is not foreign."""
    meter = ForeignCpu()
    _, busy_before = machine_ticks()
    assert meter.percent() is None
    total_then, _ = machine_ticks()
    before = ticks_of(pid)
    used = wait_until(lambda: u if (u := ticks_of(pid) - before) >= 50 else 0, "half a second of work")
    total_now, _ = machine_ticks()
    foreign_percent = meter.percent()
    _, busy_after = machine_ticks()
    assert foreign_percent is not None
    # The first is at most what was counted, as it is of a shorter time; the second are all others of a longer one.
    foreign, others = foreign_percent / 100 * (total_now - total_then), busy_after - busy_before - used
    # The kernel's counters are not of the same moment; where time is stolen, a process seems to have had it.
    assert foreign <= max(0, others) + 10


def test_others_are_what_is_not_ours() -> None:
    task = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        is_not_counted(task.pid)
    finally:
        task.kill()
        task.wait()


def test_time_in_which_the_agent_stood_still_between_two_looks_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """What our tasks had used meanwhile was taken for the work of an owner, who was there then for half a minute."""
    now, stops = 1000, [250, 0]  # one of two processors is used, by our tasks

    def own() -> int:
        nonlocal now
        now += stops.pop(0)
        return now

    monkeypatch.setattr(sight, "machine_ticks", lambda: (2 * now, now))
    monkeypatch.setattr(sight, "own_ticks", own)
    meter = ForeignCpu()
    monkeypatch.setattr(meter._daemons, "used", lambda without: (0, 0))
    assert meter.percent() is None
    now += 100
    assert meter.percent() == 0.0


@pytest.mark.parametrize("words", [["-m", "depalma.master"], ["/opt/bin/depalma-agent", "--name", "h2"]])
def test_masters_and_other_agents_are_not_foreign(words: list[str], tmp_path: Path) -> None:
    """An owner's limit must not be reached by Depalma's own processes, which are not below this agent."""
    program = tmp_path / "depalma" / "master.py"
    program.parent.mkdir()
    (program.parent / "__init__.py").touch()
    program.write_text("while True: pass")
    if words[0] != "-m":
        agent = tmp_path / "bin" / "depalma-agent"
        agent.parent.mkdir()
        agent.write_text("while True: pass")
        words = [str(agent), *words[1:]]
    start = ["sh", "-c", '"$@" > /dev/null 2>&1 & echo $!', "sh", sys.executable, *words]  # not below us
    pid = int(subprocess.run(start, cwd=tmp_path, capture_output=True, check=True).stdout)
    try:
        wait_until(lambda: ticks_of(pid) >= 5, "it runs")
        is_not_counted(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


def ticks_of(pid: int) -> int:
    words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(words[11]) + int(words[12])


def program(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a program first on the path that says what the real one says."""
    file = folder / name
    file.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\n")
    file.chmod(0o755)
    monkeypatch.setattr(sight, "_PROGRAM_S", 60.0)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


PMON = """\
# gpu         pid   type     sm    mem    enc    dec    command
# Idx           #    C/G      %      %      %      %    name
    0       1234     C     45     20      -      -    blender
    0       1235     G      7      1      -      -    Xorg
    0       OWN     C     90     20      -      -    python
    1          -     -      -      -      -      -    -
"""


def test_a_gpu_is_used_by_others_as_far_as_not_by_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "nvidia-smi", PMON.replace("OWN", str(os.getpid())), monkeypatch)
    assert foreign_gpu_percent() == 52.0


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        ("IdleHint=no\nIdleSinceHint=0\n", (0.0, "the desktop")),
        ("IdleHint=yes\nIdleSinceHint=1795659460000000\n", (1795659460.0, "the desktop")),
        ("IdleHint=yes\nIdleSinceHint=5000000\n\nIdleHint=yes\nIdleSinceHint=9000000\n", (9.0, "the desktop")),
        ("IdleHint=yes\nIdleSinceHint=5000000\n\nIdleHint=no\nIdleSinceHint=0\n", (0.0, "the desktop")),
        ("", None),
    ],
)
def test_desktops_say_whether_they_are_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, seen: object
) -> None:
    program(tmp_path, "loginctl", said, monkeypatch)
    assert desktop_idle(f"{tmp_path}/sessions/*") is None, "there is no session"
    (tmp_path / "sessions").mkdir()
    (tmp_path / "sessions" / "1").write_text("UID=1000\nTYPE=tty\nCLASS=user\nSTATE=active\n")
    (tmp_path / "sessions" / "c1").write_text("UID=120\nTYPE=wayland\nCLASS=greeter\nSTATE=active\n")
    assert desktop_idle(f"{tmp_path}/sessions/*") is None, "a terminal and a greeter are no desktop"
    (tmp_path / "sessions" / "2").write_text("UID=1000\nTYPE=wayland\nCLASS=user\nSTATE=active\n")
    assert desktop_idle(f"{tmp_path}/sessions/*") == seen


def test_a_machine_that_says_nothing_has_no_last_input() -> None:
    assert Input((), "/nowhere/*", logins=False).last(5.0, 0.0) == (None, "")
