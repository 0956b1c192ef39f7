"""`code`: the numbered log of code changes that every host follows."""

from __future__ import annotations

import hashlib
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from depalma.ctl import failures
from depalma.ctl.command import SubGroup
from depalma.ctl.output import Column, show_rows, show_value
from depalma.ctl.session import Session
from depalma.ctl.spec import login_name
from depalma.ctl.submit import PASS_THROUGH
from depalma.ctl.values import DURATION, Whole
from depalma.ctl.wording import ago, listed, moment, size

if TYPE_CHECKING:
    from depalma.ctl.progress import CodeProgress

#: One blocking read; waiting goes on with another one.
_SLICE_S = 5.0
#: The same, when somebody watches.
_LOOK_S = 0.5
_ENTRY_COLUMNS = (
    Column("INDEX", lambda row: row["index"], right=True),
    Column("NAME", lambda row: row["name"], cut=True),
    Column("KIND", lambda row: f"rollback to {row['rollback_of']}" if row["rollback_of"] else row["kind"]),
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
    Column("SIGNED", lambda row: row["signature"]),
    Column("SINCE", lambda row: ago(row["since"]) if row["since"] else ""),
    Column("REASON", lambda row: one_line(row["reason"]), cut=True),
)
_HOST_COLUMNS = (
    Column("HOST", lambda row: row["host"]),
    Column("SIGNED", lambda row: row["signature"]),
    Column("EXIT", lambda row: "" if row["exit_code"] is None else row["exit_code"], right=True),
    Column("OUTPUT", lambda row: one_line(row["output"]), cut=True),
)
_WAIT = click.option(
    "--wait", "wait_s", type=DURATION, default="30s", show_default=True, metavar="TIME", help="Wait for hosts so long."
)


def one_line(text: str) -> str:
    """Returns the last line with something in it: what an installer or a command said in the end."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


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
    "--requirements",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Packages that it needs: each host installs them, into an environment of their own.",
)
@_WAIT
@click.argument("path", type=click.Path(exists=True, path_type=Path), metavar="PATH")
@click.pass_context
def code_add(ctx: click.Context, path: Path, name: str | None, requirements: Path | None, wait_s: float) -> None:
    """Add a module file, a package folder or a wheel, and wait until every live host has it.

    Prints the code index. Jobs that are submitted from then on run with it. Hosts that lag get it later, before
    they run such a job; the exit code is 0 all the same, and they are named on stderr. What a folder's
    .depalmaignore lists, as a .gitignore does, stays behind.
    """
    session = ctx.find_object(Session)
    assert session is not None
    from depalma.archive import ArchiveError, pack
    from depalma.requirements import BadRequirements, check

    needs, needs_digest = b"", ""
    try:
        packed_name, kind, archive = pack(path, name)
        if requirements is not None:
            needs = requirements.read_bytes()
            needs_digest = check(needs, str(requirements))
    except (ArchiveError, BadRequirements) as error:
        raise click.UsageError(str(error), ctx) from error
    digest = hashlib.sha256(archive).hexdigest()
    session.put_blob(digest, archive)
    body: dict[str, Any] = {
        "name": packed_name,
        "kind": kind,
        "digest": digest,
        "size_bytes": len(archive),
        "by": login_name(),
    }
    if needs:
        session.put_blob(needs_digest, needs)
        body["requirements"] = needs_digest
    _added(session, int(session.post("/v1/code", body)["index"]), wait_s)


@code.command("rollback", examples=("depalmactl code rollback 3", "depalmactl code rollback 3 --wait 5m"))
@_WAIT
@click.argument("index", type=Whole(1), metavar="INDEX")
@click.pass_obj
def code_rollback(session: Session, index: int, wait_s: float) -> None:
    """Add an entry with which all of the code is that of an earlier index again.

    Nothing is taken out of the log: prints the new code index, whose tree is exactly that of INDEX.
    """
    answer = session.post("/v1/code/rollback", {"index": index, "by": login_name()})
    _added(session, int(answer["index"]), wait_s)


@code.command(
    "run",
    context_settings=PASS_THROUGH,
    examples=(
        "depalmactl code run -- mkdir -p /scratch/data",
        "depalmactl code run --timeout 5m -- ./install-driver.sh",
    ),
)
@click.option(
    "--timeout",
    "timeout_s",
    type=DURATION,
    default="10m",
    show_default=True,
    metavar="TIME",
    help="A host's run is killed then, and has failed; 0 = never.",
)
@_WAIT
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD ARG…")
@click.pass_obj
def code_run(session: Session, command: tuple[str, ...], timeout_s: float, wait_s: float) -> None:
    """Run a command once on every host, as an entry of the code log.

    Hosts run it in order with the other entries, those that join later too; entries after it wait for its end. A host
    where it fails lags until `code retry`. A host that dies in the middle runs it again. Exits with 1 when it failed
    on a host that was waited for.
    """
    body = {"argv": list(command), "timeout_s": timeout_s, "by": login_name()}
    view = _added(session, int(session.post("/v1/code/run", body)["index"]), wait_s)
    if view["failed"]:
        failed = listed([f"{host} (exit code {code})" for host, code in view["failed"].items()], limit=10)
        raise failures.Failure(f"command {view['index']} failed on {failed}", code="command_failed")


@code.command("retry", examples=("depalmactl code retry", "depalmactl code retry h2 h3"))
@click.argument("hosts", nargs=-1, metavar="[HOST…]")
@click.pass_obj
def code_retry(session: Session, hosts: tuple[str, ...]) -> None:
    """Make hosts that are behind try again at once what failed there (all of them, if none is named)."""
    answer = session.post("/v1/code/retry", {"hosts": list(hosts)})
    show_value(session, answer, [], key="hosts")
    session.narrate(f"asked to try again: {listed(answer['hosts'], limit=20) or 'no host'}")


def _added(session: Session, index: int, wait_s: float) -> dict[str, Any]:
    """Waits for the hosts and says how far they are."""
    view = _acknowledged(session, index, wait_s)
    show_value(session, view, [], key="index")
    if not session.structured and session.output != "name":
        click.echo(str(index))
    if view["missing"]:
        why = [f"{host} ({one_line(reason)})" for host, reason in view["lagging"].items() if host in view["missing"]]
        quiet = [host for host in view["missing"] if host not in view["lagging"]]
        session.warn(f"code index {index} is in force; not there yet: {listed(why + quiet, limit=10)}")
    else:
        session.narrate(
            f"code index {index}: {view['name']} is on {listed(view['acknowledged'], limit=10) or 'no host'}"
        )
    return view


def _acknowledged(session: Session, index: int, wait_s: float) -> dict[str, Any]:
    deadline = time.monotonic() + wait_s
    progress = _progress(session) if wait_s else None
    try:
        while True:
            left_s = max(0.0, min(_SLICE_S if progress is None else _LOOK_S, deadline - time.monotonic()))
            view: dict[str, Any] = session.get(f"/v1/code/{index}", wait=f"{left_s:.3f}s", until="acknowledged")
            if progress is not None:
                progress(view)
            if set(view["missing"]) <= view["failed"].keys() or time.monotonic() >= deadline:
                return view
    finally:
        if progress is not None:
            progress.stop()


def _progress(session: Session) -> CodeProgress | None:
    """Returns a bar for a person who waits at a terminal."""
    if session.structured or session.quiet or not sys.stderr.isatty():
        return None
    from depalma.ctl.progress import CodeProgress

    return CodeProgress(color=session.color)


@code.command("ls", examples=("depalmactl code ls", "depalmactl code ls -o json"))
@click.pass_obj
def code_ls(session: Session) -> None:
    """List the entries of the code log, and how many live hosts have each."""
    show_rows(session, session.get("/v1/code")["entries"], _ENTRY_COLUMNS, key="index")


@code.command("show", examples=("depalmactl code show 3", "depalmactl code show 3 -o yaml"))
@click.argument("index", type=Whole(0), metavar="INDEX")
@click.pass_obj
def code_show(session: Session, index: int) -> None:
    """Show one entry: what it is, who added it, which hosts have it."""
    view = session.get(f"/v1/code/{index}")
    lines = [
        ("Index", view["index"]),
        ("Name", view["name"]),
        ("Kind", f"rollback to {view['rollback_of']}" if view["rollback_of"] else view["kind"]),
        ("Size", size(view["size"])),
        ("Digest", view["digest"]),
        ("Requirements", view["requirements"]),
        ("Command", shlex.join(view["argv"])),
        ("Added", f"{moment(view['added_at'])} by {view['added_by'] or '?'}"),
        ("Acknowledged", listed(view["acknowledged"])),
        ("Missing", listed(view["missing"])),
        ("Lagging", "; ".join(f"{host}: {one_line(why)}" for host, why in view["lagging"].items())),
    ]
    shown = [line for line in lines if line[1] or line[0] not in ("Requirements", "Command", "Lagging")]
    show_value(session, view, shown, key="index")


@code.command("hosts", examples=("depalmactl code hosts 3", "depalmactl code hosts 3 -o json"))
@click.argument("index", type=Whole(1), metavar="INDEX")
@click.pass_obj
def code_hosts(session: Session, index: int) -> None:
    """Show what each host said of an entry: whether its signature holds, and how a command ended there."""
    show_rows(session, session.get(f"/v1/code/{index}/hosts")["hosts"], _HOST_COLUMNS, key="host")


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
