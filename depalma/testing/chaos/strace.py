"""System calls of a running process that fail or take long, by strace."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from depalma.testing.chaos.waiting import wait_until

#: what a replica calls when something must be on the disk
SYNCS = "fsync,fdatasync"


class Tracer:
    """strace on one process."""

    def __init__(self, pid: int, calls: str, injection: str, log: Path) -> None:
        self._pid = pid
        argv = [
            "strace",
            "-f",
            "-q",
            "-ttt",
            "-p",
            str(pid),
            "-e",
            f"trace={calls}",
            "-e",
            f"inject={calls}:{injection}",
        ]
        self._popen = subprocess.Popen(
            [*argv, "-o", str(log)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        wait_until(self._attached, within_s=5.0, what=f"strace on {pid}")

    def _attached(self) -> bool:
        assert self._popen.stderr is not None
        if self._popen.poll() is not None:
            raise OSError(f"strace cannot trace {self._pid}: {self._popen.stderr.read().decode()}")
        try:
            status = Path(f"/proc/{self._pid}/status").read_text()
        except FileNotFoundError:
            return True  # it died of what we did
        return f"TracerPid:\t{self._popen.pid}\n" in status

    def close(self) -> None:
        """Lets the process go on as before."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
        self._popen.wait(10)
        assert self._popen.stderr is not None
        self._popen.stderr.close()


def first_failure(log: Path) -> float:
    """Returns when the first call failed as injected, on the monotonic clock; never if none has."""
    wall = (line.split()[1] for line in log.read_text().splitlines() if "(INJECTED)" in line)
    return float(next(wall, "inf")) - (time.time() - time.monotonic())


@contextmanager
def injected(pid: int, injection: str, log: Path, calls: str = SYNCS) -> Iterator[None]:
    """Meanwhile these calls of the process fail (`error=EIO`) or take longer (`delay_enter=500000`, microseconds)."""
    tracer = Tracer(pid, calls, injection, log)
    try:
        yield
    finally:
        tracer.close()
