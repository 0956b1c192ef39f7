"""`host pause`, `host unpause`: the switch of whoever sits at the machine; what `host set --owner` takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from depalma.ctl import failures
from depalma.ctl.hosts import host
from depalma.ctl.output import show_rows
from depalma.ctl.session import Session
from depalma.ctl.spec import login_name
from depalma.ctl.values import DURATION, parse_duration
from depalma.ctl.wording import clean, moment

if TYPE_CHECKING:
    from depalma.pausing import Place

_BOOLEANS = {"yes": True, "true": True, "no": False, "false": False}


def owner_fields(_ctx: click.Context, _parameter: click.Parameter, entries: Sequence[str]) -> dict[str, Any]:
    """Returns the fields of `FIELD=VALUE` entries; which there are and what is allowed the cluster says."""
    fields: dict[str, Any] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{entry!r} is not FIELD=VALUE, such as idle_s=15m")
        try:
            fields[name] = _value(name, value.strip())
        except ValueError as error:
            raise click.BadParameter(f"{name}: {error}") from None
    return fields


def _value(name: str, text: str) -> object:
    if name.endswith("_s"):
        return None if text == "never" else parse_duration(text)
    if name.endswith("_percent"):
        try:
            return float(text.removesuffix("%"))
        except ValueError:
            raise ValueError(f"{text!r} is not a number of percent") from None
    if name == "requeue_all":
        if text not in _BOOLEANS:
            raise ValueError(f"{text!r} is none of {', '.join(_BOOLEANS)}")
        return _BOOLEANS[text]
    return text


_DIR = click.option(
    "--dir",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="The agent's folder (without: of every agent that is found here).",
)
_HERE = click.argument("name", metavar="[HOST]", required=False)


def _places(name: str | None, folder: Path | None) -> list[Place]:
    """Returns the agents that are meant. Errors: Failure when there is none."""
    from depalma import pausing

    found = [pausing.place(folder.absolute())] if folder is not None else pausing.places()
    meant = [place for place in found if name in (None, place.host)]
    if not meant:
        there = ", ".join(place.host for place in found) or "none"
        message = f"no agent {f'of host {name} ' if name else ''}on this machine; there are: {there}"
        raise failures.Failure(message, exit_code=failures.NOT_FOUND, code="unknown_host")
    return meant


def _show(session: Session, places: Sequence[Place], until: float | None, said: str) -> None:
    rows = [
        {"host": place.host, "dir": str(place.folder), "runs": place.runs, "until": until, "state": said}
        for place in places
    ]
    if session.structured or session.output == "name":
        show_rows(session, rows, (), key="host")
    for place in places:
        late = "" if place.runs else "; its agent does not run: it holds when it starts"
        ends = f" until {moment(until)}" if until is not None else ""
        session.narrate(f"host {clean(place.host)}: {said}{ends}{late}")


@host.command(
    "pause",
    examples=("depalmactl host pause", "depalmactl host pause --for 2h", "depalmactl host pause h1 --dir /srv/agent"),
)
@click.option("--for", "for_s", type=DURATION, metavar="TIME", help="Then it ends by itself (without: by `unpause`).")
@_DIR
@_HERE
@click.pass_obj
def pause(session: Session, name: str | None, for_s: float | None, folder: Path | None) -> None:
    """Have the agent on THIS machine make way at once: you need it for yourself.

    It works without any master. Tasks are put at the lowest priority, stand still, and move elsewhere, when and as the
    owner policy of the host says (`host show`). It holds over restarts of the agent and of the machine.
    """
    from depalma import pausing
    from depalma.ownership import Pause

    now = time.time()
    until = None if for_s is None else now + for_s
    places = _places(name, folder)
    for place in places:
        try:
            pausing.begin(place.folder, Pause(now, until, login_name()))
        except OSError as error:
            raise _denied(place, error) from error
    _show(session, places, until, "paused")


@host.command("unpause", examples=("depalmactl host unpause",))
@_DIR
@_HERE
@click.pass_obj
def unpause(session: Session, name: str | None, folder: Path | None) -> None:
    """Let the agent on THIS machine work again, as far as the owner policy of the host lets it."""
    from depalma import pausing

    places = _places(name, folder)
    for place in places:
        try:
            pausing.end(place.folder)
        except OSError as error:
            raise _denied(place, error) from error
    _show(session, places, None, "not paused")


def _denied(place: Place, error: OSError) -> failures.Failure:
    return failures.Failure(
        f"{place.folder}: {error.strerror}; give the command as the user of the agent", code="denied"
    )
