"""`add`, `close`: open jobs, to which tasks are added while they run."""

from __future__ import annotations

import click

from depalma.ctl import ids
from depalma.ctl.command import Command, command
from depalma.ctl.output import show_value
from depalma.ctl.session import Session
from depalma.ctl.submit import SEPARATORS, arguments_of, payload_of, separator
from depalma.ctl.wording import count


class _Add(Command):
    """Options count up to `:::`, wherever they stand; what is behind it are words."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = separator(args)
        return super().parse_args(ctx, [*args[:at], *(["--"] if at < len(args) else []), *args[at:]])


@command(
    "add",
    cls=_Add,
    examples=(
        "depalmactl add 42 ::: c.png d.png",
        "find /data -name '*.png' | depalmactl add --close 42",
    ),
)
@click.option("--close", "closes", is_flag=True, help="Close the job afterwards.")
@click.argument("job", type=ids.JOB, metavar="JOB")
@click.argument("words", nargs=-1, metavar="[::: A B C | :::: FILE…]", type=click.UNPROCESSED)
@click.pass_context
def add(ctx: click.Context, /, job: str, words: tuple[str, ...], closes: bool) -> None:
    """Add a task to an open job for each argument after `:::`, for each line of the files after `::::`, or of stdin.

    Prints the ids of the first and the last one. An open job is made by `map --open`.
    """
    session = ctx.find_object(Session)
    assert session is not None
    if words and words[0] not in SEPARATORS:
        raise click.UsageError("put ::: before the arguments: depalmactl add JOB ::: A B C", ctx)
    arguments = arguments_of(ctx, words)
    number = ids.job_id(session, job)
    body = {"arguments": payload_of(session, arguments), "count": len(arguments)}
    first = int(session.post(f"/v1/jobs/{number}/tasks", body)["first"])
    last = first + len(arguments) - 1
    if closes:
        session.post(f"/v1/jobs/{number}/close", {})
    show_value(session, {"job": number, "first": first, "last": last}, [], key="first")
    if not session.structured and session.output != "name":
        click.echo(f"{number}.{first} {number}.{last}")
        session.narrate(
            f"added {count(len(arguments), 'task')} to job {number}{', which is closed now' if closes else ''}"
        )


@command("close", examples=("depalmactl close 42",))
@click.argument("job", type=ids.JOB, metavar="JOB")
@click.pass_obj
def close(session: Session, job: str) -> None:
    """Say that an open job gets no more tasks: it ends when those that it has are over."""
    number = ids.job_id(session, job)
    session.post(f"/v1/jobs/{number}/close", {})
    if session.structured or session.output == "name":
        show_value(session, {"job": number}, [], key="job")
    session.narrate(f"job {number} is closed")
