"""`code`: the numbered log of code changes that every host follows."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import click

from depalma.ctl import failures
from depalma.ctl.command import SubGroup
from depalma.ctl.output import Column, show_rows, show_value
from depalma.ctl.session import Session
from depalma.ctl.spec import login_name
from depalma.ctl.values import DURATION
from depalma.ctl.wording import ago, listed, moment, size

#: One blocking read; waiting goes on with another one.
_SLICE_S = 5.0
_ENTRY_COLUMNS = (
    Column("INDEX", lambda row: row["index"], right=True),
    Column("NAME", lambda row: row["name"], cut=True),
    Column("KIND", lambda row: row["kind"]),
    Column("SIZE", lambda row: size(row["size"]), right=True),
    Column("ADDED", lambda row: ago(row["added_at"])),
    Column("BY", lambda row: row["added_by"]),
    Column("HOSTS", lambda row: f"{len(row['acknowledged'])}/{len(row['acknowledged']) + len(row['missing'])}"),
    Column("MISSING", lambda row: listed(row["missing"], limit=5), cut=True),
    Column("DIGEST", lambda row: row["digest"][:16], wide=True),
)
_STATUS_COLUMNS = (
    Column("HOST", lambda row: row["host"]),
    Column("STATE", lambda row: row["state"]),
    Column("CODE", lambda row: row["code_index"], right=True),
    Column("LAG", lambda row: row["lag"], right=True),
)


@click.group(
    "code",
    cls=SubGroup,
    examples=("depalmactl code add mypackage/", "depalmactl code status", "depalmactl code ls"),
)
def code() -> None:
    """The code log: which code the hosts run, by number."""


@code.command(
    "add",
    examples=(
        "depalmactl code add mypackage/",
        "depalmactl code add tools.py --name tools",
        "depalmactl code add mypackage/ --wait 5m -o json | jq .missing",
    ),
)
@click.option("--name", metavar="NAME", help="The name to import it by (that of the file or folder).")
@click.option(
    "--wait", "wait_s", type=DURATION, default="30s", show_default=True, metavar="TIME", help="Wait for hosts so long."
)
@click.argument("path", type=click.Path(exists=True, path_type=Path), metavar="PATH")
@click.pass_context
def code_add(ctx: click.Context, path: Path, name: str | None, wait_s: float) -> None:
    """Add a module file or a package folder, and wait until every live host has it.

    Prints the code index. Jobs that are submitted from then on run with it. Hosts that lag get it later, before
    they run such a job; the exit code is 0 all the same, and they are named on stderr.
    """
    session = ctx.find_object(Session)
    assert session is not None
    from depalma.archive import ArchiveError, pack

    try:
        packed_name, kind, archive = pack(path, name)
    except ArchiveError as error:
        raise click.UsageError(str(error), ctx) from error
    digest = hashlib.sha256(archive).hexdigest()
    session.put_blob(digest, archive)
    body = {"name": packed_name, "kind": kind, "digest": digest, "size_bytes": len(archive), "by": login_name()}
    index = int(session.post("/v1/code", body)["index"])
    view = _acknowledged(session, index, wait_s)
    show_value(session, view, [], key="index")
    if not session.structured and session.output != "name":
        click.echo(str(index))
    if view["missing"]:
        session.warn(f"code index {index} is in force; not there yet: {listed(view['missing'], limit=10)}")
    else:
        session.narrate(
            f"code index {index}: {view['name']} is on {listed(view['acknowledged'], limit=10) or 'no host'}"
        )


def _acknowledged(session: Session, index: int, wait_s: float) -> dict[str, Any]:
    deadline = time.monotonic() + wait_s
    while True:
        left_s = max(0.0, min(_SLICE_S, deadline - time.monotonic()))
        view: dict[str, Any] = session.get(f"/v1/code/{index}", wait=f"{left_s:.3f}s", until="acknowledged")
        if not view["missing"] or time.monotonic() >= deadline:
            return view


@code.command("ls", examples=("depalmactl code ls", "depalmactl code ls -o json"))
@click.pass_obj
def code_ls(session: Session) -> None:
    """List the entries of the code log, and how many live hosts have each."""
    show_rows(session, session.get("/v1/code")["entries"], _ENTRY_COLUMNS, key="index")


@code.command("show", examples=("depalmactl code show 3", "depalmactl code show 3 -o yaml"))
@click.argument("index", type=click.IntRange(0), metavar="INDEX")
@click.pass_obj
def code_show(session: Session, index: int) -> None:
    """Show one entry: what it is, who added it, which hosts have it."""
    view = session.get(f"/v1/code/{index}")
    lines = [
        ("Index", view["index"]),
        ("Name", view["name"]),
        ("Kind", view["kind"]),
        ("Size", size(view["size"])),
        ("Digest", view["digest"]),
        ("Added", f"{moment(view['added_at'])} by {view['added_by'] or '?'}"),
        ("Acknowledged", listed(view["acknowledged"])),
        ("Missing", listed(view["missing"])),
    ]
    show_value(session, view, lines, key="index")


@code.command("status", examples=("depalmactl code status", "depalmactl code status --check && ./deploy-next"))
@click.option("--check", is_flag=True, help="Exit with 1 when a host lags.")
@click.pass_obj
def code_status(session: Session, check: bool) -> None:
    """Show every host's code index, and how far it is behind the log."""
    answer = session.get("/v1/code/status")
    if session.structured and session.output != "jsonl":
        show_value(session, answer, [], key="index")
    else:
        show_rows(session, answer["hosts"], _STATUS_COLUMNS, key="host")
        session.narrate(f"the code log is at {answer['index']}")
    lagging = [row["host"] for row in answer["hosts"] if row["lag"]]
    if check and lagging:
        raise failures.Failure(f"behind code index {answer['index']}: {listed(lagging, limit=20)}", code="lagging")
