"""`hold`, `release`, `suspend`, `resume`, `retry`, `set`: how jobs that are there go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from depalma.ctl import ids
from depalma.ctl.command import command
from depalma.ctl.output import show_value
from depalma.ctl.session import Session
from depalma.ctl.spec import login_name
from depalma.ctl.wording import count, listed

_JOBS = click.argument("jobs", nargs=-1, required=True, type=ids.JOBS, metavar="JOB…")


@command("hold", examples=("depalmactl hold 42", "depalmactl hold 40-45 last"))
@_JOBS
@click.pass_obj
def hold(session: Session, jobs: tuple[list[str], ...]) -> None:
    """Start no further task of these jobs until they are released; what is on a host goes on."""
    _steer(session, "hold", jobs, "held", "were held or over already")


@command("release", examples=("depalmactl release 42", "depalmactl release 40-45"))
@_JOBS
@click.pass_obj
def release(session: Session, jobs: tuple[list[str], ...]) -> None:
    """Let held jobs go: after `hold`, or `submit --hold`."""
    _steer(session, "release", jobs, "released", "were not held")


@command("suspend", examples=("depalmactl suspend 42", "depalmactl suspend 40-45 --reason 'the file server is full'"))
@_JOBS
@click.option("--reason", metavar="TEXT", help="Why, for `show` and `explain`.")
@click.pass_obj
def suspend(session: Session, jobs: tuple[list[str], ...], reason: str | None) -> None:
    """Have these jobs stand still: what runs is stopped (SIGSTOP to all of its processes), nothing of them begins.

    Stopped tasks keep their memory and their place on the host; the time counts for no time limit of theirs. A
    suspended job can be cancelled.
    """
    _steer(session, "suspend", jobs, "suspended", "were suspended or over already", {"reason": reason})


@command("resume", examples=("depalmactl resume 42", "depalmactl resume 40-45"))
@_JOBS
@click.pass_obj
def resume(session: Session, jobs: tuple[list[str], ...]) -> None:
    """Let suspended jobs go on."""
    _steer(session, "resume", jobs, "resumed", "were not suspended")


@command("retry", examples=("depalmactl retry 42", "depalmactl retry last && depalmactl wait last"))
@_JOBS
@click.pass_obj
def retry(session: Session, jobs: tuple[list[str], ...]) -> None:
    """Run the tasks again that failed, timed out or were lost, and no others.

    The job goes on under its id, each task with its next attempt and all of its retries. A cancelled job is refused.
    """
    _steer(session, "retry", jobs, "retried", "have no failed task")


@command(
    "set",
    examples=("depalmactl set 42 --priority 10", "depalmactl set 40-45 --tag exp2 --name sweep"),
)
@click.option("--priority", type=int, metavar="N", help="Higher runs first.")
@click.option("--name", metavar="NAME", help="A name for people.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="The tags from now on; may be repeated.")
@click.option("--no-tags", is_flag=True, help="No tags from now on.")
@_JOBS
@click.pass_context
def set_command(
    ctx: click.Context,
    jobs: tuple[list[str], ...],
    priority: int | None,
    name: str | None,
    tags: tuple[str, ...],
    no_tags: bool,
) -> None:
    """Change jobs that wait or run. Tasks that are on a host stay there."""
    session = ctx.find_object(Session)
    assert session is not None
    if tags and no_tags:
        raise click.UsageError("--tag or --no-tags, not both", ctx)
    changes = {"priority": priority, "name": name, "tags": list(tags) if tags or no_tags else None}
    if all(value is None for value in changes.values()):
        raise click.UsageError("nothing to change: give --priority, --name, --tag or --no-tags", ctx)
    _steer(session, "set", jobs, "changed", "are over", changes)


def _steer(
    session: Session,
    verb: str,
    jobs: tuple[list[str], ...],
    done: str,
    others: str,
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Does it to all of the jobs, or to none if one is unknown; prints the ids of those that changed."""
    numbers = ids.resolve(session, jobs)
    body = {"jobs": numbers, "by": login_name(), **{k: v for k, v in (changes or {}).items() if v is not None}}
    changed: Sequence[int] = session.post(f"/v1/jobs/{verb}", body)["changed"]
    rest = sorted(set(numbers) - set(changed))
    if session.structured:
        show_value(session, {"changed": changed, "unchanged": rest}, [], key="changed")
        return
    for number in changed:
        click.echo(number)
    if changed:
        session.narrate(f"{count(len(changed), 'job')} {done}")
    if rest:
        session.narrate(f"{others}: {listed(rest, limit=20)}")
