"""A monitor whose tasks meet a file system that does not answer: that costs those tasks, and nothing else."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from depalma.agent import proctree
from depalma.agent.entering import NAME
from depalma.agent.limits import Limits


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A program that nobody can open for now: the kernel has whoever tries wait until its holder lets go."""
    program = tmp_path / "held"
    shutil.copy("/bin/true", program)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # so the kernel tells the holder
    fd = os.open(program, os.O_RDONLY)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield program
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, before)


def hung(monitor, hanging: Path, count: int = 1) -> list[int]:
    """Waits until so many tasks hang in the kernel, where no signal wakes them. Returns their process ids."""
    file = hanging.with_name("hanging.waiting")
    monitor.listen(lambda: len(file.read_text().split()) >= count, "tasks that hang")
    pids = sorted(map(int, file.read_text().split()))
    assert len(pids) == count
    return pids


def waits_on_its_way(monitor) -> bool:
    """Returns whether a process sleeps that has not become its program."""
    children = [(proctree.name(pid), proctree.stat(pid)) for pid in proctree.children(monitor.process.pid)]
    return any(name == NAME and now is not None and now.state == "S" for name, now in children)


def others_go_on(monitor, key: int, slot: int) -> None:
    monitor.spawn(key, "sh", "-c", "exit 3", slot=slot)
    assert monitor.exit(key)[0] == 3
    monitor.say(("ping", key))
    monitor.listen(lambda: ("pong", key) in monitor.heard, "answer to a ping")


def test_a_program_that_cannot_be_opened_for_now_holds_up_nothing_else(monitor, held: Path) -> None:
    monitor.lease()
    monitor.spawn(1, str(held), slot=0)
    others_go_on(monitor, 2, slot=1)
    monitor.listen(lambda: waits_on_its_way(monitor), "a process that waits for the program")
    assert 1 not in monitor.exits

    monitor.say(("kill", 1, 0.0))

    code, words = monitor.exit(1)
    assert code == -signal.SIGKILL
    assert words == f"it had not begun: starting {held}"
    others_go_on(monitor, 3, slot=0)


def command(name: str, hanging: Path, tmp_path: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """Returns a command that meets the file system somewhere on its way, and how it is started."""
    script = tmp_path / "script"
    script.write_text(f"#!{hanging}/python\n")
    script.chmod(0o755)
    link = tmp_path / "link"
    link.symlink_to(hanging / "folder")
    return {
        "folder": (("true",), {"cwd": f"{hanging}/folder"}),
        "folder by a link": (("true",), {"cwd": f"{link}"}),
        "program": ((f"{hanging}/program",), {}),
        "search": (("some-program",), {"PATH": f"/none:{hanging}:/bin"}),
        "interpreter": ((str(script),), {}),
        "own call": (("cat", f"{hanging}/data"), {}),
    }[name]


@pytest.mark.parametrize("name", ["folder", "folder by a link", "program", "search", "interpreter", "own call"])
def test_a_task_that_hangs_holds_up_nothing_else_and_can_be_ended(
    monitor, hanging: Path, tmp_path: Path, name: str
) -> None:
    words, how = command(name, hanging, tmp_path)
    monitor.lease()
    monitor.spawn(1, "sleep", "3014", slot=1)
    monitor.spawn(2, *words, slot=0, **how)
    monitor.spawn(3, "sh", "-c", "exit 5", slot=0)  # waits for the one before it
    (pid,) = hung(monitor, hanging)
    others_go_on(monitor, 4, slot=2)

    monitor.say(("kill", 2, 0.2))

    code, said = monitor.exit(2)
    assert code == -signal.SIGKILL
    assert f"killed, but process {pid} hangs in the kernel" in said
    assert (str(hanging) if name != "own call" else "cat in ") in said or name in ("folder by a link", "interpreter")
    assert monitor.exit(3)[0] == 5
    assert proctree.is_stuck(pid)
    assert pid in proctree.children(monitor.process.pid)
    assert monitor.sleeping() == 1
    others_go_on(monitor, 5, slot=0)


def test_a_task_whose_output_hangs_holds_up_nothing_else(monitor, hanging: Path) -> None:
    monitor.lease()
    files = (f">{hanging}/out", f"{monitor.root}/output/1.err")
    monitor.say(("spawn", 1, [b"true"], 1, {}, "", files, 0, False, (), ("", ""), b""))
    hung(monitor, hanging)
    others_go_on(monitor, 2, slot=1)
    monitor.say(("kill", 1, 0.0))
    assert f"opening {hanging}/out" in monitor.exit(1)[1]


def test_a_task_with_limits_hangs_by_itself_too(monitor, hanging: Path) -> None:
    monitor.lease()
    limits = tuple(Limits(memory_bytes=1 << 30, output_bytes=1000, scratch_bytes=1 << 20))
    files = (f">{hanging}/out", f"{monitor.root}/output/1.err")
    rest = (0, False, limits, ("", ""), b"")
    monitor.say(("spawn", 1, [b"true"], 1, {}, f"{hanging}/folder", files, *rest))
    hung(monitor, hanging)
    others_go_on(monitor, 2, slot=1)
    monitor.say(("kill", 1, 0.0))
    assert f"entering the working folder {hanging}/folder" in monitor.exit(1)[1]


def test_the_end_of_the_lease_kills_all_others_in_time_and_work_goes_on_after_it(monitor, hanging: Path) -> None:
    monitor.lease()
    monitor.spawn(1, "true", slot=0, cwd=f"{hanging}/folder")
    monitor.spawn(2, "cat", f"{hanging}/data", slot=1)
    monitor.spawn(3, "sh", "-c", "setsid sleep 3015 & sleep 3015", slot=2)
    pids = hung(monitor, hanging, 2)
    monitor.listen(lambda: monitor.sleeping() == 2, "all of them")

    monitor.lease(0.2)
    monitor.listen(lambda: not monitor.sleeping(), "their end")
    monitor.listen(lambda: all(proctree.is_stuck(pid) for pid in pids), "kill of what hangs")
    monitor.listen(lambda: [message for message in monitor.heard if message[0] == "expired"], "word of it")

    monitor.say(("kill_all", 7))
    monitor.listen(lambda: ("all_dead", 7) in monitor.heard, "word that nothing lives")
    monitor.lease()
    others_go_on(monitor, 4, slot=0)
    assert monitor.process.poll() is None


def test_a_monitor_whose_tasks_hang_ends_and_leaves_the_folder_to_others(monitor, hanging: Path) -> None:
    monitor.lease()
    monitor.spawn(1, "true", slot=0, cwd=f"{hanging}/folder")
    (pid,) = hung(monitor, hanging)

    monitor.close()

    assert proctree.is_stuck(pid)
    lock = os.open(monitor.root / "lock", os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(lock)


def test_what_has_not_begun_dies_with_its_monitor(monitor, hanging: Path) -> None:
    """Nobody else knows of it: it must not become a task when the file system answers."""
    monitor.lease()
    monitor.spawn(1, "sleep", "3016", slot=0, cwd=f"{hanging}/folder")
    (pid,) = hung(monitor, hanging)

    monitor.process.kill()
    monitor.process.wait()

    end = time.monotonic() + 30.0
    while not proctree.is_stuck(pid):
        assert time.monotonic() < end, "the kernel has not killed it"
        time.sleep(0.01)
