"""`snapshot`: save the whole state, look at a saved one, begin a cluster with it."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from depalma.ctl import failures
from depalma.ctl.command import SubGroup
from depalma.ctl.output import Column, show_rows, show_value
from depalma.ctl.session import Session
from depalma.ctl.wording import count, listed, size

if TYPE_CHECKING:
    from depalma.config import ClusterConfig
    from depalma.offline.founding import Restored
    from depalma.offline.inspecting import Inspection

#: How long the leader may take to write its snapshot.
_WRITE_S = 120.0
#: And how long a read of its answer may wait.
_READ_S = 60.0

_FILE = click.Path(dir_okay=False, path_type=Path)
_MASTER_COLUMNS = (
    Column("MASTER", lambda row: row["id"]),
    Column("DIRECTORY", lambda row: row["directory"]),
    Column("MOVED ASIDE", lambda row: row["moved_aside"]),
)


@click.group(
    "snapshot", cls=SubGroup, examples=("depalmactl snapshot save lab.snap", "depalmactl snapshot inspect lab.snap")
)
def snapshot() -> None:
    """The whole state in one file: save it, look at it, begin a cluster with it."""


# ---------------------------------------------------------------- save


@snapshot.command(
    "save",
    examples=(
        "depalmactl snapshot save lab.snap              # the state: jobs, hosts, code log",
        "depalmactl snapshot save lab.snap --blobs      # and all large values that it names",
    ),
)
@click.argument("file", type=_FILE, metavar="FILE")
@click.option("--blobs", is_flag=True, help="Put the blobs in too: code archives, large arguments and results.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.pass_obj
def save(session: Session, file: Path, blobs: bool, force: bool) -> None:
    """Save everything that was acknowledged up to now, as the leader has it.

    FILE gets its name when all of it is on the disk and was checked; only you can read it, for it holds arguments and
    environments of jobs. Without --blobs a restored cluster needs the masters' folders `blobs`.
    """
    if file.exists() and not force:
        raise failures.Failure(f"{file} exists; --force replaces it", code="exists")
    from depalma.offline.inspecting import inspect

    session.get("/v1/code/status")  # says at once if there is no leader; the next request may take its time
    unknown: list[str] = []
    with _replacing(file) as temporary:
        with temporary.open("r+b") as opened:
            _download(session, "/v1/snapshot", opened, wait_s=_WRITE_S)
        found = inspect(temporary)
        if blobs and found.blobs_missing:
            unknown = _append_blobs(session, temporary, found.blobs_missing)
            found = inspect(temporary)
    value = {**_fields(found), "file": str(file)}
    show_value(session, value, _lines(value), key="file")
    if not blobs:
        _tell_blobs(session, value)
    if unknown:
        raise failures.Failure(
            f"no master has blob {listed(unknown, limit=5)}; all the rest is in {file}", code="blobs_missing"
        )


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """Gives a file beside the wanted one, mode 0600, that takes its place durably if all goes well."""
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.rename(file)
        _sync(file.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _download(session: Session, path: str, into: BinaryIO, *, wait_s: float) -> int:
    """Appends the answer's body to a file; returns its length. Errors: Rejected, Failure when it breaks off."""
    from depalma.client.transport import BYTES, Request

    request = Request("GET", path, accept=BYTES, stream=True, wait_s=wait_s)
    stream = session.connections.open_stream(request, deadline_s=session.timeout_s)
    try:
        stream.read_timeout(_READ_S)
        wanted, got = int(stream.answer.headers.get("content-length", -1)), 0
        while data := stream.read():
            into.write(data)
            got += len(data)
    finally:
        stream.close()
    if got != wanted:
        raise failures.Failure(f"{path} broke off after {got} of {wanted} bytes; try again", code="broken_off")
    return got


def _append_blobs(session: Session, file: Path, digests: Sequence[str]) -> list[str]:
    """Puts blobs behind the snapshot; returns those that no master has."""
    from depalma.backup import BlobWriter
    from depalma.errors import Rejected

    unknown: list[str] = []
    with file.open("ab") as snapshot_file:
        writer = BlobWriter(snapshot_file)
        for digest in digests:
            with tempfile.TemporaryFile(dir=file.parent) as blob:
                try:
                    length = _download(session, f"/v1/blobs/{digest}", blob, wait_s=_READ_S)
                except Rejected as refusal:
                    if refusal.code != "unknown_blob":
                        raise
                    unknown.append(digest)
                    continue
                blob.seek(0)
                writer.add(digest, length, iter(lambda: blob.read(1 << 20), b""))
        writer.finish()
    return unknown


# ---------------------------------------------------------------- inspect


@snapshot.command(
    "inspect",
    examples=("depalmactl snapshot inspect lab.snap", "depalmactl snapshot inspect lab.snap -o json | jq .jobs"),
)
@click.argument("file", type=_FILE, metavar="FILE")
@click.pass_obj
def inspect_command(session: Session, file: Path) -> None:
    """Read all of a saved snapshot and say what it holds; exit code 1 and what is wrong if it is damaged.

    Takes the snapshot files in a master's folder `raft` too. Needs no cluster.
    """
    from depalma.offline.inspecting import inspect

    value = _fields(inspect(file))
    show_value(session, value, _lines(value), key="state_hash")


def _fields(found: Inspection | Restored) -> dict[str, Any]:
    from msgspec import to_builtins

    value: dict[str, Any] = to_builtins(found)
    return value


def _lines(value: dict[str, Any]) -> list[tuple[str, object]]:
    blobs = f"{value['blobs_named']} named, {value['blobs_included']} included ({size(value['blob_bytes'])})"
    return [
        ("File", f"{value['file']} ({size(value['size_bytes'])})"),
        ("Format", f"{value['format']}, written by release {value['release'] or 'of the first format'}"),
        ("Cluster", value["cluster"] or "not said"),
        ("Entry", f"{value['index']} of term {value['term']}, command {value['commands']}"),
        ("Jobs", _counts(value["jobs"])),
        ("Tasks", _counts(value["tasks"])),
        ("Hosts", _counts(value["hosts"])),
        ("Code index", value["code_index"]),
        ("Blobs", blobs),
        ("State hash", value["state_hash"]),
        ("Checksums", "right"),
    ]


def _counts(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    return f"{total}: " + ", ".join(f"{number} {word}" for word, number in counts.items()) if total else "0"


def _tell_blobs(session: Session, value: dict[str, Any]) -> None:
    missing = len(value["blobs_missing"])
    if missing:
        session.narrate(
            f"{count(missing, 'blob')} that the state names are not in the file: "
            "keep a copy of one master's folder `blobs`, or save with --blobs"
        )


# ---------------------------------------------------------------- restore


@snapshot.command(
    "restore",
    examples=(
        "depalmactl snapshot restore lab.snap -f lab.yaml            # all masters that are on this machine",
        "depalmactl snapshot restore lab.snap -f lab.yaml --id m2    # one of them",
        "depalmactl snapshot restore lab.snap -f lab.yaml --force    # what is there is moved aside",
    ),
)
@click.argument("file", type=_FILE, metavar="FILE")
@click.option(
    "-f",
    "--file",
    "cluster_file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The cluster file: 1, 3 or 5 masters, whatever the saved cluster had.",
)
@click.option("--id", "ids", multiple=True, metavar="ID", help="Only this master; may be given several times.")
@click.option("--force", is_flag=True, help="Move the state that is in a directory aside.")
@click.pass_obj
def restore_command(session: Session, file: Path, cluster_file: Path, ids: tuple[str, ...], force: bool) -> None:
    """Prepare the directories of masters so that they begin with a saved state.

    Every master of the cluster file must be prepared, from the same FILE, before the first of them is started. Stop
    all masters and agents first: an agent that runs on could do again what a restored master has given to another.
    Tasks that ran when the state was saved run again.
    """
    from depalma import config
    from depalma.offline.founding import restore

    wanted = config.load(cluster_file)
    chosen, elsewhere = _chosen(wanted, ids)
    done = restore(file, wanted, chosen, force=force)
    value = {**_fields(done), "elsewhere": elsewhere}
    if session.structured:
        show_value(session, value, [], key="index")
    else:
        show_rows(session, value["masters"], _MASTER_COLUMNS, key="id")
    _advise(session, done, file, cluster_file, elsewhere)


def _chosen(config: ClusterConfig, ids: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the masters to prepare here, and those that have to be prepared on other machines."""
    known = [master.id for master in config.masters]
    for master_id in ids:
        if master_id not in known:
            raise failures.Failure(
                f"no master {master_id!r} in the cluster file; there are: {listed(known)}",
                exit_code=failures.NOT_FOUND,
                code="unknown_master",
            )
    chosen = [master.id for master in config.masters if (master.id in ids if ids else is_here(master.host))]
    if not chosen:
        raise failures.Failure(
            f"none of the masters' addresses is this machine's ({listed(master.host for master in config.masters)}); "
            "say which one this is by --id",
            code="not_here",
        )
    return chosen, [master_id for master_id in known if master_id not in chosen]


def is_here(host: str) -> bool:
    """Returns whether the address is one of this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


def _advise(session: Session, done: Restored, file: Path, cluster_file: Path, elsewhere: list[str]) -> None:
    session.narrate(
        f"restored to entry {done.index} of term {done.term}; {count(done.requeued, 'task')} that ran will run again; "
        f"new jobs begin with {done.next_job}"
    )
    missing = sorted({digest for master in done.masters for digest in master.blobs_missing})
    if missing:
        session.warn(
            f"{count(len(missing), 'blob')} that the state names are in no folder here: "
            "tasks that need them will wait or fail; copy `blobs` of an old master, or restore a file with blobs"
        )
    if elsewhere:
        session.narrate(
            f"before any master starts, prepare {listed(elsewhere)} too, each on its machine: "
            f"depalmactl snapshot restore {file} -f {cluster_file} --id {elsewhere[0]}"
        )
    if not elsewhere:
        session.narrate("start the masters, then the agents")
