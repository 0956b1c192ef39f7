"""The supervisor where the machine does not play along: a log that nobody reads, processes of others, full disks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from depalma.agent.spawning import Slots, Spawned
from depalma.monitor import say

NOBODY = 65534


def test_the_deadline_kills_although_nobody_reads_the_log(monitor) -> None:
    """Stderr may be a terminal that was stopped, or a line to a machine that is gone: writing to it waits for ever."""
    handle = monitor.process.stderr.fileno()
    writer = os.open(f"/proc/{monitor.process.pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK)
    try:
        fcntl.fcntl(handle, fcntl.F_SETPIPE_SZ, 4096)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 512)
    finally:
        os.close(writer)
    monitor.lease()
    monitor.spawn(1, "sleep", "3011")
    monitor.listen(monitor.below, "process")
    monitor.lease(0.3)

    monitor.listen(lambda: not monitor.below(), "end of it")

    monitor.listen(lambda: [message for message in monitor.heard if message[0] == "expired"], "word of it")
    monitor.lease()
    monitor.spawn(2, "true", slot=1)
    assert monitor.exit(2) == (0, "")


def test_the_deadline_kills_although_the_log_is_gone(monitor) -> None:
    monitor.process.stderr.close()
    monitor.process.stderr = None
    monitor.lease()
    monitor.spawn(1, "sleep", "3011")
    monitor.listen(monitor.below, "process")
    monitor.lease(0.3)

    monitor.listen(lambda: not monitor.below(), "end of it")

    monitor.say(("ping", 1))
    monitor.listen(lambda: ("pong", 1) in monitor.heard, "an answer: it goes on")


def test_the_deadline_kills_although_all_descriptors_are_in_use(monitor) -> None:
    """A host may have more slots than a process may have files, of which each takes two."""
    used = len(os.listdir(f"/proc/{monitor.process.pid}/fd"))
    resource.prlimit(monitor.process.pid, resource.RLIMIT_NOFILE, (used + 25, used + 25))
    monitor.lease()
    hides = "setsid sleep 3013 & sleep 3013"
    for slot in range(20):
        monitor.spawn(slot + 1, "sh", "-c", hides, slot=slot)
    monitor.listen(lambda: 20 in monitor.exits, "the end of the last one, for which there is no room")
    assert "Too many open files" in monitor.exits[20][4]
    monitor.listen(lambda: monitor.sleeping() >= 2 and not monitor.sleeping() % 2, "others, that run")

    monitor.lease(0.3)

    monitor.listen(lambda: not monitor.below(), "end of them")
    monitor.listen(lambda: [message for message in monitor.heard if message[0] == "expired"], "word of it")
    monitor.lease()
    monitor.spawn(30, "true")
    assert monitor.exit(30) == (0, "")


@pytest.fixture
def of_another_user() -> Iterator[int]:
    """A process that a monitor of `NOBODY` must not signal, the first of its group: a task that has become root."""
    process = subprocess.Popen(["sleep", "3012"], start_new_session=True)
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed")
def test_a_task_of_another_user_is_nothing_to_fail_on(of_another_user: int) -> None:
    """`sudo` as a task: its group cannot be signalled, and that must not end the monitor, and with it everything."""
    program = (
        "import os, signal\n"
        "from depalma.agent.spawning import Spawned\n"
        f"os.setresuid({NOBODY}, {NOBODY}, {NOBODY})\n"
        "task = Spawned(1, 0, ('', ''))\n"
        f"task.pid = {of_another_user}\n"
        "task.signal(signal.SIGTERM)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed")
def test_the_end_of_a_task_of_another_user_is_told_as_any_other(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    program = (
        "import os, subprocess, time\n"
        "from depalma.monitor import Monitor\n"
        "from depalma.agent.channel import Channel\n"
        "from depalma.agent.cgroups import ControlGroups\n"
        "from depalma.agent.spawning import Spawned\n"
        "import socket\n"
        "near, far = socket.socketpair()\n"
        "os.environ['DEPALMA_NO_CGROUPS'] = '1'\n"
        "task = subprocess.Popen(['true'], start_new_session=True)\n"  # it stays root, and is a zombie
        f"os.setresuid({NOBODY}, {NOBODY}, {NOBODY})\n"
        "monitor = Monitor(Channel(near), '.', 1000, ControlGroups())\n"
        "spawned = Spawned(1, 0, ('', ''))\n"
        "spawned.pid = task.pid\n"
        "monitor.by_pid[task.pid] = monitor.by_key[1] = spawned\n"
        "while not monitor._exits:\n"
        "    monitor.reap()\n"
        "    time.sleep(0.01)\n"
        "print(monitor._exits[0][:2])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path
    )
    assert (done.returncode, done.stdout, done.stderr[-300:]) == (0, "(1, 0)\n", "")


# ---------------------------------------------------------------- folders of slots


def ended(slot: int, tmp_path: Path, keep: str = "") -> Spawned:
    spawned = Spawned(1, slot, (str(tmp_path / "output/1/0.1.out"), str(tmp_path / "output/1/0.1.err")))
    spawned.keep = keep
    return spawned


def test_what_a_killed_monitor_left_in_a_scratch_folder_is_not_the_next_ones(tmp_path: Path) -> None:
    """Its agent goes on with a new monitor, which knows nothing of what ran."""
    scratch = Path(Slots(str(tmp_path), 1000).scratch_of(0))
    (scratch / "secret").write_text("of the task before")

    again = Path(Slots(str(tmp_path), 1000).scratch_of(0))

    assert again == scratch
    assert list(again.iterdir()) == []


def test_the_next_task_does_not_see_what_is_left_when_output_cannot_be_kept(tmp_path: Path) -> None:
    slots = Slots(str(tmp_path), 1000)
    scratch = Path(slots.scratch_of(0))
    (scratch / "secret").write_text("of the task before")
    os.write(slots.spools(0)[0], b"printed")
    (tmp_path / "output").write_text("in the way, as a full disk would be")

    assert "output could not be kept" in slots.kept(ended(0, tmp_path))

    assert list(Path(slots.scratch_of(0)).iterdir()) == []


def test_the_next_task_does_not_see_the_inputs_of_one_whose_program_is_none(monitor) -> None:
    program, inputs = monitor.root / "notes", monitor.root / "staged"
    program.write_text("no program")
    program.chmod(0o755)
    inputs.mkdir()
    (inputs / "secret").write_text("of the task before")
    monitor.lease()
    files = (f"{monitor.root}/output/1.out", f"{monitor.root}/output/1.err")
    rest = (0, False, (), (str(inputs), ""), b"")
    monitor.say(("spawn", 1, [os.fsencode(program)], 1, {}, "", files, *rest))
    assert monitor.exit(1) == (126, f"{program}: not a program, and it has no #! line")

    monitor.spawn(2, "sh", "-c", "[ ! -e secret ]")

    assert monitor.exit(2) == (0, "")


def test_any_name_can_be_written_to_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    """It is said where a task hangs, and a folder may have any bytes as its name."""
    say(f"hangs in {os.fsdecode(bytes([0xE9]))}")
    assert "hangs in " in capfd.readouterr().err


@pytest.mark.parametrize("instead", ["file", "link", "nothing"])
def test_a_scratch_folder_that_is_none_any_more_spoils_no_slot(tmp_path: Path, instead: str) -> None:
    slots = Slots(str(tmp_path / "agent"), 1000)
    scratch = Path(slots.scratch_of(0))
    scratch.rmdir()
    if instead == "file":
        scratch.write_text("data")
    elif instead == "link":
        scratch.symlink_to(tmp_path / "nowhere")

    assert slots.kept(ended(0, tmp_path)) == ""

    again = Path(slots.scratch_of(0))
    assert again.is_dir()
    assert not again.is_symlink()
    assert list(again.iterdir()) == []


def test_a_task_that_locks_its_scratch_folder_keeps_its_outputs_and_leaves_nothing(tmp_path: Path) -> None:
    """Unpacking an archive does it: a folder that must not be written cannot be moved either, except by root."""
    tmp_path.chmod(0o777)
    program = (
        "import os\n"
        "from pathlib import Path\n"
        "from depalma.agent.spawning import Slots, Spawned\n"
        f"if os.geteuid() == 0: os.setresuid({NOBODY}, {NOBODY}, {NOBODY})\n"
        "root = Path('agent')\n"
        "slots = Slots(str(root), 1000)\n"
        "for count in range(2):\n"
        "    scratch = Path(slots.scratch_of(0))\n"
        "    assert list(scratch.iterdir()) == []\n"
        "    (scratch / 'result').write_text('value')\n"
        "    scratch.chmod(0o500)\n"
        "    spawned = Spawned(1, 0, ('', ''))\n"
        "    spawned.keep = str(root / f'kept{count}')\n"
        "    assert slots.kept(spawned) == ''\n"
        "    assert (root / f'kept{count}/result').read_text() == 'value'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_spool_that_cannot_be_made_costs_no_descriptor(tmp_path: Path) -> None:
    slots = Slots(str(tmp_path), 1000)
    (tmp_path / "spool/0.err").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(OSError):
            slots.spools(0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_deadline_kills_although_tasks_that_went_their_own_way_hold_descriptors(monitor) -> None:
    used, slots = len(os.listdir(f"/proc/{monitor.process.pid}/fd")), 30
    resource.prlimit(monitor.process.pid, resource.RLIMIT_NOFILE, (used + 80, used + 80))
    monitor.lease()
    for slot in range(slots):  # each has its two files from now on
        monitor.spawn(slot + 1, "true", slot=slot)
        assert monitor.exit(slot + 1) == (0, "")
    for slot in range(slots):
        monitor.spawn(slot + 101, "sh", "-c", "setsid sleep 3013 & sleep 3013", slot=slot, cwd="/proc")
    monitor.listen(lambda: 101 + slots - 1 in monitor.exits, "the end of the last one, for which there is no room")
    assert "Too many open files" in monitor.exits[101 + slots - 1][4]
    monitor.listen(lambda: monitor.sleeping() >= 2 and not monitor.sleeping() % 2, "others, that run")

    monitor.lease(0.3)

    monitor.listen(lambda: [message for message in monitor.heard if message[0] == "expired"], "word of it")
    assert not monitor.below()


WITHOUT_DESCRIPTORS = """
import os, resource, subprocess, threading
from depalma.agent import proctree
child = subprocess.Popen(["sleep", "3013"])
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.dup(0))
except OSError:
    pass
assert not proctree.is_stuck(child.pid)
some = [held.pop() for _ in range(8)]
timer = threading.Timer(1.5 * proctree.PATIENCE_S, lambda: [os.close(fd) for fd in some])
timer.start()
proctree.kill_descendants()
dead = proctree.is_stuck(child.pid)  # or about to be
child.kill()
timer.join()
assert dead
"""


def test_what_cannot_be_looked_at_does_not_count_as_dead() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_DESCRIPTORS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
