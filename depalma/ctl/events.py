"""`events`: what happened, one line an event, resumable by number."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import click

from depalma.ctl.command import command
from depalma.ctl.output import print_json, print_yaml
from depalma.ctl.session import Session
from depalma.ctl.values import Whole
from depalma.ctl.wording import clean

_PAGE = 1000
#: How long one read may block. Short, as a frozen leader looks like a long wait.
_WAIT_S = 5
#: Above every event number: asks for none, and so learns the latest.
_AFTER_ALL = 10**15
Row = Mapping[str, Any]


@command(
    "events",
    examples=(
        "depalmactl events",
        "depalmactl events -f                      # follow; goes on when the leader changes",
        "depalmactl events --after 1200 -o jsonl",
        "depalmactl events -f -o jsonl | jq -c 'select(.kind == \"host.lost\")'",
    ),
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option("--after", type=Whole(0), metavar="INDEX", help="All events after this one.")
@click.option("-n", "--last", type=Whole(0), default=50, show_default=True, metavar="N", help="The last N.")
@click.pass_obj
def events(session: Session, follow: bool, after: int | None, last: int) -> None:
    """Print events, oldest first. Numbers grow by one and never repeat: with --after none is missed or doubled.

    When events after INDEX are no longer kept, that is an error (exit code 1) that names the oldest one.
    """
    start = _start(session, last) if after is None else after
    if follow:
        for event in _follow(session, start):
            _print(session, event)
        return
    found = _until_now(session, start)
    if session.output == "json":
        print_json(list(found))
    elif session.output == "yaml":
        print_yaml(list(found))
    else:
        for event in found:
            _print(session, event)


def _start(session: Session, last: int) -> int:
    answer = session.get("/v1/events", after=_AFTER_ALL, limit=1)
    return int(max(answer["latest"] - last, answer["oldest"] - 1, 0))


def _until_now(session: Session, after: int) -> Iterator[dict[str, Any]]:
    """Yields the events from `after` to the latest one at the time of the first answer."""
    latest: int | None = None
    while True:
        answer = session.get("/v1/events", after=after, limit=_PAGE)
        latest = answer["latest"] if latest is None else latest
        for event in answer["events"]:
            if event["index"] > latest:
                return
            yield event
            after = event["index"]
        if not answer["events"] or after >= latest:
            return


def _follow(session: Session, after: int) -> Iterator[dict[str, Any]]:
    wait: str | None = None  # the first look does not block, so that a cluster that is not there is noticed soon
    while True:
        for event in session.get("/v1/events", after=after, limit=_PAGE, wait=wait)["events"]:
            yield event
            after = event["index"]
        session.be_patient()
        wait = f"{_WAIT_S}s"


def event_text(event: Row) -> str:
    """Returns the event as `task.finished 42.7 h1 state=succeeded`."""
    parts = [event["kind"]]
    if event.get("job") is not None:
        parts.append(str(event["job"]) if event.get("task") is None else f"{event['job']}.{event['task']}")
    if event.get("host"):
        parts.append(event["host"])
    parts += [f"{key}={value}" for key, value in event.get("detail", {}).items() if value not in (None, "")]
    return clean(" ".join(parts))


def clock(at: float) -> str:
    """Returns the local time of day with milliseconds."""
    return time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at % 1 * 1000):03d}"


def _print(session: Session, event: Row) -> None:
    if session.structured:
        print_json(event)
    elif session.output == "name":
        click.echo(str(event["index"]))
    else:
        day = time.strftime("%Y-%m-%d ", time.localtime(event["at"])) if session.output == "wide" else ""
        click.echo(f"{event['index']:>8}  {day}{clock(event['at'])}  {event_text(event)}")
