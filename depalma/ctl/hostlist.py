"""`host add`, `remove`, `drain`, `undrain`, `set`, and the same of groups: who belongs to the cluster and gets work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from depalma.ctl import failures
from depalma.ctl.hosts import Row, group, host
from depalma.ctl.invite import host_invite
from depalma.ctl.output import show_value
from depalma.ctl.owners import owner_fields, pause, unpause
from depalma.ctl.session import Session
from depalma.ctl.spec import login_name
from depalma.ctl.values import DURATION, Whole, parse_counts
from depalma.ctl.wording import clean, count, listed

__all__ = ["group", "host", "host_invite", "pause", "unpause"]

#: One blocking read; waiting goes on with another one.
_SLICE_S = 5.0


def _labels(_ctx: click.Context, _parameter: click.Parameter, entries: Sequence[str]) -> dict[str, str]:
    labels = {}
    for entry in entries:
        key, equals, value = entry.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{entry!r} is not KEY=VALUE")
        labels[key] = value
    return labels


_GROUPS = click.option("--group", "groups", multiple=True, metavar="GROUP", help="A group that it is in; repeatable.")
_LABELS = click.option("--label", "labels", multiple=True, metavar="K=V", callback=_labels, help="A label; repeatable.")
_PRIORITY = click.option("--priority", type=int, metavar="N", help="Tasks go to hosts of the highest level first.")
_SLOTS = click.option("--slots", type=Whole(0), metavar="N", help="Tasks at once (0: what its agent says).")
_GPUS = click.option("--gpus", type=Whole(0), metavar="N", help="GPUs (0: what its agent says).")
_RESOURCES = click.option(
    "--resource",
    "resources",
    multiple=True,
    metavar="NAME=N",
    callback=parse_counts,
    help="What it has so many of, such as licences (0: none any more); repeatable.",
)
_NAME = click.argument("name", metavar="HOST")


def _path(name: str, *rest: str) -> str:
    from depalma.client.transport import segment

    return "/".join(["/v1/hosts", segment(name), *rest])


def _show(session: Session, view: Row, said: str) -> None:
    """Programs get the host as it is now; people a line."""
    if session.structured or session.output == "name":
        show_value(session, view, [], key="name")
    session.narrate(f"host {clean(view['name'])}: {said}")


@host.command(
    "add",
    examples=(
        "depalmactl host add h9",
        "depalmactl host add h9 --slots 4 --group render --label os=debian --priority 10",
        "depalmactl host add h10 --gpus 2 --resource licence=3",
    ),
)
@_GROUPS
@_LABELS
@_PRIORITY
@_SLOTS
@_GPUS
@_RESOURCES
@_NAME
@click.pass_obj
def host_add(
    session: Session,
    name: str,
    groups: tuple[str, ...],
    labels: dict[str, str],
    priority: int | None,
    slots: int | None,
    gpus: int | None,
    resources: dict[str, int],
) -> None:
    """Make a host known to the cluster.

    Its agent may start afterwards, with any cluster file that names the masters:
    depalma-agent --config FILE --name HOST. Until it has connected the host is `down`.
    """
    body = {
        "name": name, "groups": groups, "labels": labels, "priority": priority or 0, "slots": slots or 0,
        "gpus": gpus or 0, "resources": resources,
    }  # fmt: skip
    _show(session, session.send("POST", "/v1/hosts", body), "added")


@host.command(
    "set",
    examples=(
        "depalmactl host set h1 --slots 8",
        "depalmactl host set h1 --label disk=ssd --remove-label old --priority 20",
        "depalmactl host set h1 --group render --group night    # these groups, and no other",
        "depalmactl host set h1 --owner idle_s=15m --owner cpu_percent=20 --owner suspend_s=0",
        "depalmactl host set h1 --owner 'hours=mon-fri 18:00-08:00, sat-sun' --owner suspend_s=never",
    ),
)
@_GROUPS
@click.option("--no-groups", is_flag=True, help="It is in no group.")
@_LABELS
@click.option("--remove-label", "dropped", multiple=True, metavar="K", help="A label that it loses; repeatable.")
@_PRIORITY
@_SLOTS
@_GPUS
@click.option(
    "--owner",
    "owner",
    multiple=True,
    metavar="FIELD=VALUE",
    callback=owner_fields,
    help="When its owner lets it work, and how tasks make way (docs/configuration.md); repeatable.",
)
@click.option("--no-owner", is_flag=True, help="It has no owner to look after.")
@_RESOURCES
@_NAME
@click.pass_context
def host_set(
    ctx: click.Context,
    name: str,
    groups: tuple[str, ...],
    no_groups: bool,
    labels: dict[str, str],
    dropped: tuple[str, ...],
    priority: int | None,
    slots: int | None,
    gpus: int | None,
    owner: dict[str, Any],
    no_owner: bool,
    resources: dict[str, int],
) -> None:
    """Change what is given of a host; the rest stays.

    Effective with the next task that is placed. What runs there goes on, also when there are fewer slots or other
    groups now.
    """
    session = ctx.find_object(Session)
    assert session is not None
    if groups and no_groups:
        raise click.UsageError("--group and --no-groups exclude each other", ctx)
    body: dict[str, Any] = {
        key: value for key, value in (("priority", priority), ("slots", slots), ("gpus", gpus)) if value is not None
    }
    if groups or no_groups:
        body["groups"] = groups
    if labels or dropped:
        body["labels"] = {**dict.fromkeys(dropped), **labels}
    if resources:
        body["resources"] = resources
    if owner or no_owner:
        if body or (owner and no_owner):
            raise click.UsageError("--owner and --no-owner are changes of their own: give nothing else with one", ctx)
        view = (
            session.send("PATCH", _path(name, "owner"), owner)
            if owner
            else session.send("DELETE", _path(name, "owner"))
        )
        _show(session, view, f"set {listed(owner)}" if owner else "has no owner to look after")
        return
    if not body:
        raise click.UsageError("nothing to change: give one of the options", ctx)
    _show(session, session.send("PATCH", _path(name), body), f"set {listed(body)}")


@host.command(
    "remove",
    examples=(
        "depalmactl host remove h9",
        "depalmactl host drain h9 --deadline 10m --wait && depalmactl host remove h9",
        "depalmactl host remove h9 --force          # the machine is gone, or must be free now",
    ),
)
@click.option("--force", is_flag=True, help="Although tasks run there: they are ended and run elsewhere.")
@_NAME
@click.pass_obj
def host_remove(session: Session, name: str, force: bool) -> None:
    """Take a host off the list; its agent is told, and ends with exit code 3.

    Refused while tasks run there. With --force it gets no more work; its tasks run elsewhere as soon as they are
    surely dead: when its agent has said so, or when it was silent for longer than its lease. A host of the cluster file
    does not come back by itself: `host add` brings it back.
    """
    answer = session.send("DELETE", _path(name), force=force, by=login_name())
    if session.structured:
        show_value(session, {"name": name, **answer}, [], key="name")
    elif session.output == "name":
        show_value(session, {"name": name}, [], key="name")
    if answer["removed"]:
        session.narrate(f"host {clean(name)}: removed")
    else:
        session.narrate(f"host {clean(name)}: is removed when {count(answer['waits_for'], 'task')} of it cannot live")


@host.command(
    "drain",
    examples=(
        "depalmactl host drain h1",
        "depalmactl host drain h1 --deadline 10m --reason 'new kernel'",
        "depalmactl host drain h1 --deadline 10m --wait && ssh h1 sudo reboot",
    ),
)
@click.option(
    "--deadline",
    "deadline_s",
    type=DURATION,
    metavar="TIME",
    help="Then what still runs is ended and runs elsewhere (without: it may take its time).",
)
@click.option("--reason", default="", metavar="TEXT", help="Shown wherever the host is.")
@click.option("--wait", is_flag=True, help="Return when nothing runs there any more.")
@_NAME
@click.pass_obj
def host_drain(session: Session, name: str, deadline_s: float | None, reason: str, wait: bool) -> None:
    """Give a host no new work, until `host undrain`.

    What has not started goes elsewhere at once. What runs may end; at the deadline it gets SIGTERM, then the job's
    grace time, then SIGKILL, and runs elsewhere as a new attempt (a task that is not restartable ends as lost).
    The host is `draining`, then `drained`, whatever leader there is and however often its agent starts.
    Said again, it changes deadline and reason.
    """
    body = {"deadline_s": deadline_s, "reason": reason, "by": login_name()}
    view = session.send("POST", _path(name, "drain"), body)
    if wait:
        view = _drained(session, name, view)
    left = f", {count(view['running'], 'task')} left" if view["running"] else ""
    _show(session, view, f"{view['state']}{left}")


def _drained(session: Session, name: str, view: dict[str, Any]) -> dict[str, Any]:
    """Waits until the host is drained. Errors: Failure when somebody took the drain back, or removed the host."""
    while view["state"] == "draining" or view["running"]:
        view = session.get(_path(name), wait=f"{_SLICE_S:.3f}s", until="drained")
        if view["state"] == "up":
            raise failures.Failure(f"host {name} is up again: its drain was taken back", code="undrained")
    return view


@host.command("undrain", examples=("depalmactl host undrain h1",))
@_NAME
@click.pass_obj
def host_undrain(session: Session, name: str) -> None:
    """Give a host work again."""
    view = session.send("POST", _path(name, "undrain"))
    _show(session, view, view["state"])


# ---------------------------------------------------------------- groups

_HOSTS = click.argument("hosts", nargs=-1, required=True, metavar="HOST…")
_GROUP = click.argument("name", metavar="GROUP")


def _group_path(name: str, *rest: str) -> str:
    from depalma.client.transport import segment

    return "/".join(["/v1/groups", segment(name), *rest])


def _show_group(session: Session, name: str, answer: Row) -> None:
    if session.structured or session.output == "name":
        show_value(session, {"name": name, **answer}, [], key="name")
    session.narrate(f"group {clean(name)}: {clean(listed(answer['hosts'], limit=20)) or 'no host'}")


@group.command("set", examples=("depalmactl group set render h1 h2",))
@_GROUP
@_HOSTS
@click.pass_obj
def group_set(session: Session, name: str, hosts: tuple[str, ...]) -> None:
    """Say which hosts a group has: these, and no other."""
    _show_group(session, name, session.send("PUT", _group_path(name), {"hosts": hosts}))


@group.command("add", examples=("depalmactl group add render h3", "depalmactl group add night h1 h2 h3"))
@_GROUP
@_HOSTS
@click.pass_obj
def group_add(session: Session, name: str, hosts: tuple[str, ...]) -> None:
    """Put hosts into a group; it begins with its first host.

    A job may name a group before: it waits, and `explain` says so.
    """
    _show_group(session, name, session.send("POST", _group_path(name, "hosts"), {"hosts": hosts}))


@group.command(
    "remove",
    examples=(
        "depalmactl group remove render h3",
        "depalmactl group remove render            # all of it",
        "depalmactl group remove render --force    # although jobs wait for it",
    ),
)
@click.option("--force", is_flag=True, help="Although queued jobs name it: they wait.")
@_GROUP
@click.argument("hosts", nargs=-1, metavar="[HOST…]")
@click.pass_obj
def group_remove(session: Session, name: str, hosts: tuple[str, ...], force: bool) -> None:
    """Take hosts out of a group, or all of them: then there is no such group.

    Refused when no host would be left and queued jobs name the group. What runs goes on.
    """
    named = ",".join(hosts) or None
    _show_group(session, name, session.send("DELETE", _group_path(name), force=force, hosts=named))
