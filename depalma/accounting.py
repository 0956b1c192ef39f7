"""What jobs used, for accounting: one row a job, and sums of rows. [pure]

Times are seconds of real time. What was reserved is counted, not what was measured: a task that asks for two CPUs and
runs for a minute has used 120 slot seconds, however busy it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

from msgspec import Struct

GroupBy = Literal["user", "tag", "host", "day"]
GROUPS: tuple[str, ...] = ("user", "tag", "host", "day")


class HostUse(Struct, frozen=True, array_like=True, gc=False):
    """What the tasks of a job used on one host, and how many of them ended there, and how."""

    host: str
    attempts: int = 0
    attempt_s: float = 0.0
    succeeded: int = 0
    failed: int = 0
    timed_out: int = 0
    cancelled: int = 0
    lost: int = 0
    ways_s: tuple[float, ...] = ()  #: of attempt_s, what ran as each of the job's alternatives; empty = nothing did
    slot_s: float = 0.0  #: these three are worked out when a row is made, they are not stored
    memory_byte_s: float = 0.0
    gpu_s: float = 0.0


class JobUse(Struct, frozen=True, kw_only=True):
    """One job: the fields are the columns of the export (docs/accounting.md)."""

    job: int
    name: str
    user: str
    tags: tuple[str, ...]
    group: str
    state: str
    submitted_at: float
    started_at: float | None
    finished_at: float | None
    wait_s: float  #: from submission to the first start, or to the end if nothing started
    run_s: float  #: from the first start to the end
    tasks: int
    succeeded: int
    failed: int
    timed_out: int
    cancelled: int
    lost: int
    attempts: int
    attempt_s: float  #: of all attempts together
    slot_s: float  #: time of attempts times the slots that each had
    memory_byte_s: float  #: time of attempts times the memory that each asked for
    gpu_s: float  #: time of attempts times the GPUs that each had
    hosts: tuple[HostUse, ...]


class GroupUse(Struct, kw_only=True):
    """Sums over the jobs of a group: a user, a tag, a host, or a day (UTC) on which they ended."""

    key: str
    jobs: int = 0
    wait_s: float = 0.0
    run_s: float = 0.0
    tasks: int = 0
    succeeded: int = 0
    failed: int = 0
    timed_out: int = 0
    cancelled: int = 0
    lost: int = 0
    attempts: int = 0
    attempt_s: float = 0.0
    slot_s: float = 0.0
    memory_byte_s: float = 0.0
    gpu_s: float = 0.0


_SUMMED = tuple(name for name in GroupUse.__struct_fields__ if name not in ("key", "jobs"))


def grouped(rows: Iterable[JobUse], by: GroupBy) -> list[GroupUse]:
    """Returns the sums, by key. A job with several tags is in the sums of each; without one, in that of an empty key.

    By host, tasks are counted where they ended, and what never left the queue is under an empty key; waiting and
    running times of jobs are not those of a host, and are 0.
    """
    sums: dict[str, GroupUse] = {}
    for row in rows:
        if by == "host":
            _add_hosts(sums, row)
            continue
        for key in _keys(row, by):
            group = sums.setdefault(key, GroupUse(key=key))
            group.jobs += 1
            for name in _SUMMED:
                setattr(group, name, getattr(group, name) + getattr(row, name))
    return sorted(sums.values(), key=lambda group: group.key)


def _keys(row: JobUse, by: GroupBy) -> tuple[str, ...]:
    if by == "user":
        return (row.user,)
    if by == "tag":
        return row.tags or ("",)
    return ("" if row.finished_at is None else f"{datetime.fromtimestamp(row.finished_at, UTC):%Y-%m-%d}",)


def _add_hosts(sums: dict[str, GroupUse], row: JobUse) -> None:
    total_s = row.attempt_s or 1.0
    mixed = any(use.ways_s for use in row.hosts)  # else all attempts had the same, and time tells it all
    for use in row.hosts:
        group = sums.setdefault(use.host, GroupUse(key=use.host))
        group.jobs += 1
        for name in ("succeeded", "failed", "timed_out", "cancelled", "lost"):
            number = getattr(use, name)
            group.tasks += number
            setattr(group, name, getattr(group, name) + number)
        group.attempts += use.attempts
        group.attempt_s += use.attempt_s
        share = use.attempt_s / total_s
        group.slot_s += use.slot_s if mixed else row.slot_s * share
        group.memory_byte_s += use.memory_byte_s if mixed else row.memory_byte_s * share
        group.gpu_s += use.gpu_s if mixed else row.gpu_s * share
