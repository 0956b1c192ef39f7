"""The program of tasks that really run: it writes down when it lived, so that two lives of one task can be seen.

All hosts of a chaos run are namespaces of one machine and share its clock (`/proc/uptime`, 10 ms), so the times
compare exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

#: what the kernel's clock can tell apart
RESOLUTION_S = 0.01
_SCRIPT = """\
say() { read up _ </proc/uptime; echo "$1 $DEPALMA_JOB_ID.$DEPALMA_TASK_INDEX $DEPALMA_ATTEMPT $$ $up" >>"$0"; }
say start
for i in 1 2 3 4; do sleep 0.05; say alive; done
say stop
"""


@dataclass(frozen=True, slots=True)
class Life:
    """One process of a task, from its first to its last sign of life."""

    task: str
    attempt: int
    pid: int
    began_s: float
    ended_s: float

    @property
    def job(self) -> int:
        """The job's id."""
        return int(self.task.partition(".")[0])


def command(diary: Path) -> list[str]:
    """Returns a command that runs for about 0.2 s and writes to the diary."""
    return ["/bin/sh", "-c", _SCRIPT, str(diary)]


def lives(diary: Path) -> list[Life]:
    """Reads the diary. A line that was cut by a kill is left out."""
    found: dict[tuple[str, int, int], Life] = {}
    for line in diary.read_text().splitlines() if diary.exists() else []:
        words = line.split()
        if len(words) != 5:
            continue
        task, attempt, pid, at_s = words[1], int(words[2]), int(words[3]), float(words[4])
        before = found.get((task, attempt, pid))
        found[task, attempt, pid] = Life(task, attempt, pid, before.began_s if before else at_s, at_s)
    return list(found.values())


def overlaps(found: Iterable[Life]) -> list[tuple[Life, Life]]:
    """Returns pairs of lives of one task that were alive at the same time."""
    by_task: dict[str, list[Life]] = {}
    for life in sorted(found, key=lambda one: one.began_s):
        by_task.setdefault(life.task, []).append(life)
    return [
        (earlier, later)
        for lives_of_task in by_task.values()
        for i, earlier in enumerate(lives_of_task)
        for later in lives_of_task[i + 1 :]
        if later.began_s < earlier.ended_s - RESOLUTION_S
    ]
