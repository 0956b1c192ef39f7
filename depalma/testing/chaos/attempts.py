"""What every attempt of many tasks wrote down, compared with what the cluster recorded of it.

Each line of the witness file is a sign of life: `WORD TASK ATTEMPT PID SECONDS`, by the machine's clock since boot.
The words: `start` and `stop` of the main process, `born` of one that it leaves behind, `alive`, and `held`: an attempt
began while a process of an earlier one had not ended, which the task's lock tells exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from depalma.model import TaskView
from depalma.testing.chaos import work
from depalma.testing.chaos.work import Life


@dataclass(frozen=True, slots=True)
class Sign:
    """One sign of life."""

    word: str
    task: str
    attempt: int
    pid: int
    at_s: float


def signs(file: Path) -> list[Sign]:
    """Reads a witness file. A line that was cut by a kill is left out."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else []:
        words = line.split()
        if len(words) == 5:
            found.append(Sign(words[0], words[1], int(words[2]), int(words[3]), float(words[4])))
    return found


def lives(found: Iterable[Sign]) -> list[Life]:
    """Returns the attempts, each from the first to the last sign of life of any of its processes."""
    whole: dict[tuple[str, int], Life] = {}
    for sign in found:
        life = whole.get((sign.task, sign.attempt)) or Life(sign.task, sign.attempt, sign.pid, sign.at_s, sign.at_s)
        began_s, ended_s = min(life.began_s, sign.at_s), max(life.ended_s, sign.at_s)
        whole[sign.task, sign.attempt] = replace(life, began_s=began_s, ended_s=ended_s)
    return list(whole.values())


def overlapping(found: Sequence[Sign]) -> list[str]:
    """I3: two attempts of one task that lived at the same time, and an attempt that was started twice."""
    broken = [f"I3: {one} and {other}" for one, other in work.overlaps(lives(found))]
    held = {(sign.task, sign.attempt) for sign in found if sign.word == "held"}
    broken += [f"I3: attempt {number} of {task} began while an earlier one lived" for task, number in sorted(held)]
    starts = Counter((sign.task, sign.attempt) for sign in found if sign.word == "start")
    twice = {key: count for key, count in starts.items() if count > 1}
    return broken + [f"I3: attempt {number} of {task} began {count} times" for (task, number), count in twice.items()]


def misrecorded(found: Sequence[Sign], tasks: Sequence[TaskView], once: set[int]) -> list[str]:
    """I2, I4: each task has one success, of an attempt that ran to its end, and the newest; nothing else ran. Tasks of
    the jobs in `once` may not run again: these may be lost instead."""
    stopped = {(sign.task, sign.attempt) for sign in found if sign.word == "stop"}
    began: dict[str, set[int]] = {}
    for sign in found:
        began.setdefault(sign.task, set()).add(sign.attempt)
    broken = []
    for task in tasks:
        ran, successes = began.get(task.id, set()), [one.number for one in task.attempts if one.state == "succeeded"]
        if task.job in once and len(ran) > 1:
            broken.append(f"I3: {task.id} may run once and ran {len(ran)} times")
        if task.job in once and task.state == "lost":
            continue
        if task.state != "succeeded" or successes != [task.attempt]:
            broken.append(f"I2: {task.id} is {task.state} at attempt {task.attempt}, successes: {successes}")
        elif (task.id, task.attempt) not in stopped:
            broken.append(f"I2: {task.id} succeeded with attempt {task.attempt}, which did not run to its end")
        elif max(ran) > task.attempt:
            broken.append(f"I4: {task.id} succeeded with attempt {task.attempt}, but attempt {max(ran)} ran")
    unknown = began.keys() - {task.id for task in tasks}
    return broken + [f"I1: {task} ran, but there is no such task" for task in sorted(unknown)]


def outlived_s(found: Sequence[Sign], tasks: Sequence[TaskView], boot_at: float) -> dict[str, float]:
    """Returns for how many seconds each attempt showed signs of life after its recorded end, if it did. `boot_at`: when
    the machine started, by the wall clock that the records use."""
    ends = {
        (task.id, one.number): one.finished_at - boot_at
        for task in tasks
        for one in task.attempts
        if one.finished_at is not None
    }
    late = {
        f"attempt {life.attempt} of {life.task}": life.ended_s - ends[life.task, life.attempt]
        for life in lives(found)
        if (life.task, life.attempt) in ends
    }
    return {what: seconds for what, seconds in late.items() if seconds > work.RESOLUTION_S}
