"""`context`: which cluster `depalmactl` and `Client()` talk to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from depalma.ctl.command import SubGroup
from depalma.ctl.output import Column, show_rows, show_value
from depalma.ctl.session import Session
from depalma.ctl.wording import listed

_COLUMNS = (
    Column("NAME", lambda row: row["name"]),
    Column("CURRENT", lambda row: "*" if row["current"] else ""),
    Column("MASTERS", lambda row: listed(row["masters"]), cut=True),
    Column("TOKEN FILE", lambda row: row["token_file"], cut=True),
)


@click.group(
    "context",
    cls=SubGroup,
    examples=(
        "depalmactl context add lab https://10.0.0.1:7070 --token-file ~/lab.token --ca ~/lab.crt --use",
        "depalmactl context use lab",
    ),
)
def context() -> None:
    """Named clusters: their masters and a token file, kept in one file of the user.

    An option wins over the environment (DEPALMA_MASTERS, DEPALMA_CONTEXT), and that over the current context.
    """


@context.command(
    "add",
    examples=(
        "depalmactl context add lab https://10.0.0.1:7070,https://10.0.0.2:7070 --token-file ~/lab.token --ca ca.crt",
        "depalmactl context add home http://127.0.0.1:7070 --token-file ./token --use",
    ),
)
@click.option("--token-file", type=click.Path(exists=True, dir_okay=False), metavar="FILE", help="The access token.")
@click.option(
    "--ca", type=click.Path(exists=True, dir_okay=False), metavar="FILE", help="The cluster's authority, for https."
)
@click.option("--use", is_flag=True, help="Make it the current one.")
@click.argument("name", metavar="NAME")
@click.argument("masters", metavar="URL,URL,…")
@click.pass_obj
def context_add(session: Session, name: str, masters: str, token_file: str | None, ca: str | None, use: bool) -> None:
    """Add a context, or replace the one of that name."""
    from depalma.client import contexts

    token_path = str(Path(token_file).resolve()) if token_file else ""
    authority = str(Path(ca).resolve()) if ca else ""
    urls = contexts.resolve(masters=masters, environ={}, ca=authority).masters
    entry = contexts.Context(masters=urls, token_file=token_path, ca=authority)
    known = contexts.load().adding(name, entry, use=use)
    contexts.save(known)
    current = known.current == name
    _show_changed(session, name, f"context {name} added" + (", and current" if current else ""))


@context.command("use", examples=("depalmactl context use lab",))
@click.argument("name", metavar="NAME")
@click.pass_obj
def context_use(session: Session, name: str) -> None:
    """Make a context the current one."""
    from depalma.client import contexts

    contexts.save(contexts.load().using(name))
    _show_changed(session, name, f"context {name} is current")


@context.command("rm", examples=("depalmactl context rm lab",))
@click.argument("name", metavar="NAME")
@click.pass_obj
def context_rm(session: Session, name: str) -> None:
    """Remove a context. The cluster itself and the token file stay as they are."""
    from depalma.client import contexts

    contexts.save(contexts.load().removing(name))
    _show_changed(session, name, f"context {name} removed")


@context.command("ls", examples=("depalmactl context ls", "depalmactl context ls -o json"))
@click.pass_obj
def context_ls(session: Session) -> None:
    """List the contexts."""
    show_rows(session, _rows(), _COLUMNS, key="name")


def _rows() -> list[dict[str, Any]]:
    from depalma.client import contexts

    known = contexts.load()
    return [
        {
            "name": name,
            "current": name == known.current,
            "masters": list(entry.masters),
            "token_file": entry.token_file,
            "ca": entry.ca,
        }
        for name, entry in sorted(known.contexts.items())
    ]


def _show_changed(session: Session, name: str, text: str) -> None:
    if session.structured:
        row = next((row for row in _rows() if row["name"] == name), {"name": name, "removed": True})
        show_value(session, row, [], key="name")
    else:
        session.narrate(text)
