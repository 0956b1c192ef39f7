"""Names that say which run made a thing, so that what a killed run left behind is found and removed by the next.

A mark holds the pid and the start time of the run's process: a pid alone is used again some day.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

PREFIX = "dpc-"
_MARK = re.compile(rf"{PREFIX}(\d+)-(?:(\d+)-)?")  # earlier releases left the start time out


def mark(pid: int | None = None) -> str:
    """Returns what every name begins with that this process (or that one) makes. Errors: ProcessLookupError."""
    pid = os.getpid() if pid is None else pid
    return f"{PREFIX}{pid}-{_started(pid)}-"


def is_own(name: str) -> bool:
    """Returns whether this process made it."""
    return name.startswith(mark())


def is_left_over(name: str) -> bool:
    """Returns whether a run made it whose process is gone."""
    found = _MARK.match(name)
    if found is None:
        return False
    try:
        started = _started(int(found[1]))
    except ProcessLookupError:
        return True
    return found[2] is not None and started != int(found[2])


def _started(pid: int) -> int:
    """Returns when a process started, in clock ticks since the machine did; a zombie counts as gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(pid) from None
    if fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return int(fields[19])
