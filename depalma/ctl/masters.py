"""`master`: the replicas; what changes them while they run is in master_changes.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from depalma.ctl import failures, master_changes
from depalma.ctl.command import SubGroup
from depalma.ctl.output import Column, show_rows, show_value
from depalma.ctl.session import Session
from depalma.ctl.wording import count, duration, listed

if TYPE_CHECKING:
    from depalma.config import ClusterConfig
    from depalma.offline.founding import Recovered

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


@click.group("master", cls=SubGroup, examples=("depalmactl master ls", "depalmactl master recover -f lab.yaml --id m1"))
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


for _change in (master_changes.add, master_changes.set_, master_changes.remove, master_changes.transfer):
    master.add_command(_change)

# ---------------------------------------------------------------- recover


@master.command(
    "recover",
    examples=(
        "depalmactl master recover -f lab.yaml --id m1            # says what would be done, changes nothing",
        "depalmactl master recover --force -f lab.yaml --id m1    # does it",
    ),
)
@click.option(
    "-f",
    "--file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The cluster file, with the masters that the recovered cluster is to have.",
)
@click.option("--id", "master_id", required=True, metavar="ID", help="The master whose disk is left.")
@click.option("--force", is_flag=True, help="Do it. What only the lost masters had acknowledged is gone then.")
@click.pass_obj
def recover_command(session: Session, file: Path, master_id: str, force: bool) -> None:
    """Make a cluster of what one master has on its disk, after a majority of the disks is lost for good.

    Only when the others cannot come back: while their disks exist, start them instead. Run it on the machine of the
    master with the longest log, while no master runs. Everything in its log is kept; what is lost is told as a range
    of command numbers. The former state stays beside the new one.
    """
    from depalma import config
    from depalma.offline.founding import examine, recover

    wanted = config.load(file)
    if master_id not in [known.id for known in wanted.masters]:
        raise failures.Failure(
            f"no master {master_id!r} in the cluster file; there are: {listed(known.id for known in wanted.masters)}",
            exit_code=failures.NOT_FOUND,
            code="unknown_master",
        )
    done = recover(wanted, master_id) if force else examine(wanted, master_id)
    show_value(session, _fields(done), _lines(done), key="id")
    if done.founded is None:
        raise failures.Failure(
            "nothing was changed: --force does it, if the other masters' disks are lost for good",
            exit_code=failures.REFUSED,
            code="needs_force",
        )
    _advise(session, wanted, file, done)


def _fields(done: Recovered) -> dict[str, Any]:
    from msgspec import to_builtins

    value: dict[str, Any] = to_builtins(done)
    return value


def _lines(done: Recovered) -> list[tuple[str, object]]:
    unsure = f"; those after {done.committed_to} were perhaps never acknowledged"
    lines: list[tuple[str, object]] = [
        ("Master", f"{done.id} in {done.directory}"),
        ("Log", f"ends with entry {done.last_entry}; term {done.term}"),
        ("Kept", f"commands 1 to {done.kept_to}{unsure if done.kept_to > done.committed_to else ''}"),
        ("Lost", f"commands from {done.lost_from} on, if any were acknowledged"),
    ]
    if done.founded is not None:
        lines += [
            ("Begins", f"at entry {done.founded.index} of term {done.founded.term}"),
            ("Run again", count(done.founded.requeued, "task")),
            ("New jobs", f"begin with {done.founded.next_job}"),
            ("Moved aside", done.founded.masters[0].moved_aside),
            ("Saved", done.saved),
        ]
    return lines


def _advise(session: Session, wanted: ClusterConfig, file: Path, done: Recovered) -> None:
    others = [known.id for known in wanted.masters if known.id != done.id]
    if not others:
        session.narrate(f"start {done.id}, then the agents")
        return
    session.narrate(
        f"before any master starts, give {listed(others)} the same beginning, each on its machine: "
        f"depalmactl snapshot restore {done.saved} -f {file} --id {others[0]}"
    )
