"""`load`: how busy the machines are, now and over the last time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from depalma.ctl.command import command
from depalma.ctl.output import Column, show_rows
from depalma.ctl.session import Session
from depalma.ctl.values import DURATION
from depalma.ctl.wording import clean, duration, listed, moment, size, slots

Row = Mapping[str, Any]

_BARS = "▁▂▃▄▅▆▇█"
_GAP = " "
_WIDTH = 60  # of a line over time, at most


def percent(value: float) -> str:
    """Returns `37%`."""
    return f"{value:.0f}%"


def rate(bytes_per_s: float) -> str:
    """Returns `1.5 MiB/s`."""
    return f"{size(bytes_per_s)}/s"


def _plain(value: float) -> str:
    return f"{value:.2f}"


def _figure(row: Row, name: str) -> float:
    """Masters of an older version do not tell all of them."""
    return float(row["load"].get(name, 0))


def _gpus(row: Row) -> str:
    gpus = row["load"].get("gpus", ())
    return listed(percent(gpu["busy_percent"]) for gpu in gpus)


def _free(row: Row, what: str) -> str:
    return f"{size(_figure(row, f'{what}_free_bytes'))} of {size(_figure(row, f'{what}_total_bytes'))}"


_COLUMNS = (
    Column("HOST", lambda row: row["host"]),
    Column("STATE", lambda row: row["state"]),
    Column("SLOTS", lambda row: slots(row["running"], row["slots"])),
    Column("LOAD1", lambda row: _plain(_figure(row, "load1")), right=True),
    Column("LOAD5", lambda row: _plain(_figure(row, "load5")), right=True),
    Column("LOAD15", lambda row: _plain(_figure(row, "load15")), right=True),
    Column("CPU", lambda row: percent(_figure(row, "cpu_percent")), right=True),
    Column("FOREIGN", lambda row: percent(_figure(row, "foreign_cpu_percent")), right=True),
    Column("MEMORY", lambda row: percent(_figure(row, "memory_percent")), right=True),
    Column("FREE", lambda row: size(_figure(row, "folder_free_bytes")), right=True),
    Column("GPUS", lambda row: _gpus(row), cut=True),
    Column("TASKS", lambda row: percent(_figure(row, "tasks_cpu_percent")), right=True, wide=True),
    Column("USED", lambda row: size(_figure(row, "memory_used_bytes")), right=True, wide=True),
    Column("AVAILABLE", lambda row: size(_figure(row, "memory_available_bytes")), right=True, wide=True),
    Column("SWAP", lambda row: size(_figure(row, "swap_used_bytes")), right=True, wide=True),
    Column("FOLDER", lambda row: _free(row, "folder"), right=True, wide=True),
    Column("ROOT", lambda row: _free(row, "root"), right=True, wide=True),
    Column("READ", lambda row: rate(_figure(row, "disk_read_bytes_per_s")), right=True, wide=True),
    Column("WRITTEN", lambda row: rate(_figure(row, "disk_written_bytes_per_s")), right=True, wide=True),
    Column("RECEIVED", lambda row: rate(_figure(row, "network_received_bytes_per_s")), right=True, wide=True),
    Column("SENT", lambda row: rate(_figure(row, "network_sent_bytes_per_s")), right=True, wide=True),
)
#: What is shown over time: field, heading, how a value is said, what fills the whole height (0: the highest mean).
_OVER_TIME = (
    ("load1", "load", _plain, 0.0),
    ("cpu_percent", "CPU", percent, 100.0),
    ("tasks_cpu_percent", "CPU of tasks", percent, 100.0),
    ("foreign_cpu_percent", "foreign CPU", percent, 100.0),
    ("memory_percent", "memory", percent, 100.0),
    ("swap_used_bytes", "swap used", size, 0.0),
    ("disk_read_bytes_per_s", "disk read", rate, 0.0),
    ("disk_written_bytes_per_s", "disk written", rate, 0.0),
    ("network_received_bytes_per_s", "received", rate, 0.0),
    ("network_sent_bytes_per_s", "sent", rate, 0.0),
    ("folder_free_bytes", "disk free", size, 0.0),
    ("gpu_busy_percent", "GPUs", percent, 100.0),
    ("gpu_memory_used_bytes", "GPU memory", size, 0.0),
)
_HISTORY_COLUMNS = (
    Column("HOST", lambda row: row["host"]),
    Column("WHAT", lambda row: row["what"]),
    Column("NOW", lambda row: row["now"], right=True),
    Column("MEAN", lambda row: row["mean"], right=True),
    Column("MAX", lambda row: row["max"], right=True),
    Column("OVER TIME", lambda row: row["line"]),
)


@command(
    "load",
    examples=(
        "depalmactl load",
        "depalmactl load h1 -o wide",
        "depalmactl load h1 --history              # the last hour",
        "depalmactl load --history 5m",
        "depalmactl load h1 --history -o json | jq '.[].history.points[] | [.at, .max.cpu_percent]'",
    ),
)
@click.argument("name", metavar="[HOST]", required=False)
@click.option(
    "--history", "last_s", metavar="[DURATION]", type=DURATION, is_flag=False, flag_value="1h",
    help="Show the last time too, up to an hour, which it is if none is given: what each agent remembers since its "
    "start, in steps of 5 s for up to 5 minutes, else of a minute.",
)  # fmt: skip
@click.pass_obj
def load(session: Session, name: str | None, last_s: float | None) -> None:
    """Show the measured load of the hosts: everything that runs there, not only tasks.

    CPU is of all CPUs together; FOREIGN is the part of it that no task of the cluster uses. FREE is the room on the
    disk of the agent's folder.
    """
    answer = session.get("/v1/load", host=name, history=None if last_s is None else f"{last_s:g}s")
    rows = answer["hosts"]
    if last_s is None or session.structured or session.output == "name":
        show_rows(session, rows, _COLUMNS, key="host")
    else:
        show_rows(session, list(over_time(rows)), _HISTORY_COLUMNS, key="host")
    if last_s is not None:
        for row in rows:
            _warn_of_gap(session, row, last_s)
    if answer.get("missing"):
        session.warn(f"no history: {clean(listed(answer['missing']))} did not answer in time")


def over_time(rows: Sequence[Row]) -> Iterator[Row]:
    """Yields a line a host and figure, of the hosts that told their history; what was never above zero is left out."""
    for row in rows:
        points = (row.get("history") or {}).get("points", ())
        for field, what, said, full in _OVER_TIME if points else ():
            highest = max(point["max"][field] for point in points)
            if highest <= 0 and field not in ("cpu_percent", "load1"):
                continue
            samples = sum(point["samples"] for point in points)
            mean = sum(point["mean"][field] * point["samples"] for point in points) / samples
            yield {
                "host": row["host"],
                "what": what,
                "now": said(points[-1]["mean"][field]),
                "mean": said(mean),
                "max": said(highest),
                "line": sparkline(points, field, row["history"]["step_s"], full),
            }


def sparkline(points: Sequence[Row], field: str, step_s: float, full: float) -> str:
    """Returns one character a step, the newest at the end; steps without a point are empty."""
    newest = points[-1]["at"]
    full = full or max(point["mean"][field] for point in points) or 1.0
    cells = [_GAP] * (round((newest - points[0]["at"]) / step_s) + 1)
    for point in points:
        height = int(min(1.0, point["mean"][field] / full) * (len(_BARS) - 1) + 0.5)
        cells[-1 - round((newest - point["at"]) / step_s)] = _BARS[height]
    return "".join(cells[-_WIDTH:])


def _warn_of_gap(session: Session, row: Row, last_s: float) -> None:
    history = row.get("history")
    if history and history["began_at"] > time.time() - last_s:
        age = duration(time.time() - history["began_at"])
        host = clean(row["host"])
        session.warn(f"{host}: nothing from before {moment(history['began_at'])}: its agent was started {age} ago")
