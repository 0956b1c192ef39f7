"""What would become of a job: `submit --dry-run`."""

from __future__ import annotations

import time
from typing import Any

from depalma.ctl.output import show_value
from depalma.ctl.session import Session
from depalma.ctl.wording import count, duration, moment


def show_trial(session: Session, spec: dict[str, Any]) -> None:
    """Asks the leader and prints where and when the job would run; nothing is submitted."""
    view = session.send("POST", "/v1/trials", spec)
    lines: list[tuple[str, Any]] = [("Tasks", view["tasks"])]
    lines += [("At once", f"{count(tasks, 'task')} on {host}") for host, tasks in view["starting"].items()]
    if view["waiting"]:
        lines.append(("Waiting", count(view["waiting"], "task")))
    if not view["starting"]:
        lines.append(("Starts", _when(view)))
    lines += [("", line) for line in view["lines"]]
    show_value(session, view, lines, key="tasks")


def _when(view: dict[str, Any]) -> str:
    """Returns when the job would start, in words."""
    about, latest = view["starts_about"], view["starts_by"]
    words = f"{moment(latest)} at the latest" if latest is not None else ""
    if about is None:
        return words or f"nobody can say when: {view['forecast']}"
    left_s = about - time.time()
    soon = f"in about {duration(left_s)} ({moment(about)})" if left_s > 1 else "any moment"
    return f"{soon}: {view['forecast']}{'; ' + words if words else ''}"
