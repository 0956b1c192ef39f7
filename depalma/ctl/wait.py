"""`wait`, and how a job's end becomes an exit code."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import click

from depalma.ctl import failures, ids
from depalma.ctl.command import command
from depalma.ctl.output import print_json, print_yaml
from depalma.ctl.session import Session
from depalma.ctl.values import DURATION
from depalma.ctl.wording import clean, duration

FINAL = frozenset({"succeeded", "failed", "cancelled", "timed_out", "lost"})
#: One blocking read; waiting goes on with another one. Short, as a frozen leader looks like a long wait.
SLICE_S = 5.0
_DRAW_S = 0.5


@command(
    "wait",
    examples=(
        "depalmactl wait 42",
        "depalmactl wait 40-45 --timeout 10m",
        "depalmactl wait last && echo all well",
        "depalmactl wait 42 -o json | jq .exit_code",
    ),
)
@click.option("--timeout", "limit_s", type=DURATION, metavar="TIME", help="Give up after this, with exit code 124.")
@click.argument("jobs", nargs=-1, required=True, type=ids.JOBS, metavar="JOB…")
@click.pass_obj
def wait(session: Session, jobs: tuple[list[str], ...], limit_s: float | None) -> None:
    """Wait until the jobs are over and exit with the job's own exit code (128+n for signal n).

    Of several jobs, the first that did not succeed gives the code. 124: the wait timed out; 125: the wait itself
    failed. Once it has been answered it goes on through five minutes without any master, as do run, submit --wait,
    logs -f, events -f and jobs -w.
    """
    failures.passes_job_code = True
    wait_and_exit(session, ids.resolve(session, jobs), limit_s=limit_s)


def wait_and_exit(
    session: Session, jobs: Sequence[int], *, limit_s: float | None = None, print_jobs: bool = True
) -> NoReturn:
    """Waits for the jobs, prints them for programs, and exits."""
    deadline = None if limit_s is None else time.monotonic() + limit_s
    views = []
    for job in jobs:
        view = wait_for(session, job, deadline=deadline, watcher=_watcher(session))
        if view["state"] not in FINAL:
            tasks = view["tasks"]
            done = tasks["total"] - tasks["queued"] - tasks["running"]
            raise failures.Failure(
                f"job {job} is not over after {duration(limit_s)} ({done} of {tasks['total']} tasks are); it goes on",
                exit_code=failures.WAIT_TIMED_OUT,
                code="wait_timed_out",
            )
        views.append(view)
    if print_jobs:
        _print(session, views)
    codes = [exit_code(session, view) for view in views]
    sys.exit(next((code for code in codes if code), 0))


def wait_for(
    session: Session,
    job: int,
    *,
    deadline: float | None = None,
    watcher: Callable[[Mapping[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Returns the job's view once it is over, or as it is at the deadline (monotonic seconds)."""
    slice_s = SLICE_S if watcher is None else _DRAW_S
    # The first look does not block: a blocking read is tried for as long as it may block, even when nobody is there.
    view: dict[str, Any] = session.get(f"/v1/jobs/{job}")
    session.be_patient(deadline)
    while True:
        if watcher is not None:
            watcher(view)
        now = time.monotonic()
        if view["state"] in FINAL or (deadline is not None and now >= deadline):
            return view
        left_s = slice_s if deadline is None else min(slice_s, deadline - now)
        view = session.get(f"/v1/jobs/{job}", wait=f"{left_s:.3f}s", until="final")


def exit_code(session: Session, view: Mapping[str, Any]) -> int:
    """Returns the code that `wait`, `run` and `submit --wait` exit with for a finished job."""
    if view["state"] == "succeeded":
        return 0
    code = view.get("exit_code")
    if code:
        return _as_code(int(code), None)
    for state in ("failed", "timed_out", "lost", "cancelled"):
        tasks = session.get(f"/v1/jobs/{view['id']}/tasks", state=state, limit=1)["tasks"]
        if tasks:
            return _as_code(tasks[0].get("exit_code"), tasks[0].get("signal"))
    return failures.FAILED


def _as_code(code: int | None, signal: int | None) -> int:
    """A job that did not succeed never gives 0."""
    if signal:
        return 128 + signal
    if code and code < 0:
        return 128 - code
    return min(code, 255) if code else failures.FAILED


def cause(view: Mapping[str, Any]) -> str:
    """Returns why the job ended as it did, for behind the word that says how."""
    return clean(view["reason"]).removeprefix(f"{view['state']}: ")


def ending(view: Mapping[str, Any]) -> str:
    """Returns one line that says how a job ended."""
    tasks = view["tasks"]
    took = duration((view["finished_at"] or 0) - view["submitted_at"]) if view["finished_at"] else ""
    parts = [f"{tasks[state]} {state}" for state in ("succeeded", "failed", "cancelled", "lost") if tasks[state]]
    reason = f": {cause(view)}" if view.get("reason") else ""
    counted = f" ({', '.join(parts)} of {tasks['total']})" if tasks["total"] > 1 else ""
    return f"job {view['id']} {view['state']}{counted} after {took}{reason}"


def _print(session: Session, views: Sequence[Mapping[str, Any]]) -> None:
    """One job gives one object; several give a list."""
    if session.output == "jsonl":
        for view in views:
            print_json(view)
    elif session.output == "json":
        print_json(views[0] if len(views) == 1 else views)
    elif session.output == "yaml":
        print_yaml(views[0] if len(views) == 1 else views)
    else:
        for view in views:
            session.narrate(ending(view))


def _watcher(session: Session) -> Callable[[Mapping[str, Any]], None] | None:
    """A progress bar on stderr, where a person looks at it."""
    if session.quiet or session.structured or not sys.stderr.isatty():
        return None
    from depalma.ctl.progress import JobProgress

    return JobProgress(color=session.color)
