"""A process that gets only a part of a core: by the kernel's quota, or by stopping it most of the time."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from depalma.testing.chaos.marks import PREFIX, is_left_over, mark

_CGROUP = Path("/sys/fs/cgroup/cpu")
_PERIOD_US = 100_000


@contextmanager
def slowed(pid: int, share: float) -> Iterator[str]:
    """Meanwhile the process (all its threads) gets this share of one core. Yields by what means."""
    group = _CGROUP / f"{mark()}{pid}"
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text(str(int(share * _PERIOD_US)))
        (group / "cgroup.procs").write_text(str(pid))
    except OSError:
        if group.exists():
            group.rmdir()
        with _stopped_mostly(pid, share):
            yield "stopping"
        return
    try:
        yield "quota"
    finally:
        _dissolve(group)


def sweep() -> None:
    """Removes the groups of runs that were killed."""
    for group in _CGROUP.glob(f"{PREFIX}*"):
        if is_left_over(group.name):
            _dissolve(group)


def _dissolve(group: Path) -> None:
    for member in (group / "cgroup.procs").read_text().split():
        (_CGROUP / "cgroup.procs").write_text(member)
    group.rmdir()


@contextmanager
def _stopped_mostly(pid: int, share: float) -> Iterator[None]:
    period_s = _PERIOD_US / 1e6
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            os.kill(pid, signal.SIGSTOP)
            done.wait(period_s * (1 - share))
            os.kill(pid, signal.SIGCONT)
            done.wait(period_s * share)

    thread = threading.Thread(target=work, name="chaos-slow")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
