"""`accounting`: what jobs used, for spreadsheets and bills."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from depalma.ctl.command import command
from depalma.ctl.moments import PAST
from depalma.ctl.output import Column, print_json, show_rows
from depalma.ctl.session import FORMATS, Session
from depalma.ctl.wording import clean, duration, moment

if TYPE_CHECKING:
    from depalma.accounting import JobUse

_GROUPS = ("job", "user", "tag", "host", "day")
_NUMBERS = (
    "wait_s", "run_s", "tasks", "succeeded", "failed", "timed_out", "cancelled", "lost", "attempts", "attempt_s",
    "slot_s", "memory_byte_s", "gpu_s",
)  # fmt: skip
#: The columns of the export: a promise, see docs/accounting.md. New ones come at the end.
JOB_COLUMNS = (
    "job", "name", "user", "tags", "group", "state", "submitted_at", "started_at", "finished_at", *_NUMBERS, "hosts",
)  # fmt: skip
_USED = (
    Column("TASKS", lambda row: row["tasks"], right=True),
    Column("OK", lambda row: row["succeeded"], right=True),
    Column("FAILED", lambda row: row["failed"] + row["timed_out"], right=True),
    Column("LOST", lambda row: row["lost"], right=True, wide=True),
    Column("CANCELLED", lambda row: row["cancelled"], right=True, wide=True),
    Column("ATTEMPTS", lambda row: row["attempts"], right=True),
    Column("WAITED", lambda row: duration(row["wait_s"]), right=True),
    Column("RAN", lambda row: duration(row["run_s"]), right=True),
    Column("SLOT TIME", lambda row: duration(row["slot_s"]), right=True),
    Column("GIB HOURS", lambda row: f"{row['memory_byte_s'] / 2**30 / 3600:.2f}", right=True, wide=True),
    Column("GPU TIME", lambda row: duration(row["gpu_s"]), right=True, wide=True),
)
_OF_JOB = (
    Column("JOB", lambda row: row["job"], right=True),
    Column("STATE", lambda row: row["state"]),
    Column("NAME", lambda row: row["name"], cut=True),
    Column("USER", lambda row: row["user"]),
    Column("FINISHED", lambda row: moment(row["finished_at"]), wide=True),
    *_USED,
)


@command(
    "accounting",
    examples=(
        "depalmactl accounting --since 2026-11-01 --until 2026-12-01 --group-by user",
        "depalmactl accounting --since 30d -o csv > november.csv",
        "depalmactl accounting --since 1d --tag exp1 -o jsonl | jq .slot_s",
        "depalmactl accounting --group-by day --user ann",
    ),
)
@click.option("--since", type=PAST, metavar="TIME", help="Jobs that ended then or later: 2d, 03:00, 2026-11-27.")
@click.option("--until", type=PAST, metavar="TIME", help="Jobs that ended before.")
@click.option("--user", metavar="USER", help="Only of this user.")
@click.option("--tag", metavar="TAG", help="Only with this tag.")
@click.option("--name", metavar="NAME", help="Only of this name; *, ? and [...] stand for others.")
@click.option("--unfinished", is_flag=True, help="Also jobs that have not ended, with what they used so far.")
@click.option("--group-by", type=click.Choice(_GROUPS), default="job", show_default=True, help="Sum up by this.")
@click.option(
    "-o", "--output", "output_format", type=click.Choice((*FORMATS, "csv")), metavar="FORMAT",
    allow_from_autoenv=False, help=f"How to print data: {', '.join(FORMATS)}, csv.",
)  # fmt: skip
@click.pass_obj
def accounting(session: Session, /, group_by: str, output_format: str | None, **filters: Any) -> None:
    """Export what jobs used: tasks and their outcomes, attempts, waiting and running time, slots, memory, GPUs.

    Live and archived jobs alike, newest first, printed as they come. A job counts for the time in which it ended.
    The columns are described in docs/accounting.md.
    """
    if filters["unfinished"] and filters["until"] is not None:
        raise click.UsageError("--unfinished is for the time up to now, not with --until")
    if output_format is not None:
        session.output = output_format
    notes: list[str] = []
    found = _pages(session, filters, notes)
    if group_by == "job":
        _print_jobs(session, found)
    else:
        _print_groups(session, found, group_by)
    for note in notes:
        session.narrate(f"note: {clean(note)}")


def _pages(session: Session, filters: Mapping[str, Any], notes: list[str]) -> Iterator[list[JobUse]]:
    from depalma.client import accounting_verbs

    params = {**filters, "unfinished": "1" if filters["unfinished"] else None}
    while True:
        page = session.run(accounting_verbs.page(params))
        yield page.rows
        if page.next is None:
            notes += page.notes
            return
        params["before"] = page.next


def _print_jobs(session: Session, pages: Iterable[list[JobUse]]) -> None:
    import msgspec

    if session.output == "csv":
        _write_csv(JOB_COLUMNS, ([_csv_row(row) for row in page] for page in pages))
        return
    rows = (msgspec.to_builtins(_plain(row)) for page in pages for row in page)
    if session.output == "jsonl":
        for row in rows:
            print_json(row)
    else:
        show_rows(session, list(rows), _OF_JOB, key="job")


def _print_groups(session: Session, pages: Iterable[list[JobUse]], by: Any) -> None:
    import msgspec

    from depalma.accounting import grouped

    rows = []
    for group in grouped((row for page in pages for row in page), by):
        values = msgspec.to_builtins(group)
        rows.append({by: values.pop("key")} | {name: _rounded(value) for name, value in values.items()})
    if session.output == "csv":
        _write_csv((by, "jobs", *_NUMBERS), [[[row[name] for name in (by, "jobs", *_NUMBERS)] for row in rows]])
        return
    columns = (
        Column(by.upper(), lambda row: row[by] or "(none)"),
        Column("JOBS", lambda row: row["jobs"], right=True),
        *_USED,
    )
    show_rows(session, rows, columns, key=by)


def _plain(row: JobUse) -> dict[str, Any]:
    """Returns the columns of the export, hosts by name."""
    values = {name: getattr(row, name) for name in JOB_COLUMNS}
    return values | {"hosts": _hosts(row)}


def _hosts(row: JobUse) -> list[str]:
    return [use.host for use in row.hosts if use.host]


def _csv_row(row: JobUse) -> list[object]:
    values = _plain(row) | {"tags": ";".join(row.tags), "hosts": ";".join(_hosts(row))}
    for name in ("submitted_at", "started_at", "finished_at"):
        values[name] = _iso(values[name])
    return list(values.values())


def _iso(at: float | None) -> str:
    return (
        "" if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def _write_csv(columns: Sequence[str], pages: Iterable[Sequence[Sequence[object]]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    for number, page in enumerate(pages):
        if number == 0:
            writer.writerow(columns)
        writer.writerows(page)
        sys.stdout.flush()
