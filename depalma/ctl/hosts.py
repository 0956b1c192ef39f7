"""`host`, `group`, `ps`: the machines and what runs on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from depalma.ctl import ids
from depalma.ctl.command import SubGroup, command
from depalma.ctl.load import percent
from depalma.ctl.output import Column, show_rows, show_value
from depalma.ctl.session import Session
from depalma.ctl.wording import ago, clean, count, duration, listed, moment, size, slots

Row = Mapping[str, Any]


def since_heard(host: Row) -> str:
    """Returns how long ago the leader heard the host."""
    return "-" if host["last_seen_s"] is None else f"{duration(host['last_seen_s'])} ago"


_HOST_COLUMNS = (
    Column("NAME", lambda host: host["name"]),
    Column("STATE", lambda host: host["state"]),
    Column("SLOTS", lambda host: slots(host["running"], host["slots"])),
    Column("CPU", lambda host: percent(host["load"]["cpu_percent"]), right=True),
    Column("MEMORY", lambda host: percent(host["load"]["memory_percent"]), right=True),
    Column("CODE", lambda host: host["code_index"], right=True),
    Column("GROUPS", lambda host: listed(host["groups"]), cut=True),
    Column("HEARD", since_heard, right=True),
    Column("SINCE", lambda host: ago(host.get("since") or None), right=True),
    Column("REASON", lambda host: host.get("reason", ""), cut=True),
    Column("CPUS", lambda host: host["cpus"], right=True, wide=True),
    Column("SIZE", lambda host: size(host["memory_bytes"]), right=True, wide=True),
    Column("PRIORITY", lambda host: host["priority"], right=True, wide=True),
    Column("LABELS", lambda host: listed(f"{k}={v}" for k, v in host["labels"].items()), wide=True, cut=True),
    Column("VERSION", lambda host: host.get("version", ""), wide=True),
    Column("PYTHON", lambda host: host.get("python", ""), wide=True),
    Column("ADDRESS", lambda host: host.get("address", ""), wide=True),
)
_PROCESS_COLUMNS = (
    Column("TASK", lambda row: row["task"], right=True),
    Column("HOST", lambda row: row["host"]),
    Column("PID", lambda row: row["pid"], right=True),
    Column("PPID", lambda row: row["ppid"], right=True, wide=True),
    Column("USER", lambda row: row["user"]),
    Column("STATE", lambda row: "suspended" if row["suspended"] and row["state"] == "stopped" else row["state"]),
    Column("CPU", lambda row: percent(row["cpu_percent"]), right=True),
    Column("MEMORY", lambda row: size(row["rss_bytes"]), right=True),
    Column("THREADS", lambda row: row["threads"], right=True, wide=True),
    Column("TIME", lambda row: duration(row["elapsed_s"]), right=True),
    Column("COMMAND", lambda row: row["command"], cut=True),
)


@click.group(
    "host",
    cls=SubGroup,
    examples=("depalmactl host ls", "depalmactl host drain h1 --deadline 10m", "depalmactl host add h9 --slots 4"),
)
def host() -> None:
    """The machines that run tasks."""


@host.command(
    "ls", examples=("depalmactl host ls", "depalmactl host ls -o wide", "depalmactl host ls -o json | jq '.[].state'")
)
@click.pass_obj
def host_ls(session: Session) -> None:
    """List the hosts: state, slots in use, measured load, code index."""
    show_rows(session, session.get("/v1/hosts")["hosts"], _HOST_COLUMNS, key="name")


@host.command("show", examples=("depalmactl host show h1", "depalmactl host show h1 -o yaml"))
@click.argument("name", metavar="HOST")
@click.pass_obj
def host_show(session: Session, name: str) -> None:
    """Show one host."""
    from depalma.client.transport import segment

    view = session.get(f"/v1/hosts/{segment(name)}")
    measured = view["load"]
    lines = [
        ("Host", view["name"]),
        ("State", view["state"]),
        ("Since", f"{moment(view['since'])} ({ago(view['since'])})"),
        ("Reason", view.get("reason")),
        ("Moves at", moment(view["deadline_at"]) if view.get("deadline_at") else None),
        ("Owner", _owner_rules(view)),
        ("Slots", slots(view["running"], view["slots"])),
        ("Resources", _resources(view)),
        ("Groups", listed(view["groups"])),
        ("Labels", listed(f"{key}={value}" for key, value in view["labels"].items())),
        ("Priority", view["priority"]),
        ("Code index", view["code_index"]),
        ("Machine", f"{count(view['cpus'], 'CPU')}, {size(view['memory_bytes'])}"),
        ("Load", f"{measured['load1']:.2f} {measured['load5']:.2f} {measured['load15']:.2f}"),
        ("CPU", percent(measured["cpu_percent"])),
        ("Foreign CPU", percent(measured.get("foreign_cpu_percent", 0.0))),
        ("Memory", f"{percent(measured['memory_percent'])} ({size(measured['memory_used_bytes'])})"),
        ("Heard", since_heard(view)),
        ("Address", view.get("address")),
        ("Limits", view.get("limits")),
        ("Version", f"{view.get('version') or '?'}, Python {view.get('python') or '?'}"),
    ]
    show_value(session, view, [line for line in lines if line[1] not in (None, "")], key="name")


def _owner_rules(view: Row) -> str:
    """Returns what its owner allows; nothing if that was never said."""
    import msgspec

    from depalma.ownership import OwnerPolicy, described

    policy = msgspec.convert(view.get("owner_policy") or {}, OwnerPolicy)
    return "" if policy == OwnerPolicy() else described(policy)


def _resources(view: Row) -> str:
    """Returns what the host has so many of, and how much of it is taken."""
    taken = view.get("taken", {})
    has = {**({"gpus": view["gpus"]} if view.get("gpus") else {}), **view.get("resources", {})}
    words = [f"{name} {taken.get(name, 0)}/{number}" for name, number in has.items()]
    if taken.get("memory_bytes"):
        words.append(f"memory {size(taken['memory_bytes'])}/{size(view['memory_bytes'])}")
    return listed(words)


@click.group("group", cls=SubGroup, examples=("depalmactl group ls", "depalmactl group add render h3"))
def group() -> None:
    """Named sets of hosts."""


@group.command("ls", examples=("depalmactl group ls", "depalmactl group ls -o json"))
@click.pass_obj
def group_ls(session: Session) -> None:
    """List the groups, their hosts, and how many of their slots are free."""
    columns = (
        Column("NAME", lambda row: row["name"]),
        Column("SIZE", lambda row: len(row["hosts"]), right=True),
        Column("FREE", lambda row: f"{row['free_slots']}/{row['slots']}", right=True),
        Column("HOSTS", lambda row: listed(row["hosts"]), cut=True),
    )
    show_rows(session, session.get("/v1/groups")["groups"], columns, key="name")


@command(
    "ps", examples=("depalmactl ps", "depalmactl ps 42", "depalmactl ps -o json | jq '.[] | select(.rss_bytes > 1e9)'")
)
@click.argument("job", metavar="[JOB]", required=False, type=ids.JOB)
@click.pass_obj
def ps(session: Session, job: str | None) -> None:
    """List the processes of running tasks, of all jobs or of one, as the operating system sees them now."""
    number = None if job is None else ids.job_id(session, job)
    if number is not None:
        session.get(f"/v1/jobs/{number}")  # an unknown job is an error, not an empty list
    answer = session.get("/v1/ps", job=number)
    show_rows(session, answer["processes"], _PROCESS_COLUMNS, key="pid")
    if not session.structured:
        still = {row["task"]: row["suspended"] for row in answer["processes"] if row["suspended"]}
        for task, reason in still.items():
            session.narrate(f"{clean(task)} stands still: {clean(reason)}")
    if answer["missing"]:
        session.warn(f"not shown: {clean(listed(answer['missing']))} did not answer in time")
