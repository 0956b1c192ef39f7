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
_PF_EXITING = 4
#: What was killed is dead by then, or waits in the kernel for something that does not come.
PATIENCE_S = 1.0
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


def name(pid: int) -> str:
    """Returns what a process is called, its first 15 bytes; empty if there is none of that number."""
    data = read(f"/proc/{pid}/stat")
    return data[data.index(b"(") + 1 : data.rindex(b")")].decode(errors="replace") if data else ""


def is_stuck(pid: int) -> bool:
    """Returns whether no thread of a process can ever run an instruction of its own again; it may still be there.

    That is so for one that is exiting, and for one that waits in the kernel where no signal wakes it (state D), with
    SIGKILL pending: the kernel looks at that before it goes back to the program, and makes no thread for it either. It
    is gone when whatever it waits for answers. What that one system call does is done then.
    """
    threads = _threads(pid)
    if not threads:  # it is gone; or nothing can be known, for want of descriptors
        return not os.path.exists(f"/proc/{pid}")
    # A second look: a thread that was at its end may have made another one before.
    return all(_thread_is_stuck(pid, thread) for thread in threads) and _threads(pid) <= threads


def _threads(pid: int) -> set[str]:
    try:
        return set(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return set()


def _thread_is_stuck(pid: int, thread: str) -> bool:
    data = read(f"/proc/{pid}/task/{thread}/stat")
    if not data:
        return not os.path.exists(f"/proc/{pid}/task/{thread}")
    words = data[data.rindex(b")") + 2 :].split()
    if words[0] in (b"Z", b"X") or int(words[6]) & _PF_EXITING:
        return True
    if words[0] != b"D":
        return False
    for line in read(f"/proc/{pid}/task/{thread}/status").splitlines():
        if line.startswith(b"SigPnd:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGKILL - 1) & 1)
    return False


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


def kill_descendants(on_reaped: set[int] | None = None) -> set[int]:
    """Kills everything below the calling process, again and again until nothing is left.

    It comes back when the kernel says that there is no child; or, after `PATIENCE_S`, when what is left hangs in the
    kernel and can do nothing more (`is_stuck`): returns these. What a killed process leaves behind becomes a child of
    ours (we are a subreaper), so that the next round finds it.
    """
    own = os.getpid()
    patient_until_s = time.monotonic() + PATIENCE_S
    while True:
        send_tree(own, signal.SIGKILL)
        try:
            while (done := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                if on_reaped is not None:
                    on_reaped.add(done)
        except ChildProcessError:
            return set()
        if time.monotonic() >= patient_until_s:
            left = {pid for pid, _ in descendants(own)}
            # None: they cannot be listed, for want of descriptors; the kernel has just said that there are some.
            if left and all(is_stuck(pid) for pid in left):
                return left
        time.sleep(0.002)


def strays(owner: str) -> list[int]:
    """Returns the processes of this machine that were started for the agent folder `owner`, the caller aside."""
    own = os.getpid()
    return [
        pid
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit())
        if pid != own and environment_value(pid, OWNER) == owner and not is_stuck(pid)
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
