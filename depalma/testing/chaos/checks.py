"""The invariants I1 to I10, judged by what clients recorded and by what the cluster says in the end.

Each check returns sentences about what is broken; none is the good answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from depalma.model import FINAL_STATES, JobView
from depalma.testing.history import Operation
from depalma.testing.job_model import REFUSED, JobModel, with_finishes
from depalma.testing.linearizability import check

_WRITES = ("submit", "add", "close", "cancel")


def acknowledged(operations: Iterable[Operation]) -> list[Operation]:
    """Returns the writes that were answered and not refused."""
    return [one for one in operations if one.kind in _WRITES and one.known and not refused(one)]


def refused(operation: Operation) -> bool:
    """Returns whether the answer was a refusal."""
    return isinstance(operation.output, tuple) and operation.output[:1] == (REFUSED,)


def lost(operations: Sequence[Operation], jobs: Sequence[JobView]) -> list[str]:
    """I1: acknowledged writes that the jobs at the end do not show."""
    by_name = {job.name: job for job in jobs}
    found = []
    for one in acknowledged(operations):
        job = by_name.get(one.key)
        if job is None:
            found.append(f"I1: {one} was acknowledged, but there is no such job")
        elif one.kind == "add" and job.tasks.total < one.output + one.input:
            found.append(f"I1: {one} was acknowledged, but the job has {job.tasks.total} tasks")
        elif one.kind == "close" and job.open:
            found.append(f"I1: {one} was acknowledged, but the job is open")
        elif one.kind == "cancel" and one.output and (job.open or job.state not in FINAL_STATES):
            found.append(f"I1: {one} was acknowledged, but the job is {job.state}")
    return found


def doubled(jobs: Sequence[JobView]) -> list[str]:
    """I10: more than one job for one key."""
    counts = Counter(job.name for job in jobs)
    return [f"I10: {count} jobs for the key {name}" for name, count in counts.items() if count > 1]


def unfinished(operations: Sequence[Operation], jobs: Sequence[JobView]) -> list[str]:
    """I9: jobs whose tasks run and that have not ended."""
    work = {one.key for one in operations if one.kind == "submit" and one.input[1]}
    return [
        f"I9: {job.name} ({job.id}) is {job.state}"
        for job in jobs
        if job.name in work and job.state not in FINAL_STATES
    ]


def attempts_go_back(operations: Sequence[Operation]) -> list[str]:
    """I4: a read of a task that shows an earlier attempt than one that had ended before it began."""
    found = []
    reads = [one for one in operations if one.kind == "task" and one.known and not refused(one)]
    best: dict[str, list[Operation]] = {}
    for one in sorted(reads, key=lambda read: read.invoked_s):
        for before in best.setdefault(one.key, []):
            if before.returned_s < one.invoked_s and before.output[1] > one.output[1]:
                found.append(f"I4: {before}, then {one}")
        best[one.key].append(one)
    return found


def index_goes_back(operations: Sequence[Operation]) -> list[str]:
    """I6: a client that is shown an older state than before."""
    newest: dict[str, Operation] = {}
    found = []
    for one in sorted(operations, key=lambda call: call.invoked_s):
        if not one.known or one.index < 0:
            continue
        before = newest.get(one.client)
        if before is not None and one.index < before.index:
            found.append(f"I6: index {before.index}, then {one.index}: {before}, then {one}")
        if before is None or one.index >= before.index:
            newest[one.client] = one
    return found


def contradictions(operations: Sequence[Operation]) -> list[str]:
    """I7 (and I2: two results of one job contradict each other): histories that no order explains."""
    judged = [one for one in operations if one.kind != "task"]
    return [f"I7: {violation}" for violation in check(with_finishes(judged), JobModel()).violations]
