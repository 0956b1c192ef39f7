"""Tasks that hide as well as they can, and the file in which each of their processes says that it lives.

A task is a tree: its own shell, a session of its own, a daemon that forked twice, one without a name in its
environment, one that never has the same process id for long. All ignore SIGTERM. Each line of the file is one sign of
life: `WORD TASK ATTEMPT PID SECONDS`, by the machine's clock since boot, which all namespaces share.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from depalma.testing.chaos.work import Life, lives, overlaps

#: processes of one task that say which task it is; one more hops from process id to process id
SAYING = 4
_SAY = """\
trap '' TERM HUP INT
say() { read up _ </proc/uptime; echo "$1 $task $attempt $$ $up" >>"$0"; }
task=$1 attempt=$2 flag=$3
say start
while [ ! -e "$flag" ]; do sleep 0.1; say alive; done
say stop
"""
_HOP = """\
import os, sys, time
end = sys.argv[2]
while not os.path.exists(end):
    if os.fork():
        os._exit(0)
    os.setsid()
    time.sleep(0.001)
"""
_SCRIPT = """\
trap '' TERM
set -- "$DEPALMA_JOB_ID.$DEPALMA_TASK_INDEX" "$DEPALMA_ATTEMPT" "$1" "$2" "$3" "$4"
setsid sh -c "$4" "$0" "$1" "$2" "$3" &
(setsid sh -c "$4" "$0" "$1" "$2" "$3" &) &
(env -i "PATH=$PATH" sh -c "$4" "$0" "$1" "$2" "$3" &)
("$6" -S -c "$5" "$0" "$3" &)
exec sh -c "$4" "$0" "$1" "$2" "$3"
"""


def command(file: Path, flag: Path) -> list[str]:
    """Returns a command whose whole tree lives until `flag` exists."""
    return ["/bin/sh", "-c", _SCRIPT, str(file), str(flag), _SAY, _HOP, sys.executable]


def attempts(file: Path) -> list[Life]:
    """Returns the attempts of all tasks, each from the first to the last sign of life of any of its processes."""
    whole: dict[tuple[str, int], Life] = {}
    for life in lives(file):
        seen = whole.get((life.task, life.attempt), life)
        whole[life.task, life.attempt] = replace(
            seen, began_s=min(seen.began_s, life.began_s), ended_s=max(seen.ended_s, life.ended_s)
        )
    return list(whole.values())


def overlapping(file: Path) -> list[tuple[Life, Life]]:
    """Returns the pairs of attempts of one task that lived at the same time."""
    return overlaps(attempts(file))


def gaps_s(file: Path) -> list[float]:
    """Returns how long each task was dead between two attempts, in seconds."""
    by_task: dict[str, list[Life]] = {}
    for life in sorted(attempts(file), key=lambda one: one.attempt):
        by_task.setdefault(life.task, []).append(life)
    return [later.began_s - earlier.ended_s for one in by_task.values() for earlier, later in pairwise(one)]


def living(file: Path, namespace: int = 0) -> list[str]:
    """Returns the task of each process of witnesses of this file, on one host (a namespace's number) or on all; a
    process that does not say which task it is counts too, as an empty name."""
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if os.fsencode(file) in words and _alive(pid) and namespace in (0, os.stat(f"/proc/{pid}/ns/net").st_ino):
                after = words[words.index(os.fsencode(file)) + 1]
                found.append(after.decode() if b"/" not in after else "")
        except OSError:
            continue
    return found


def _alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat").read_text()
    return status[status.rindex(")") + 2] not in "ZX"


def describe(pairs: Iterable[tuple[Life, Life]]) -> list[str]:
    """Returns what is broken, in words."""
    return [f"I3: {one} and {other}" for one, other in pairs]
