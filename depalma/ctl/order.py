"""`order`: whose turn it is among users, and how many tasks of a tag, a user or a group run at once."""

from __future__ import annotations

from math import isfinite
from typing import Any

import click

from depalma.ctl.command import SubGroup
from depalma.ctl.output import Column, show_rows, show_value
from depalma.ctl.session import Session
from depalma.ctl.values import DURATION, Number, parse_size
from depalma.ctl.wording import count, size

_KIND = click.argument("kind", metavar="tag|user|group", type=click.Choice(["tag", "user", "group"]))
_NAME = click.argument("name", metavar="NAME")
_LIMITS = (
    Column("KIND", lambda row: row["kind"]),
    Column("NAME", lambda row: row["name"]),
    Column("LIMIT", lambda row: row["limit"], right=True),
    Column("TASKS", lambda row: row["tasks"], right=True),
)
_QUOTAS = (
    Column("KIND", lambda row: row["kind"]),
    Column("NAME", lambda row: row["name"]),
    Column("QUOTA", lambda row: _listed(row["most"])),
    Column("IN USE", lambda row: _listed(row["used"]) if row["name"] != "*" else "-"),
)
_USERS = (
    Column("USER", lambda row: row["user"] or "-"),
    Column("WEIGHT", lambda row: f"{row['weight']:g}", right=True),
    Column("USAGE", lambda row: f"{row['usage_s']:.0f}", right=True),
    Column("SLOTS", lambda row: f"{row['slots']:g}", right=True),
    Column("TASKS", lambda row: row["tasks"], right=True),
    Column("WAITING", lambda row: row["waiting"], right=True),
)


def _listed(amounts: dict[str, float]) -> str:
    parts = (
        f"memory={size(number)}" if what == "memory_bytes" else f"{what}={number:g}" for what, number in amounts.items()
    )
    return ", ".join(parts) or "-"


@click.group("order", cls=SubGroup, examples=("depalmactl order users", "depalmactl order limit tag db 4"))
def order() -> None:
    """Whose turn it is, and how many at once."""


@order.command("show", examples=("depalmactl order show", "depalmactl order show -o json"))
@click.pass_obj
def order_show(session: Session) -> None:
    """Show how fast usage is forgotten, and after how long a priority that gets nothing gets a task."""
    view = session.get("/v1/order")
    ageing = f"a priority that got nothing for {view['age_s']:g} s gets a task" if view["age_s"] else "off"
    lines = [
        ("Half-life", f"usage halves every {view['half_life_s']:g} s"),
        ("Ageing", ageing),
        ("Limits", len(view["limits"])),
        ("Quotas", len(view.get("quotas", []))),
        ("Users", len(view["users"])),
    ]
    show_value(session, view, lines, key="half_life_s")


@order.command("users", examples=("depalmactl order users", "depalmactl order users -o json"))
@click.pass_obj
def order_users(session: Session) -> None:
    """List the users: weight, usage in slot seconds (older use counts less), what runs and what waits of theirs."""
    show_rows(session, session.get("/v1/order")["users"], _USERS, key="user")


@order.command("limits", examples=("depalmactl order limits",))
@click.pass_obj
def order_limits(session: Session) -> None:
    """List the limits, and how many tasks are under each now."""
    show_rows(session, session.get("/v1/order")["limits"], _LIMITS, key="name")


@order.command(
    "limit",
    examples=(
        "depalmactl order limit tag db 4          # at most four tasks with the tag db, in the whole cluster",
        "depalmactl order limit user '*' 20       # each user",
        "depalmactl order limit user ann none     # no longer limited",
    ),
)
@_KIND
@_NAME
@click.argument("limit", metavar="N|none")
@click.pass_obj
def order_limit(session: Session, kind: str, name: str, limit: str) -> None:
    """Let at most N tasks of a tag, a user or a group be on hosts at once.

    What is there stays, also when that is more. `user '*'` is the limit of each user who has none of his own; a job
    counts for a group when it was submitted with `--group`.
    """
    from depalma.client.transport import segment

    path = f"/v1/limits/{kind}/{segment(name)}"
    if limit == "none":
        session.send("DELETE", path, None)
    elif limit.isdecimal():
        session.send("PUT", path, {"limit": int(limit)})
    else:
        raise click.BadParameter(f"{limit!r} is not a number, or none", param_hint="'N|none'")
    if session.structured or session.output == "name":
        show_value(
            session, {"kind": kind, "name": name, "limit": None if limit == "none" else int(limit)}, [], key="name"
        )
    said = "no limit" if limit == "none" else f"at most {count(int(limit), 'task')} at once"
    session.narrate(f"{kind} {name}: {said}")


@order.command("quotas", examples=("depalmactl order quotas",))
@click.pass_obj
def order_quotas(session: Session) -> None:
    """List the quotas, and what is in use under each now."""
    show_rows(session, session.get("/v1/order").get("quotas", []), _QUOTAS, key="name")


@order.command(
    "quota",
    examples=(
        "depalmactl order quota user '*' slots=20 gpus=2    # what the tasks of each user take at once",
        "depalmactl order quota group render memory=256G",
        "depalmactl order quota user ann none               # no quota any more",
    ),
)
@_KIND
@_NAME
@click.argument("amounts", nargs=-1, required=True, metavar="WHAT=N…|none")
@click.pass_obj
def order_quota(session: Session, kind: str, name: str, amounts: tuple[str, ...]) -> None:
    """Let the tasks of a tag, a user or a group take at most so much at once, in the whole cluster.

    WHAT is slots, gpus, memory, or a resource of hosts. What is not named is not limited; what was named before and
    is not any more, neither. What runs stays, also when that is more.
    """
    from depalma.client.transport import segment

    path = f"/v1/quotas/{kind}/{segment(name)}"
    most = None if amounts == ("none",) else _amounts(amounts)
    session.send("DELETE" if most is None else "PUT", path, None if most is None else {"most": most})
    if session.structured or session.output == "name":
        show_value(session, {"kind": kind, "name": name, "most": most}, [], key="name")
    said = "no quota" if most is None else f"at most {', '.join(amounts)} at once"
    session.narrate(f"{kind} {name}: {said}")


def _amounts(entries: tuple[str, ...]) -> dict[str, float]:
    """Returns what the entries say. Errors: click.BadParameter."""
    most: dict[str, float] = {}
    for entry in entries:
        what, _, text = entry.partition("=")
        if ("memory_bytes" if what == "memory" else what) in most:
            raise click.BadParameter(f"{entry!r}: {what} is given twice", param_hint="'WHAT=N…|none'")
        try:
            number = parse_size(text) if what == "memory" else float(text)
            if not isfinite(number):
                raise ValueError
            most["memory_bytes" if what == "memory" else what] = number
        except ValueError:
            allowed = "WHAT=NUMBER, such as slots=20, gpus=2 or memory=64G"
            raise click.BadParameter(f"{entry!r} is not {allowed}", param_hint="'WHAT=N…|none'") from None
    return most


@order.command("share", examples=("depalmactl order share ann 2",))
@click.argument("user", metavar="USER")
@click.argument("weight", metavar="WEIGHT", type=Number(0, min_open=True))
@click.pass_obj
def order_share(session: Session, user: str, weight: float) -> None:
    """Give a user another weight: within a priority, users get slots in proportion to their weights (1)."""
    from depalma.client.transport import segment

    session.send("PUT", f"/v1/shares/{segment(user)}", {"weight": weight})
    if session.structured or session.output == "name":
        show_value(session, {"user": user, "weight": weight}, [], key="user")
    session.narrate(f"user {user}: weight {weight:g}")


@order.command("set", examples=("depalmactl order set --half-life 6h", "depalmactl order set --age 0"))
@click.option("--half-life", type=DURATION, metavar="TIME", help="After this, usage counts half (1 day).")
@click.option("--age", type=DURATION, metavar="TIME", help="A priority that got nothing for so long gets a task (1 h).")
@click.pass_context
def order_set(ctx: click.Context, half_life: float | None, age: float | None) -> None:
    """Change how fast usage is forgotten, and ageing (0: strict priority for ever)."""
    session = ctx.find_object(Session)
    assert session is not None
    values: dict[str, Any] = {"half_life_s": half_life, "age_s": age}
    body = {name: value for name, value in values.items() if value is not None}
    if not body:
        raise click.UsageError("nothing to change: give one of the options", ctx)
    session.send("PATCH", "/v1/order", body)
    if session.structured:
        show_value(session, body, [], key="half_life_s")
    session.narrate("order: changed")
