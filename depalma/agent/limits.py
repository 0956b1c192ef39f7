"""The limits of one task: told to the kernel where it can hold them, looked at ten times a second where it cannot.

Whatever ends a task for a limit says so in words and as a code. A limit is that of the whole tree, except open files,
which the kernel counts for each process. Standard library only: the monitor uses it for commands, a worker for its
isolated functions.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import stat
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from depalma.agent import mounts, proctree
from depalma.agent.cgroups import ControlGroups, TaskGroup

#: How often a task is looked at.
LOOK_S = 0.1
#: A look at a scratch folder goes on at the next one after so many entries: nobody may wait for a large folder.
_ENTRIES = 500
#: A process that grows faster than anybody looks gets no memory beyond this.
_HEADROOM_BYTES = 256 * 1024 * 1024
_SHELL = b"/bin/sh"
#: Joins control groups, lowers limits, and becomes the command. `0` is the writer itself, before it has children.
_SHIM = (
    b'n=$1; shift; while [ "$n" -gt 0 ]; do echo 0 >"$1" || exit 126; shift; n=$((n-1)); done; '
    b'eval "$1" || exit 126; shift; exec "$@"'
)
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Ended(NamedTuple):
    """Which limit ended a task."""

    code: str  #: one of model.ERROR_CODES
    words: str


class Limits(NamedTuple):
    """What a task may use; 0 = no limit."""

    memory_bytes: int = 0
    cpu_s: float = 0.0
    processes: int = 0
    files: int = 0
    output_bytes: int = 0
    scratch_bytes: int = 0

    def exceeded(self, code: str) -> Ended:
        """Returns the words for a limit."""
        words = {
            "memory_limit": f"memory limit of {human(self.memory_bytes)}",
            "cpu_time_limit": f"CPU time limit of {self.cpu_s:g} s",
            "process_limit": f"limit of {self.processes} processes",
            "output_limit": f"output limit of {human(self.output_bytes)}",
            "scratch_limit": f"scratch limit of {human(self.scratch_bytes)}",
        }
        return Ended(code, f"{words[code]} exceeded")


def human(size_bytes: int) -> str:
    """Returns `512 MiB`, `1.5 GiB`, `100 bytes`."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size_bytes >= 1024**power:
            return f"{size_bytes / 1024**power:.4g} {unit}"
    return f"{size_bytes} bytes"


def rlimits(limits: Limits, group: TaskGroup) -> list[tuple[int, tuple[int, int]]]:
    """Returns the limits that the kernel is to hold for each process: number, soft and hard."""
    found = []
    if limits.files:
        found.append((resource.RLIMIT_NOFILE, (limits.files, limits.files)))
    if limits.cpu_s:
        soft = math.ceil(limits.cpu_s)  # of each process; the sum is looked at
        found.append((resource.RLIMIT_CPU, (soft, soft + 5)))
    if limits.memory_bytes and "memory" not in group.folders:
        most = 2 * limits.memory_bytes + _HEADROOM_BYTES
        found.append((resource.RLIMIT_DATA, (most, most)))
    return found


def shim(limits: Limits, group: TaskGroup, argv: list[bytes]) -> list[bytes]:
    """Returns the command line that runs `argv` (the program by its path) in the group and with the rlimits."""
    return inside(group, rlimits(limits, group), argv)


def inside(group: TaskGroup, pairs: list[tuple[int, tuple[int, int]]], argv: list[bytes]) -> list[bytes]:
    """Does the same with rlimits as `rlimits` returns them."""
    letters = {resource.RLIMIT_NOFILE: ("n", 1), resource.RLIMIT_CPU: ("t", 1), resource.RLIMIT_DATA: ("d", 1024)}
    orders = []
    for number, (soft, hard) in pairs:
        letter, unit = letters[number]
        orders += [f"ulimit -S -{letter} {soft // unit}", f"ulimit -H -{letter} {hard // unit}"]
    procs = [os.fsencode(path) for path in group.procs]
    text = " && ".join(orders) or ":"
    return [_SHELL, b"-c", _SHIM, b"depalma-limits", b"%d" % len(procs), *procs, text.encode(), *argv]


class Watch:
    """Looks at one task with limits. `outputs`: files that it writes, each with the size that it had before."""

    def __init__(self, limits: Limits, group: TaskGroup, scratch: str, outputs: list[tuple[str, int]]) -> None:
        self.limits = limits
        self.group = group
        self._scratch = scratch
        self._outputs = outputs
        self._walk: Iterator[int] | None = None
        self._walked_bytes = 0

    def look(self, pids: Callable[[], list[int]]) -> Ended | None:
        """Returns which limit is exceeded now; `pids` are all processes of the task."""
        limits, group = self.limits, self.group
        if limits.output_bytes and self._written() > limits.output_bytes:
            return limits.exceeded("output_limit")
        if limits.memory_bytes and group.out_of_memory():
            return limits.exceeded("memory_limit")
        if limits.processes and group.forks_refused():
            return limits.exceeded("process_limit")
        if limits.cpu_s and (used := group.cpu_s()) is not None and used > limits.cpu_s:
            return limits.exceeded("cpu_time_limit")
        return self._measured(pids) or (self._scratch_look() if limits.scratch_bytes else None)

    def _measured(self, pids: Callable[[], list[int]]) -> Ended | None:
        """Looks at what no control group holds."""
        limits, folders = self.limits, self.group.folders
        memory = bool(limits.memory_bytes) and "memory" not in folders
        processes = bool(limits.processes) and "pids" not in folders
        cpu = bool(limits.cpu_s) and "cpu" not in folders
        if not (memory or processes or cpu):
            return None
        living = pids()
        if processes and len(living) > limits.processes:
            return limits.exceeded("process_limit")
        if memory and sum(map(_resident_bytes, living)) > limits.memory_bytes:
            return limits.exceeded("memory_limit")
        if cpu and sum(map(_cpu_s, living)) > limits.cpu_s:
            return limits.exceeded("cpu_time_limit")
        return None

    def at_end(self, status: int, peak_bytes: int) -> Ended | None:
        """Returns which limit ended it, by how it ended; `peak_bytes`: the largest memory of one of its processes."""
        limits, group = self.limits, self.group
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if limits.cpu_s and number == signal.SIGXCPU:
            return limits.exceeded("cpu_time_limit")
        if limits.cpu_s and (used := group.cpu_s()) is not None and used > limits.cpu_s:
            return limits.exceeded("cpu_time_limit")
        if limits.memory_bytes and (group.out_of_memory() or (status and peak_bytes > limits.memory_bytes)):
            return limits.exceeded("memory_limit")
        if limits.processes and group.forks_refused():
            return limits.exceeded("process_limit")
        if limits.output_bytes and self._written() > limits.output_bytes:
            return limits.exceeded("output_limit")
        return None

    def _written(self) -> int:
        total = 0
        for path, before in self._outputs:
            try:
                total += max(0, os.stat(path).st_size - before)
            except OSError:
                continue
        return total

    def _scratch_look(self) -> Ended | None:
        if self._walk is None:
            self._walk, self._walked_bytes = _sizes(self._scratch), 0
        for _ in range(_ENTRIES):
            size = next(self._walk, None)
            if size is None:
                self._walk = None
                break
            self._walked_bytes += size
        return self.limits.exceeded("scratch_limit") if self._walked_bytes > self.limits.scratch_bytes else None


def _sizes(folder: str) -> Iterator[int]:
    """Yields what each entry below the folder takes on the disk; links are not followed."""
    pending = [folder]
    seen: set[tuple[int, int]] = set()
    while pending:
        try:
            entries = os.scandir(pending.pop())
        except OSError:
            continue
        with entries:
            for entry in entries:
                if mounts.begins_at(entry.path):
                    continue
                try:
                    found = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if stat.S_ISDIR(found.st_mode):
                    pending.append(entry.path)
                if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                    if (found.st_dev, found.st_ino) in seen:
                        continue
                    seen.add((found.st_dev, found.st_ino))
                yield found.st_blocks * 512


def _resident_bytes(pid: int) -> int:
    words = proctree.read(f"/proc/{pid}/statm").split()
    return int(words[1]) * _PAGE_BYTES if len(words) > 1 else 0


def _cpu_s(pid: int) -> float:
    """Returns the processor time of a process and of those of its children that it has waited for."""
    data = proctree.read(f"/proc/{pid}/stat")
    if not data:
        return 0.0
    words = data[data.rindex(b")") + 2 :].split()
    return sum(map(int, words[11:15])) / _TICKS


def as_of(pid: int) -> list[tuple[int, tuple[int, int]]]:
    """Returns the rlimits of those above that a process has and the calling one has not. Errors: OSError."""
    numbers = resource.RLIMIT_NOFILE, resource.RLIMIT_CPU, resource.RLIMIT_DATA
    found = [(number, resource.prlimit(pid, number)) for number in numbers]
    return [(number, pair) for number, pair in found if pair != resource.getrlimit(number)]


NOTHING = Limits()


def watched(groups: ControlGroups, key: str, limits: Limits, scratch: str, outputs: list[tuple[str, int]]) -> Watch:
    """Returns the watch of a task that is about to start, with control groups for it where there are any."""
    group = groups.group(key, memory_bytes=limits.memory_bytes, processes=limits.processes, cpu_s=limits.cpu_s)
    return Watch(limits, group, scratch, outputs)


def encode(limits: Limits) -> tuple[Any, ...]:
    """Returns what travels to the monitor: nothing if there is no limit."""
    return () if limits == NOTHING else tuple(limits)
