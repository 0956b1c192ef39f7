"""`dev`: a local cluster of real processes, to try things out and to develop against."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from depalma.ctl.command import command
from depalma.ctl.output import show_value
from depalma.ctl.session import Session
from depalma.ctl.values import Whole
from depalma.ctl.wording import count, listed
from depalma.errors import ConfigError

if TYPE_CHECKING:
    from depalma.local import LocalCluster

#: In the cluster's folder: the context that was current before `--detach`, to be current again after `--stop`.
_PREVIOUS = "previous-context"


@command(
    "dev",
    examples=(
        "depalmactl dev                            # live view; q stops the cluster",
        "depalmactl dev --detach && depalmactl run -- echo hello",
        "depalmactl dev --masters 5 --agents 4 --slots 2 --dir /tmp/lab --detach",
        "depalmactl dev --stop",
    ),
)
@click.option(
    "--masters",
    "masters",
    type=click.Choice(["1", "3", "5"]),
    default="3",
    show_default=True,
    metavar="N",
    help="1, 3 or 5.",
)
@click.option("--agents", type=Whole(0, 1000), default=2, show_default=True, metavar="N", help="How many hosts.")
@click.option("--slots", type=Whole(1), metavar="N", help="Slots of each (the CPUs, divided by the agents).")
@click.option(
    "--dir", "directory", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Where its files are."
)
@click.option("--detach", is_flag=True, help="Leave it running, and make it the current context.")
@click.option("--stop", is_flag=True, help="Stop the cluster of this folder.")
@click.pass_obj
def dev(
    session: Session, masters: str, agents: int, slots: int | None, directory: Path | None, detach: bool, stop: bool
) -> None:
    """Start a local cluster on loopback: masters and agents as real processes, with a token of their own.

    In the foreground it shows the live view on a terminal (elsewhere, what it is) until q, Ctrl-C or SIGTERM stop
    it. Its files are in DIR (default: $XDG_STATE_HOME/depalma/dev), `DIR/cluster.json` says what runs; jobs are
    kept for the next start there.
    """
    if detach and stop:
        raise click.UsageError("--detach starts a cluster and --stop ends it; give one of them")
    folder = (directory or default_folder()).resolve()
    if stop:
        _stop(session, folder)
        return
    from depalma.local import LocalCluster

    session.narrate(f"starting {count(int(masters), 'master')} and {count(agents, 'agent')} in {folder} …")
    with _orderly_termination(), LocalCluster(int(masters), agents, slots=slots, directory=folder) as cluster:
        name = context_name(folder)
        _add_context(name, cluster, folder, use=detach)
        try:
            _tell(session, cluster, folder, name, detached=detach)
            if detach:
                cluster.detach()
            else:
                _attend(session, cluster)
        finally:
            if not detach:
                session.narrate("stopping …")
                _remove_context(name, folder)


def default_folder() -> Path:
    """Returns where a local cluster lives when no folder is given."""
    base = os.environ.get("XDG_STATE_HOME") or ""
    return (Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state") / "depalma" / "dev"


def context_name(folder: Path) -> str:
    """Returns the name of the context of a local cluster."""
    return "dev" if folder == default_folder().resolve() else f"dev-{folder.name}"


def _stop(session: Session, folder: Path) -> None:
    from depalma.local import LocalCluster

    cluster = LocalCluster.attach(folder)
    number = len(cluster.processes)
    left = cluster.stop()
    _remove_context(context_name(folder), folder)
    if session.structured:
        show_value(session, {"dir": str(folder), "stopped": True, "killed": left}, [], key="dir")
    else:
        session.narrate(f"stopped {count(number, 'process')} of {folder}")


def _attend(session: Session, cluster: LocalCluster) -> None:
    """Stays until somebody ends it."""
    if session.structured or not sys.stdout.isatty():
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
        return
    from depalma.client.contexts import resolve
    from depalma.ctl.top import show

    view = Session(color=session.color)
    view.connect_to(resolve(masters=cluster.masters, token_file=cluster.token_file, ca=cluster.ca))
    show(view)


def _tell(session: Session, cluster: LocalCluster, folder: Path, name: str, *, detached: bool) -> None:
    hosts = [entry.id for entry in cluster.processes if entry.role == "agent"]
    value: dict[str, Any] = {
        "dir": str(folder),
        "context": name,
        "masters": cluster.masters,
        "token_file": cluster.token_file,
        "processes": [{"role": entry.role, "id": entry.id, "pid": entry.pid} for entry in cluster.processes],
    }
    lines = [
        ("Folder", folder),
        ("Masters", listed(cluster.masters)),
        ("Hosts", listed(hosts) or "none"),
        ("Token file", cluster.token_file),
        ("Context", f"{name} (current)" if detached else name),
    ]
    show_value(session, value, lines, key="dir")
    sys.stdout.flush()
    if session.structured:
        return
    chosen = "" if detached else f" --context {name}"
    at = "" if name == "dev" else f" --dir {folder}"
    session.narrate("Next:")
    session.narrate(f"  depalmactl{chosen} run -- echo hello")
    session.narrate(f"  depalmactl{chosen} top")
    session.narrate(f"  depalmactl dev --stop{at}" if detached else "  Ctrl-C stops it")


@contextmanager
def _orderly_termination() -> Iterator[None]:
    """SIGTERM is Ctrl-C: the cluster is stopped before this process ends."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ---------------------------------------------------------------- contexts


def _add_context(name: str, cluster: LocalCluster, folder: Path, *, use: bool) -> None:
    from depalma.client import contexts

    known = contexts.load()
    if use and known.current not in ("", name):
        (folder / _PREVIOUS).write_text(known.current)
    entry = contexts.Context(masters=tuple(cluster.masters), token_file=cluster.token_file, ca=cluster.ca)
    contexts.save(known.adding(name, entry, use=use))


def _remove_context(name: str, folder: Path) -> None:
    """Removes it if it is still this cluster's, and makes the one before it current again."""
    from depalma.client import contexts

    previous = folder / _PREVIOUS
    before = previous.read_text().strip() if previous.exists() else ""
    previous.unlink(missing_ok=True)
    known = contexts.load()
    entry = known.contexts.get(name)
    if entry is None or not Path(entry.token_file).is_relative_to(folder):
        return
    was_current = known.current == name
    known = known.removing(name)
    if was_current and before:
        with suppress(ConfigError):  # it was removed meanwhile
            known = known.using(before)
    contexts.save(known)
