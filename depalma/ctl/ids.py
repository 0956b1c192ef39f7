"""How jobs and tasks are named on the command line: `42`, `42.7`, `40-45`, `last`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from depalma.ctl.values import AnyType

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from depalma.ctl.session import Session

_JOB = re.compile(r"^(?:last|[1-9][0-9]{0,17})$")
_TASK = re.compile(r"^(last|[1-9][0-9]{0,17})\.([0-9]{1,9})$")
_RANGE = re.compile(r"^([1-9][0-9]{0,17})-([1-9][0-9]{0,17})$")
MAX_RANGE = 100_000

#: A job (`42` or `last`) and perhaps the index of one task.
Target = tuple[str, int | None]


class JobType(AnyType):
    """One job: `42` or `last`."""

    name = "job"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not _JOB.match(value):
            self.fail(f"{value!r} is not a job (such as 42, or last)", param, ctx)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from depalma.ctl.completion import job_ids

        return job_ids(ctx, incomplete)


class TargetType(JobType):
    """One job or one task: `42`, `42.7`, `last`, `last.0`."""

    name = "job[.task]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        if _JOB.match(value):
            return value, None
        match = _TASK.match(value)
        if not match:
            self.fail(f"{value!r} is not a job or a task (such as 42, 42.7, or last)", param, ctx)
        return match.group(1), int(match.group(2))


class JobsType(JobType):
    """One job or a range of jobs; `resolve` makes a flat list of several such arguments."""

    name = "job"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        if _JOB.match(value):
            return [value]
        match = _RANGE.match(value)
        if not match:
            what = "a task; this takes whole jobs" if _TASK.match(value) else "a job (such as 42, 40-45, or last)"
            self.fail(f"{value!r} is {'' if _TASK.match(value) else 'not '}{what}", param, ctx)
        first, last = int(match.group(1)), int(match.group(2))
        if not first <= last < first + MAX_RANGE:
            self.fail(f"{value!r}: a range rises, by at most {MAX_RANGE:,} jobs", param, ctx)
        return [str(number) for number in range(first, last + 1)]


JOB = JobType()
TARGET = TargetType()
JOBS = JobsType()


def resolve(session: Session, arguments: tuple[list[str], ...]) -> list[int]:
    """Returns the job ids named, each once, in order; `last` is asked of the cluster."""
    ids: dict[int, None] = {}
    for argument in arguments:
        for name in argument:
            ids[job_id(session, name)] = None
    return list(ids)


def job_id(session: Session, name: str) -> int:
    """Returns the number of a job given as `42` or `last`."""
    if name != "last":
        return int(name)
    return int(session.get("/v1/jobs/last")["id"])
