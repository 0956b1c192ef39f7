"""Process trees as /proc shows them, and how to end one for good. Standard library only: the monitor starts with it.

A process is signalled only after a check that the number still means the same process: a direct child keeps its
number until it is reaped, any other one is held by a pidfd while its parent is compared.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from typing import NamedTuple

_PR_SET_CHILD_SUBREAPER = 36
#: Every process that the monitor starts carries this variable, and its children inherit it.
MARKER = "DEPALMA_PROCESS"
#: The agent folder, so that a new agent finds what a killed pair of agent and monitor left behind.
OWNER = "DEPALMA_AGENT_DIR"


class Stat(NamedTuple):
    """What `/proc/PID/stat` says; `start` is in clock ticks since boot."""

    state: str
    ppid: int
    pgrp: int
    session: int
    start: int


def become_subreaper() -> None:
    """Orphans of this process's descendants become its own children. Errors: OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}")


def stat(pid: int) -> Stat | None:
    """Returns the state of a process, or None if there is none of that number."""
    data = read(f"/proc/{pid}/stat")
    if not data:
        return None
    words = data[data.rindex(b")") + 2 :].split()
    return Stat(words[0].decode(), int(words[1]), int(words[2]), int(words[3]), int(words[19]))


def age_s(found: Stat) -> float:
    """Returns for how long a process has been there."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - found.start / os.sysconf("SC_CLK_TCK")


def environment_value(pid: int, name: str) -> str:
    """Returns a variable of the environment the process was started with; empty if unset or not readable."""
    prefix = name.encode() + b"="
    for item in read(f"/proc/{pid}/environ").split(b"\0"):
        if item.startswith(prefix):
            return item[len(prefix) :].decode(errors="replace")
    return ""


def children(pid: int) -> list[int]:
    """Returns the children of all threads of the process, dead ones that wait to be reaped included."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    found: list[int] = []
    for thread in threads:
        path = f"/proc/{pid}/task/{thread}/children"
        data = read(path)
        if not data and not os.path.exists(path) and os.path.exists(f"/proc/{pid}/task/{thread}"):
            return _children_by_scan(pid)
        found.extend(int(word) for word in data.split())
    return found


class OwnChildren:
    """The children of the calling process, which must have one thread only. Cheaper than `children`."""

    def __init__(self) -> None:
        try:
            self._fd = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1

    def __call__(self) -> set[int]:
        """Returns their process ids, dead ones that wait to be reaped included."""
        if self._fd < 0:
            return set(children(os.getpid()))
        data = os.pread(self._fd, 65536, 0)
        while more := os.pread(self._fd, 65536, len(data)):
            data += more
        return {int(word) for word in data.split()}


def descendants(pid: int) -> Iterator[tuple[int, int]]:
    """Yields (pid, parent) of everything below a process, parents first."""
    pending = [(child, pid) for child in children(pid)]
    seen = {pid}
    while pending:
        child, parent = pending.pop(0)
        if child in seen:
            continue
        seen.add(child)
        yield child, parent
        pending.extend((grandchild, child) for grandchild in children(child))


def send(pid: int, parent: int, number: int) -> bool:
    """Signals `pid` if it is still a child of `parent`. Returns whether it was signalled."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        now = stat(pid)
        # Its parent may have died in between: then it is a child of ours.
        if now is None or now.ppid not in (parent, os.getpid()):
            return False
        signal.pidfd_send_signal(handle, number)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def send_same(pid: int, start: int, number: int) -> bool:
    """Signals `pid` if it is still the process that began at `start`, whoever its parent is. Returns whether it was."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        now = stat(pid)
        if now is None or now.start != start:
            return False
        signal.pidfd_send_signal(handle, number)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def send_tree(pid: int, number: int) -> int:
    """Signals everything below `pid` (not itself). Returns how many were signalled."""
    return sum(send(child, parent, number) for child, parent in descendants(pid))


def kill_descendants(on_reaped: set[int] | None = None) -> int:
    """Kills everything below the calling process, again and again until nothing is left. Returns how many were reaped.

    It comes back only when the kernel says that there is no child. What a killed process leaves behind becomes a
    child of ours (we are a subreaper), so that the next round finds it.
    """
    own = os.getpid()
    reaped = 0
    while True:
        send_tree(own, signal.SIGKILL)
        try:
            while (done := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                reaped += 1
                if on_reaped is not None:
                    on_reaped.add(done)
        except ChildProcessError:
            return reaped
        time.sleep(0.002)


def strays(owner: str) -> list[int]:
    """Returns the processes of this machine that were started for the agent folder `owner`, the caller aside."""
    own = os.getpid()
    return [
        pid
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit())
        if pid != own and environment_value(pid, OWNER) == owner and (now := stat(pid)) and now.state != "Z"
    ]


def kill_strays(owner: str) -> int:
    """Kills them all, for a new agent of the folder. Returns how many there were."""
    killed = 0
    while pids := strays(owner):
        killed += len(pids)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    return killed


def _children_by_scan(pid: int) -> list[int]:
    """For kernels without `/proc/PID/task/TID/children`."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return [other for other in pids if (now := stat(other)) is not None and now.ppid == pid]


def read(path: str) -> bytes:
    """Returns what is in a file; nothing if it cannot be read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        parts = []
        while part := os.read(handle, 65536):
            parts.append(part)
        return b"".join(parts)
    except OSError:
        return b""
    finally:
        os.close(handle)
