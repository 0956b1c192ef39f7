"""How much of what is counted (slots, GPUs, memory, resources) the tasks of a user, a group or a tag may have at once,
in the whole cluster. [pure]

What limits are for the number of tasks (`limits.py`), quotas are for what they take. The quota of the user `*` is that
of every user who has none of his own. What is in use is counted only while there are quotas, and again when the first
one is set.
"""

from __future__ import annotations

from collections.abc import Iterable

from depalma.gpuparts import WHOLE
from depalma.model import MAX_TASKS
from depalma.state.jobs import Job
from depalma.state.limits import EVERYBODY, tags_of
from depalma.state.shapes import GPUS, MEMORY, Shape, shown
from depalma.state.ways import on_hosts

SLOTS = "slots"
#: Whose quota it is: kind (tag, user or group) and name.
Holder = tuple[str, str]
Amounts = dict[str, float]


class Quotas:
    """The quotas that were set, and what is in use under each holder (derived)."""

    __slots__ = ("most", "used")

    def __init__(self) -> None:
        self.most: dict[Holder, Amounts] = {}
        self.used: dict[Holder, Amounts] = {}

    def __bool__(self) -> bool:
        return bool(self.most)

    def of(self, holder: Holder) -> Amounts:
        """Returns the quota that holds for a tag, a user or a group; empty if there is none."""
        if holder[0] == "user" and holder not in self.most:
            return self.most.get(("user", EVERYBODY), {})
        return self.most.get(holder, {})

    def room(self, holders: Iterable[Holder], shape: Shape, placed: dict[Holder, Amounts] | None = None) -> int:
        """Returns how many more tasks of the shape may start now. `placed`: what has been given since it was
        counted."""
        room = MAX_TASKS
        for holder in holders:
            for name, most in self.of(holder).items():
                need = amount(shape, name)
                if need:
                    used = self.used.get(holder, {}).get(name, 0)
                    used += placed.get(holder, {}).get(name, 0) if placed else 0
                    room = min(room, max(0, int((in_units(name, most) - used) / need)))
        return room

    def count(self, job: Job, shape: Shape, tasks: int) -> None:
        """Notes that so many more tasks of the job are on hosts, that take what the shape says."""
        if not self.most:
            return
        for holder in holders_of(job):
            add(self.used, holder, shape, tasks)

    def recount(self, jobs: Iterable[Job]) -> None:
        """Counts anew what all jobs have on hosts."""
        self.used = {}
        for job in jobs:
            for shape, tasks in on_hosts(job) if job.counted else ():
                self.count(job, shape, tasks)


def holders_of(job: Job) -> list[Holder]:
    """Returns under whose quotas the tasks of a job are."""
    spec = job.spec
    holders = [("user", spec.user), *(("tag", tag) for tag in tags_of(job))]
    return [*holders, ("group", spec.group)] if spec.group else holders


def amount(shape: Shape, name: str) -> float:
    """Returns how much of something a task of the shape takes, hundredths of GPUs."""
    return shape.weight if name == SLOTS else dict(shape.needs).get(name, 0)


def add(used: dict[Holder, Amounts], holder: Holder, shape: Shape, tasks: int) -> None:
    """Adds what so many tasks take; nothing is left behind at zero."""
    amounts = used.setdefault(holder, {})
    for name, number in ((SLOTS, shape.weight), *shape.needs):
        amounts[name] = amounts.get(name, 0) + number * tasks
        if not amounts[name]:
            del amounts[name]
    if not amounts:
        del used[holder]


def in_units(name: str, most: float) -> float:
    """Returns what a quota says as it is counted: of GPUs in hundredths, which are whole numbers."""
    return int(most * WHOLE * (1 + 1e-12)) if name == GPUS else most  # 0.29 * 100 is a little less than 29


def in_words(name: str, number: float) -> str:
    """Returns an amount, as it is counted, for people."""
    if name == MEMORY:
        return f"{figure(number)} bytes of memory"
    return f"{figure(shown(name, number))} {'GPUs' if name == GPUS else name}"


def figure(number: float) -> str:
    """Returns a number, whole ones with all their digits."""
    return str(int(number)) if number == int(number) else f"{number:g}"
