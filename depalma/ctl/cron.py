"""`cron`: jobs that are submitted at times of day."""

from __future__ import annotations

from typing import Any

import click

from depalma.ctl.command import SubGroup
from depalma.ctl.output import Column, show_rows, show_value
from depalma.ctl.session import Session
from depalma.ctl.spec import build_spec, login_name, spec_options, stage_files
from depalma.ctl.wording import ago, clean, moment

_COLUMNS = (
    Column("NAME", lambda one: one["name"]),
    Column("CRON", lambda one: one["cron"]),
    Column("ZONE", lambda one: one["zone"]),
    Column("NEXT", lambda one: moment(one["next_at"])),
    Column("LAST JOB", lambda one: one["last_job"], right=True),
    Column("RUNS", lambda one: one["runs"], right=True),
    Column("SKIPPED", lambda one: one["skipped"], right=True),
    Column("COMMAND", lambda one: one["command"], cut=True),
    Column("CATCH-UP", lambda one: one["catch_up"], wide=True),
    Column("OVERLAP", lambda one: one["overlap"], wide=True),
    Column("BY", lambda one: one["by"], wide=True),
)


@click.group(
    "cron", cls=SubGroup, examples=("depalmactl cron ls", "depalmactl cron add nightly '0 3 * * *' -- ./backup")
)
def cron() -> None:
    """Submit jobs at times of day: exactly one a tick, whoever leads."""


@cron.command(
    "add",
    examples=(
        "depalmactl cron add nightly '0 3 * * *' --zone Europe/Berlin -- ./backup",
        "depalmactl cron add poll '*/5 * * * mon-fri' --overlap skip --timeout 10m -- ./poll",
    ),
)
@spec_options(files=True, array=True)
@click.option("--zone", default="UTC", show_default=True, metavar="ZONE", help="The time zone, like Europe/Berlin.")
@click.option(
    "--catch-up",
    type=click.Choice(("one", "all", "none")),
    default="one",
    show_default=True,
    metavar="POLICY",
    help="Of ticks missed without a leader: one job for all, one each (all), none.",
)
@click.option(
    "--overlap",
    type=click.Choice(("run", "skip")),
    default="run",
    show_default=True,
    metavar="POLICY",
    help="While its last job lives: run another, or skip the tick.",
)
@click.argument("schedule", metavar="NAME")
@click.argument("times", metavar="CRON")
@click.argument("words", nargs=-1, required=True, metavar="-- CMD ARG…", type=click.UNPROCESSED)
@click.pass_obj
def add(
    session: Session,
    /,
    schedule: str,
    times: str,
    words: tuple[str, ...],
    zone: str,
    catch_up: str,
    overlap: str,
    **options: Any,
) -> None:
    """Submit CMD as a job at each tick of CRON: MINUTE HOUR DAY MONTH WEEKDAY, or like @daily."""
    if options.get("after") or options.get("after_each"):
        raise click.UsageError("a schedule waits for no job: --after and --after-each are for single jobs")
    spec = build_spec(words, options, default_name=options.get("name") or schedule)
    stage_files(session, options, spec)
    view = session.post(
        "/v1/schedules",
        {
            "name": schedule,
            "cron": times,
            "job": spec,
            "zone": zone,
            "catch_up": catch_up,
            "overlap": overlap,
            "by": login_name(),
        },
    )
    if session.structured or session.output == "name":
        show_value(session, view, [], key="name")
    session.narrate(f"schedule {clean(view['name'])}: next at {moment(view['next_at'])}")


@cron.command("ls", examples=("depalmactl cron ls", "depalmactl cron ls -o wide"))
@click.pass_obj
def ls(session: Session) -> None:
    """List the schedules."""
    show_rows(session, session.get("/v1/schedules")["schedules"], _COLUMNS, key="name")


@cron.command("show", examples=("depalmactl cron show nightly",))
@click.argument("schedule", metavar="NAME")
@click.pass_obj
def show(session: Session, schedule: str) -> None:
    """Show one schedule."""
    view = session.get(_path(schedule))
    last = f"{moment(view['last_at'])} ({ago(view['last_at'])})" if view["last_at"] is not None else "-"
    lines = [
        ("Schedule", view["name"]),
        ("Cron", f"{view['cron']} ({view['zone']})"),
        ("Next", moment(view["next_at"])),
        ("Last", last),
        ("Last job", view["last_job"]),
        ("Runs", view["runs"]),
        ("Skipped", view["skipped"]),
        ("Catch-up", view["catch_up"]),
        ("Overlap", view["overlap"]),
        ("By", view["by"]),
        ("Command", view["command"]),
    ]
    show_value(session, view, [line for line in lines if line[1] not in (None, "")], key="name")


@cron.command("rm", examples=("depalmactl cron rm nightly",))
@click.argument("schedule", metavar="NAME")
@click.pass_obj
def remove(session: Session, schedule: str) -> None:
    """Remove a schedule; its jobs stay."""
    session.send("DELETE", _path(schedule))
    if session.structured or session.output == "name":
        show_value(session, {"name": schedule}, [], key="name")
    session.narrate(f"schedule {clean(schedule)}: removed")


def _path(name: str) -> str:
    from depalma.client.transport import segment

    return f"/v1/schedules/{segment(name)}"
