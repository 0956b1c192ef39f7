"""The masters and agents on this machine, of whichever cluster: what they use is nobody's who works here.

They are known by the words they were started with. Who gives a program of his own such a name has it overlooked by the
owner's limit, and nothing else.
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from depalma.agent.proctree import descendants, read

_MODULES = (b"depalma.master", b"depalma.remote", b"depalma.testing.chaos.small_master")
_PROGRAMS = (b"depalma-master", b"depalma-agent")
_AGENTS = (b"depalma.remote", b"depalma-agent")
_MONITOR = b"/depalma/monitor.py"
#: New ones are looked for so often, and it takes at most this share of one CPU.
_SCAN_S = 2.0
_SHARE = 0.005


class _Process(NamedTuple):
    pid: int
    start: bytes  #: in ticks since boot, which tells a number that was given to another process


class Ticks(NamedTuple):
    """What was used since the look before."""

    daemons: int  #: by masters, agents and their monitors themselves
    below: int  #: by the tasks of agents


class Daemons:
    """Counts what they use."""

    def __init__(self) -> None:
        self._found: dict[_Process, bool] = {}  #: whether it is an agent
        self._used: dict[_Process, tuple[int, int]] = {}
        self._scan_s = 0.0

    def used(self, *, without: int = 0) -> Ticks:
        """Returns what they have used since the last call. The agent `without`, and what is below it, do not count."""
        self._scan()
        before, self._used = self._used, {}
        own = below = 0
        for process, is_agent in list(self._found.items()):
            words = _stat(process.pid)
            if not words or words[19] != process.start:
                del self._found[process]  # its last ticks are lost: less than a look's worth
                continue
            if without in (process.pid, int(words[1])):
                continue
            now = (int(words[11]) + int(words[12]), _below(process.pid, words) if is_agent else 0)
            then = before.get(process, now)
            self._used[process] = now
            own += max(0, now[0] - then[0])
            below += max(0, now[1] - then[1])
        return Ticks(own, below)

    def _scan(self) -> None:
        if time.monotonic() < self._scan_s:
            return
        began_cpu_s = time.thread_time()  # what the scan waits for a processor is no cost of it
        for name in os.listdir("/proc"):
            if name.isdigit() and (kind := _kind(read(f"/proc/{name}/cmdline").split(b"\0"))):
                words = _stat(int(name))
                if words:
                    self._found.setdefault(_Process(int(name), words[19]), kind == "agent")
        self._scan_s = time.monotonic() + max(_SCAN_S, (time.thread_time() - began_cpu_s) / _SHARE)


def _kind(words: list[bytes]) -> str:
    """Returns whether these are the words of an agent, of another process of ours, or (empty) of neither."""
    for place, word in enumerate(words[:4]):
        if word.endswith(_MONITOR):
            return "monitor"
        name = words[place + 1] if word == b"-m" and place + 1 < len(words) else word.rpartition(b"/")[2]
        if name in (_MODULES if word == b"-m" else _PROGRAMS):
            return "agent" if name in _AGENTS else "master"
    if len(words) > 2 and words[1].endswith(b"/bin/run.py") and words[2] in (b"master", b"agent"):
        return words[2].decode()
    return ""


def _stat(pid: int) -> list[bytes]:
    """Returns the fields of a process from its state on; empty if it is gone."""
    data = read(f"/proc/{pid}/stat")
    words = data[data.rfind(b")") + 2 :].split()
    return words if len(words) > 19 else []


def _below(pid: int, words: list[bytes]) -> int:
    """Returns the ticks of everything below an agent, monitors aside: they are counted as what they are."""
    used = int(words[13]) + int(words[14])
    for child, _ in descendants(pid):
        found = _stat(child)
        if not found:
            continue
        used += int(found[13]) + int(found[14])
        if _kind(read(f"/proc/{child}/cmdline").split(b"\0")) != "monitor":
            used += int(found[11]) + int(found[12])
    return used
