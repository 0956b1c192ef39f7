"""`--after` and `--after-each`: what a job waits for."""

from __future__ import annotations

import re
from typing import Any

import click

from depalma.ctl import ids
from depalma.ctl.session import Session
from depalma.ctl.values import AnyType

_AFTER = re.compile(r"^(last|[1-9][0-9]{0,17})(?::(ok|fail|any))?$")


class AfterType(AnyType):
    """`42`, `42:fail`, `last:any`: a job, and how it has to end."""

    name = "after"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        match = _AFTER.match(value)
        if not match:
            self.fail(f"{value!r} is not a job and its end (such as 42, 42:ok, 42:fail, last:any)", param, ctx)
        return match.group(1), match.group(2) or "ok"


AFTER = AfterType()
OPTIONS = (
    click.option(
        "--after", multiple=True, type=AFTER, metavar="JOB[:ok|fail|any]", help="Wait for that job's end. Repeatable."
    ),
    click.option(
        "--after-each",
        multiple=True,
        type=AFTER,
        metavar="JOB[:ok|fail|any]",
        help="Each task waits for that job's task of equal index. Repeatable.",
    ),
)


def put_after(session: Session, spec: dict[str, Any], options: dict[str, Any]) -> None:
    """Puts what the options say into the specification; `last` is asked of the cluster."""
    named = [(*one, False) for one in options.get("after") or ()] + [
        (*one, True) for one in options.get("after_each") or ()
    ]
    if named:
        spec["after"] = [{"job": ids.job_id(session, job), "when": when, "each": each} for job, when, each in named]
