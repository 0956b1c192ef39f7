"""Ends a local cluster whose program died without a word (SIGKILL, a restarted notebook kernel).

It is told on its standard input, a line each: `agent PID STARTED`, `master PID STARTED`, `remove FOLDER`, `done`. When
the input ends without `done`, the program is gone, and the guard ends the processes and removes the folder. Run by
file name; standard library only, so that it is small and starts fast.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time

GRACE_S = 5.0


def started(pid: int) -> int:
    """Returns the start time of a living process as the kernel counts it; 0 if there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except (OSError, ValueError):
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def alive(processes: dict[int, int]) -> list[int]:
    """Returns the pids that are still the processes they were."""
    return [pid for pid, start in processes.items() if started(pid) == start]


def end(processes: dict[int, int]) -> None:
    """Ends them, by force after the grace time."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in alive(processes):
            os.kill(pid, number)
            os.kill(pid, signal.SIGCONT)
        deadline = time.monotonic() + GRACE_S
        while alive(processes) and time.monotonic() < deadline:
            time.sleep(0.05)


def main() -> None:
    """Listens until the input ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its program, not before
    known: dict[str, dict[int, int]] = {"agent": {}, "master": {}}
    folder = ""
    for line in sys.stdin:
        word, *rest = line.split(maxsplit=1)
        if word == "done":
            return
        if word in known:
            pid, start = rest[0].split()
            known[word][int(pid)] = int(start)
        elif word == "remove":
            folder = rest[0].strip()
    for processes in known.values():  # agents first: they say goodbye to the masters
        end(processes)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
