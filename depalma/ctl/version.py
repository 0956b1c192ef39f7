"""`version`."""

from __future__ import annotations

import platform

import click

from depalma import __version__
from depalma.ctl.command import command
from depalma.ctl.output import show_value
from depalma.ctl.session import Session


@command("version", examples=("depalmactl version", "depalmactl version -o json | jq -r .version"))
@click.pass_obj
def version(session: Session) -> None:
    """Print the version of this program (`master ls -o wide` and `host ls -o wide` show the cluster's)."""
    value = {"version": __version__, "python": platform.python_version()}
    show_value(session, value, [("depalmactl", __version__), ("Python", value["python"])], key="version")
