"""What the operating system says about this host and about the processes of tasks."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable

import psutil

import depalma
from depalma.model import HostFacts, ProcessView

#: What is limited, in the order in which it is shown, and how where no control group does it.
_LIMITED = {
    "memory": "measured",
    "processes": "measured",
    "cpu time": "measured",
    "files": "rlimit",
    "output": "measured",
    "scratch": "measured",
    "kill": "process tree",
}


def describe_limits(by_groups: dict[str, str]) -> str:
    """Returns how tasks are limited here, for people, from what the monitor could get of control groups."""
    return ", ".join(f"{what}: {by_groups.get(what, other)}" for what, other in _LIMITED.items())


def facts(slots: int, gpus: int, address: str) -> HostFacts:
    """Returns what does not change while the agent runs. An empty `address`: that of each connection is told."""
    return HostFacts(
        slots=slots,
        cpus=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        gpus=gpus,
        version=depalma.__version__,
        python=python_version(),
        address=address,
    )


def python_version() -> str:
    """Returns `3.11`."""
    return ".".join(platform.python_version_tuple()[:2])


def printable(text: str) -> str:
    """Returns the text with whatever is not Unicode escaped: file names and arguments are bytes, frames are not."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


class ProcessTable:
    """Looks at processes by their ids; remembers them, so that the next look knows their CPU use since this one."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._known: dict[int, psutil.Process] = {}

    def look(self, tasks: Iterable[tuple[str, list[int]]]) -> list[ProcessView]:
        """Returns one view a process that is still there (blocks: it reads /proc)."""
        views, known = [], {}
        for task, pids in tasks:
            for pid in pids:
                try:
                    process = self._process(pid)
                    views.append(self._view(task, process))
                    known[pid] = process
                except psutil.Error:
                    continue
        self._known = known
        return views

    def _process(self, pid: int) -> psutil.Process:
        known = self._known.get(pid)
        return known if known is not None and known.is_running() else psutil.Process(pid)

    def _view(self, task: str, process: psutil.Process) -> ProcessView:
        first = process.pid not in self._known
        with process.oneshot():
            elapsed_s = max(0.0, time.time() - process.create_time())
            percent = process.cpu_percent(interval=None)
            if first and elapsed_s > 0:
                times = process.cpu_times()
                percent = 100 * (times.user + times.system) / elapsed_s
            return ProcessView(
                task=task,
                host=self._host,
                pid=process.pid,
                ppid=process.ppid() or 0,
                user=process.username(),
                state=process.status(),
                cpu_percent=round(percent, 1),
                rss_bytes=process.memory_info().rss,
                threads=process.num_threads(),
                elapsed_s=round(elapsed_s, 2),
                command=printable(" ".join(process.cmdline())[:4096] or f"[{process.name()}]"),
            )
