"""How one job answers, as a sequential machine: what the linearizability checker compares histories with. Pure.

Operations (key: the name that the client gave the job, which is also its request key):

    submit   (tasks, work)  → True                 `work`: its tasks run; otherwise it is open and held
    add      n              → index of the first of the n tasks: a fetch-and-add
    close    None           → True
    cancel   None           → whether the job was live
    read     None           → (tasks, open, final state or "")
    finish   final state    never answered: what agents do to a job whose tasks run, at a time that nobody recorded

A refusal (`job_closed`, `unknown_job`) is an answer too.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import NamedTuple

from depalma.testing.history import Operation

REFUSED = "refused"


class JobState(NamedTuple):
    """What can be told from outside. `state`: "", "cancelling" or a final state."""

    tasks: int = 0
    open: bool = False
    work: bool = False
    state: str = ""

    @property
    def final(self) -> bool:
        """Whether nothing can happen to it any more."""
        return self.state not in ("", "cancelling")


ABSENT = JobState()


class JobModel:
    """Implements `linearizability.Model`."""

    def initial(self, key: str) -> Hashable:
        """No such job."""
        return ABSENT

    def step(self, state: Hashable, operation: Operation) -> Hashable | None:
        """See the module."""
        assert isinstance(state, JobState)
        after, answer = perform(state, operation)
        return after if not operation.known or operation.output == answer else None


def perform(job: JobState, operation: Operation) -> tuple[JobState, object]:
    """The state after the operation, and its answer."""
    if operation.kind == "submit":
        tasks, work = operation.input
        return (job if job.tasks else JobState(tasks, not work, work)), True
    if not job.tasks:
        return job, None if operation.kind == "finish" else (REFUSED, "unknown_job")
    match operation.kind:
        case "read":
            return job, (job.tasks, job.open, job.state if job.final else "")
        case "add" if job.open:
            return job._replace(tasks=job.tasks + operation.input), job.tasks
        case "add":
            return job, (REFUSED, "job_closed")
        case "close":
            return job._replace(open=False), True
        case "cancel" if job.final:
            return job, False
        case "cancel":
            return job._replace(open=False, state="cancelling" if job.work else "cancelled"), True
        case "finish" if not job.final and (job.state == "cancelling" or operation.input == "succeeded"):
            return job._replace(state=operation.input), None
        case "finish":
            return job, None
    raise ValueError(f"unknown kind of operation: {operation}")


def with_finishes(operations: Iterable[Operation]) -> list[Operation]:
    """The history and, for each job whose tasks run, the endings that agents may have given it."""
    found = list(operations)
    for operation in list(found):
        if operation.kind == "submit" and operation.input[1]:
            found += [
                Operation("agents", "finish", operation.key, state, operation.invoked_s)
                for state in ("succeeded", "cancelled")
            ]
    return found
