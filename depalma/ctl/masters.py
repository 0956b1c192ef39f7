"""`master`: the replicas."""

from __future__ import annotations

import click

from depalma.ctl.command import SubGroup
from depalma.ctl.output import Column, show_rows
from depalma.ctl.session import Session
from depalma.ctl.wording import duration

_COLUMNS = (
    Column("ID", lambda row: row["id"]),
    Column("ROLE", lambda row: row["role"]),
    Column("TERM", lambda row: row["term"], right=True),
    Column("COMMITTED", lambda row: row["commit_index"], right=True),
    Column("APPLIED", lambda row: row["applied_index"], right=True),
    Column("CONTACT", lambda row: duration(row["last_contact_s"]), right=True),
    Column("URL", lambda row: row["url"]),
    Column("STATE HASH", lambda row: row["state_hash"][:16], wide=True),
    Column("VERSION", lambda row: row["version"], wide=True),
)


@click.group("master", cls=SubGroup, examples=("depalmactl master ls",))
def master() -> None:
    """The masters: replicas of the queue, of which one leads."""


@master.command(
    "ls",
    examples=(
        "depalmactl master ls",
        "depalmactl master ls -o wide               # with the hash of the replicated state",
        "depalmactl master ls -o json | jq -r '.[] | select(.role == \"leader\").id'",
    ),
)
@click.pass_obj
def master_ls(session: Session) -> None:
    """List the masters: who leads, how far each is, when it was heard."""
    show_rows(session, session.get("/v1/masters", consistency="stale")["masters"], _COLUMNS, key="id")
