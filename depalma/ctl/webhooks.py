"""`webhook add`, `ls`, `show`, `set`, `remove`, `replay`, `test`: who is told what happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from depalma.ctl import failures
from depalma.ctl.command import SubGroup
from depalma.ctl.output import Column, show_rows, show_value
from depalma.ctl.session import Session
from depalma.ctl.spec import login_name
from depalma.ctl.values import DURATION, Whole
from depalma.ctl.wording import ago, clean, count, listed, moment

F = TypeVar("F", bound=Callable[..., Any])
Row = Mapping[str, Any]
#: One blocking read; waiting goes on with another one.
_SLICE_S = 5.0


def _state(webhook: Row) -> str:
    return "failing" if webhook["error"] else "ok"


def _of(webhook: Row) -> str:
    """Returns whose events it gets, in words."""
    parts = [f"{field[:-1]} {listed(webhook[field])}" for field in ("jobs", "tags", "users") if webhook[field]]
    return "; ".join(parts) or "all"


def _missing(webhook: Row) -> str:
    missing = webhook["missing"]
    return "unknown" if missing is None else str(missing)


_COLUMNS = (
    Column("NAME", lambda webhook: webhook["name"]),
    Column("STATE", _state),
    Column("KINDS", lambda webhook: listed(webhook["kinds"]), cut=True),
    Column("OF", _of, cut=True),
    Column("LAST", lambda webhook: webhook["last"], right=True),
    Column("DELIVERED", lambda webhook: webhook["delivered"], right=True),
    Column("WAITING", lambda webhook: webhook["waiting"], right=True),
    Column("MISSING", _missing, right=True),
    Column("FAILING", lambda webhook: ago(webhook["failing_since"]), right=True),
    Column("ERROR", lambda webhook: webhook["error"], cut=True),
    Column("OLDEST", lambda webhook: webhook["oldest"], right=True, wide=True),
    Column("KEEP", lambda webhook: webhook["keep"], right=True, wide=True),
    Column("URL", lambda webhook: webhook["url"], wide=True, cut=True),
)
_NAME = click.argument("name", metavar="NAME")


@click.group(
    "webhook",
    cls=SubGroup,
    examples=(
        "depalmactl webhook add ci https://ci.example/depalma --event job.finished --tag nightly",
        "depalmactl webhook ls",
        "depalmactl webhook replay ci --from 120",
    ),
)
def webhook() -> None:
    """Targets that are told what happens, by HTTP, signed, in order, at least once."""


def _path(name: str, *rest: str) -> str:
    from depalma.client.transport import segment

    return "/".join(["/v1/webhooks", segment(name), *rest])


def _filters(function: F) -> F:
    """Adds the options that say which events a target gets."""
    for option in (
        click.option("--keep", type=Whole(1), metavar="N", help="Keep the latest N ids, delivered or not."),
        click.option("--user", "users", multiple=True, metavar="USER", help="Of jobs of this user; repeatable."),
        click.option("--tag", "tags", multiple=True, metavar="TAG", help="Of jobs with this tag; repeatable."),
        click.option("--job", "jobs", type=Whole(1), multiple=True, metavar="ID", help="Of this job; repeatable."),
        click.option(
            "--event", "kinds", multiple=True, metavar="KIND", help="job.finished, task.*, …, * for all; repeatable."
        ),
    ):
        function = option(function)
    return function


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, ())}


def _show_saved(session: Session, answer: Row, said: str) -> None:
    """Programs get all of it; people the secret, if there is a new one, and a line."""
    name, secret = answer["webhook"]["name"], answer["secret"]
    if session.structured or session.output == "name":
        show_value(session, {"name": name, **answer}, [], key="name")
    elif secret:
        click.echo(secret)
    hint = "; its secret is not shown again" if secret else ""
    session.narrate(f"webhook {clean(name)}: {said}{hint}")


@webhook.command(
    "add",
    examples=(
        "depalmactl webhook add ci https://ci.example/depalma > ci.secret",
        "depalmactl webhook add mine http://127.0.0.1:8080/ --event 'task.*' --event job.finished --user ann",
        "depalmactl webhook add done http://10.0.0.5/done --job 42",
    ),
)
@_filters
@_NAME
@click.argument("url", metavar="URL")
@click.pass_obj
def webhook_add(session: Session, /, name: str, url: str, **given: Any) -> None:
    """Make a webhook, and print the secret that signs what is sent.

    Without --event it is told of job.finished. Of several filters (--job, --tag, --user) all must be met, each by one
    of its values; events of no job, such as host.lost, meet none. What happened before is not told.
    """
    body = {"name": name, "url": url, "by": login_name(), **_given(**given)}
    _show_saved(session, session.post("/v1/webhooks", body), "added")


@webhook.command(
    "set",
    examples=(
        "depalmactl webhook set ci --url https://ci.example/v2",
        "depalmactl webhook set ci --event 'job.*' --no-tags",
        "depalmactl webhook set ci --new-secret > ci.secret",
    ),
)
@click.option("--url", metavar="URL", help="Where it goes.")
@_filters
@click.option("--no-jobs", is_flag=True, help="Of any job.")
@click.option("--no-tags", is_flag=True, help="Whatever the tags.")
@click.option("--no-users", is_flag=True, help="Whoever the user.")
@click.option("--new-secret", is_flag=True, help="Make another secret, and print it.")
@_NAME
@click.pass_context
def webhook_set(ctx: click.Context, /, name: str, new_secret: bool, **given: Any) -> None:
    """Change what is given of a webhook; the rest stays.

    Ids go on. What happened before the change was chosen by the filter of then. What was not delivered yet goes to the
    new URL, signed with the new secret.
    """
    session = ctx.find_object(Session)
    assert session is not None
    body: dict[str, Any] = {}
    for field in ("jobs", "tags", "users"):
        if given.pop(f"no_{field}"):
            if given[field]:
                raise click.UsageError(f"--{field[:-1]} and --no-{field} exclude each other", ctx)
            body[field] = []
    body |= _given(**given)
    if not body and not new_secret:
        raise click.UsageError("nothing to change: give one of the options", ctx)
    said = f"set {listed([*body, *(['secret'] if new_secret else [])])}"
    body |= {"new_secret": new_secret, "by": login_name()}
    _show_saved(session, session.send("PATCH", _path(name), body), said)


@webhook.command("ls", examples=("depalmactl webhook ls", "depalmactl webhook ls -o wide"))
@click.pass_obj
def webhook_ls(session: Session) -> None:
    """List the webhooks: how far each is, and what is wrong."""
    show_rows(session, session.get("/v1/webhooks")["webhooks"], _COLUMNS, key="name")


@webhook.command("show", examples=("depalmactl webhook show ci",))
@_NAME
@click.pass_obj
def webhook_show(session: Session, name: str) -> None:
    """Show a webhook."""
    view = session.get(_path(name))
    since, error = view["failing_since"], view["error"]
    ids = f"{view['last']} made, {view['delivered']} delivered, {view['waiting']} waiting, {_missing(view)} missing"
    lines = [
        ("Name", view["name"]), ("URL", view["url"]), ("Kinds", listed(view["kinds"])), ("Of", _of(view)),
        ("State", f"failing for {ago(since).removesuffix(' ago')}: {error}" if error else "ok"),
        ("Ids", ids),
        ("Kept", f"from {view['oldest']} (the latest {view['keep']})"),
        ("Made", f"{moment(view['made_at'])} by {view['by'] or '?'}"),
    ]  # fmt: skip
    show_value(session, view, lines, key="name")


@webhook.command("remove", examples=("depalmactl webhook remove ci",))
@_NAME
@click.pass_obj
def webhook_remove(session: Session, name: str) -> None:
    """End a webhook, with all that it has not delivered."""
    session.send("DELETE", _path(name), by=login_name())
    if session.structured or session.output == "name":
        show_value(session, {"name": name}, [], key="name")
    session.narrate(f"webhook {clean(name)}: removed")


@webhook.command(
    "replay",
    examples=(
        "depalmactl webhook replay ci --from 120",
        "depalmactl webhook replay ci --from 131 --skip    # leave out 130, which it always refuses",
    ),
)
@click.option("--from", "from_id", type=Whole(0), required=True, metavar="ID", help="The id to come next.")
@click.option("--skip", is_flag=True, help="Leave out what was not delivered before ID.")
@_NAME
@click.pass_obj
def webhook_replay(session: Session, name: str, from_id: int, skip: bool) -> None:
    """Deliver again from an id on, as far back as ids are kept (`webhook show`)."""
    body = {"from": from_id, "skip": skip, "by": login_name()}
    view = session.post(_path(name, "replay"), body)
    if session.structured or session.output == "name":
        show_value(session, view, [], key="name")
    session.narrate(f"webhook {clean(name)}: {count(view['waiting'], 'id')} from {from_id} on")


@webhook.command("test", examples=("depalmactl webhook test ci",))
@click.option("--wait", "wait_s", type=DURATION, default="10s", show_default=True, metavar="TIME", help="For how long.")
@_NAME
@click.pass_obj
def webhook_test(session: Session, name: str, wait_s: float) -> None:
    """Send a test event to one webhook, and wait until it was taken.

    It comes after what waits already. Exit code 1, with the reason, if it was not taken in time.
    """
    number = session.send("POST", _path(name, "test"), by=login_name())["id"]
    deadline = time.monotonic() + wait_s
    answer = session.ask(_path(name))
    while (view := answer.json())["delivered"] < number and (left_s := deadline - time.monotonic()) > 0:
        index = answer.headers.get("depalma-index", "0")
        answer = session.ask(_path(name), wait=f"{min(_SLICE_S, left_s):.3f}s", index=index)
    if view["delivered"] < number:
        why = view["error"] or f"{count(view['waiting'], 'id')} before it, or the receiver has not answered yet"
        raise failures.Failure(f"webhook {name}: id {number} is not delivered: {why}", code="not_delivered")
    if session.structured or session.output == "name":
        show_value(session, {"id": number, **view}, [], key="id")
    session.narrate(f"webhook {clean(name)}: id {number} delivered")
