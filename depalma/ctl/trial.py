"""What would become of a job: `submit --dry-run`."""

from __future__ import annotations

from typing import Any

from depalma.ctl.output import show_value
from depalma.ctl.session import Session
from depalma.ctl.wording import count, moment


def show_trial(session: Session, spec: dict[str, Any]) -> None:
    """Asks the leader and prints where and when the job would run; nothing is submitted."""
    view = session.send("POST", "/v1/trials", spec)
    lines: list[tuple[str, Any]] = [("Tasks", view["tasks"])]
    lines += [("At once", f"{count(tasks, 'task')} on {host}") for host, tasks in view["starting"].items()]
    if view["waiting"]:
        lines.append(("Waiting", count(view["waiting"], "task")))
    if not view["starting"]:
        when = view["starts_by"]
        lines.append(("Starts", f"{moment(when)} at the latest" if when is not None else "nobody can say when"))
    lines += [("", line) for line in view["lines"]]
    show_value(session, view, lines, key="tasks")
