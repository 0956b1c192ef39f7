"""`master add`, `set`, `remove` and `transfer`: other masters while the cluster runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from depalma.ctl.command import command
from depalma.ctl.output import show_value
from depalma.ctl.session import Session
from depalma.ctl.values import DURATION
from depalma.ctl.wording import listed

if TYPE_CHECKING:
    from depalma.client.verbs import Verb


@command(
    "add",
    examples=(
        "depalma-master --config lab.yaml --id m4 --join            # first, on its machine: it waits to be added",
        "depalmactl master add m4 -f lab.yaml                       # where it is stands in the cluster file",
        "depalmactl master add m4 --host 10.0.0.4 --raft-port 7171",
    ),
)
@click.argument("master_id", metavar="ID")
@click.option("-f", "--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
              help="Take address and ports from this cluster file.")  # fmt: skip
@click.option("--host", metavar="HOST", help="Its name or address, as the others reach it.")
@click.option("--port", type=int, metavar="PORT", help="Of its API; 7070 if not given.")
@click.option("--raft-port", type=int, metavar="PORT", help="For the other masters; 7071 if not given.")
@click.option("--wait", "wait_s", type=DURATION, default="60s", metavar="TIME", show_default=True,
              help="How long it may take to catch up; after that nothing has changed.")  # fmt: skip
@click.pass_obj
def add(
    session: Session,
    master_id: str,
    file: Path | None,
    host: str | None,
    port: int | None,
    raft_port: int | None,
    wait_s: float,
) -> None:
    """Add a master to the cluster.

    It has to run, with `--join`, and gets all of the state before it counts; what is written meanwhile does not wait
    for it. One at a time. An odd number of masters is best: four survive no more failures than three.
    """
    from depalma.client.master_verbs import add_master

    if (file is None) == (host is None):
        raise click.UsageError("say where it is: by -f FILE, or by --host (and --port, --raft-port)")
    if file is not None:
        from depalma.config import load

        known = load(file).master(master_id)
        host, port, raft_port = known.host, port or known.port, raft_port or known.raft_port
    assert host is not None
    if sys.stderr.isatty():
        session.narrate(f"{master_id} is to join; waiting for it to catch up")
    _do(session, add_master(master_id, host, port or 7070, raft_port or 7071, wait_s))


@command(
    "set", examples=("depalmactl master set m2 --host 10.0.0.12       # then start it there, in its moved folder",)
)
@click.argument("master_id", metavar="ID")
@click.option("--host", metavar="HOST", help="Its new name or address.")
@click.option("--port", type=int, metavar="PORT", help="Its new port of the API.")
@click.option("--raft-port", type=int, metavar="PORT", help="Its new port for the other masters.")
@click.pass_obj
def set_(session: Session, master_id: str, host: str | None, port: int | None, raft_port: int | None) -> None:
    """Say where a master is from now on, so that the others find it after its machine or address has changed."""
    from depalma.client.master_verbs import move_master

    if host is None and port is None and raft_port is None:
        raise click.UsageError("nothing to change: give --host, --port or --raft-port")
    _do(session, move_master(master_id, host, port, raft_port))


@command("remove", examples=("depalmactl master remove m2                       # also when m2 is dead, or leads",))
@click.argument("master_id", metavar="ID")
@click.pass_obj
def remove(session: Session, master_id: str) -> None:
    """Remove a master. It ends by itself if it runs, and is not let in any more.

    If it leads, another one leads first. Its folder is no longer needed.
    """
    from depalma.client.master_verbs import remove_master

    _do(session, remove_master(master_id))


@command("transfer", examples=("depalmactl master transfer m2",))
@click.argument("master_id", metavar="ID")
@click.pass_obj
def transfer(session: Session, master_id: str) -> None:
    """Let this master lead. Calls under way go on; what is written meanwhile waits for some milliseconds."""
    from depalma.client import master_verbs

    session.run(master_verbs.transfer(master_id))
    show_value(session, {"leader": master_id}, [("Leader", master_id)], key="leader")


def _do(session: Session, verb: Verb[None]) -> None:
    from depalma.client.master_verbs import masters

    session.run(verb)
    ids = [master.id for master in session.run(masters())]
    show_value(session, {"masters": ids}, [("Masters", listed(ids))], key="masters")
    if len(ids) % 2 == 0:
        session.narrate(f"{len(ids)} masters survive no more failures than {len(ids) - 1}: add or remove one")
