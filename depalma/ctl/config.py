"""`config`: the cluster file."""

from __future__ import annotations

from pathlib import Path

import click

from depalma.ctl.command import SubGroup
from depalma.ctl.output import show_value
from depalma.ctl.session import Session
from depalma.ctl.wording import count


@click.group("config", cls=SubGroup, examples=("depalmactl config check cluster.yaml",))
def config() -> None:
    """The cluster file."""


@config.command("check", examples=("depalmactl config check cluster.yaml", "depalmactl config check cluster.yaml -q"))
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE")
@click.pass_obj
def config_check(session: Session, file: Path) -> None:
    """Check a cluster file; exit code 1 and the field's name when something is wrong."""
    from depalma.config import load

    checked = load(file)
    value = {
        "file": str(file),
        "ok": True,
        "cluster": checked.cluster,
        "masters": [master.id for master in checked.masters],
        "hosts": [host.name for host in checked.hosts],
    }
    if session.structured or session.output == "name":
        show_value(session, value, [], key="cluster")
    elif not session.quiet:
        masters, hosts = count(len(checked.masters), "master"), count(len(checked.hosts), "host")
        click.echo(f"{file}: good (cluster {checked.cluster}: {masters}, {hosts})")
