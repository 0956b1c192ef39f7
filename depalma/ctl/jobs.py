"""`jobs`, `show`, `explain`, `cancel`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from depalma.ctl import ids
from depalma.ctl.command import command
from depalma.ctl.moments import PAST
from depalma.ctl.output import Column, plain_table, print_json, show_rows, show_value
from depalma.ctl.session import Session
from depalma.ctl.values import Parsed, Whole
from depalma.ctl.wording import ago, clean, count, duration, listed, moment, size
from depalma.gpuparts import given

STATES = (
    "held", "blocked", "queued", "assigned", "running", "suspended",
    "succeeded", "failed", "cancelled", "timed_out", "lost",
)  # fmt: skip
#: `jobs -w` looks at most so often, however much happens in the cluster.
_WATCH_PAUSE_S = 0.25
_PAGE = 1000
#: Cancelling more jobs than this asks first, where somebody can answer.
_MANY = 10
Row = Mapping[str, Any]


def progress(job: Row) -> str:
    """Returns `12/100`, with what went wrong: `12/100 (3 failed)`."""
    tasks = job["tasks"]
    done = tasks["total"] - tasks["queued"] - tasks["running"]
    bad = [f"{tasks[state]} {state}" for state in ("failed", "lost") if tasks[state]]
    return f"{done}/{tasks['total']}" + (f" ({', '.join(bad)})" if bad and tasks["total"] > 1 else "")


def running_time(job: Row, now: float | None = None) -> str:
    """Returns how long the job has run, or ran."""
    if job["started_at"] is None:
        return "-"
    end = job["finished_at"] if job["finished_at"] is not None else (now or time.time())
    return duration(end - job["started_at"])


_JOB_COLUMNS = (
    Column("ID", lambda job: job["id"], right=True),
    Column("STATE", lambda job: job["state"]),
    Column("NAME", lambda job: job["name"], cut=True),
    Column("USER", lambda job: job["user"]),
    Column("TASKS", progress),
    Column("SUBMITTED", lambda job: ago(job["submitted_at"])),
    Column("TIME", running_time, right=True),
    Column("EXIT", lambda job: job["exit_code"], right=True),
    Column("PRIORITY", lambda job: job["priority"], right=True, wide=True),
    Column("GROUP", lambda job: job["group"], wide=True, cut=True),
    Column("TAGS", lambda job: listed(job["tags"]), wide=True, cut=True),
    Column("CODE", lambda job: job["code_index"], right=True, wide=True),
    Column("COMMAND", lambda job: job.get("command", ""), wide=True, cut=True),
    Column("REASON", lambda job: job.get("reason", ""), wide=True, cut=True),
)


def _states(text: str) -> str:
    """Returns several states, separated by commas, as the API takes them. Errors: ValueError."""
    wrong = [word for word in text.split(",") if word not in STATES]
    if wrong:
        raise ValueError(f"{wrong[0]!r} given; allowed: {', '.join(STATES)}, several with commas between them")
    return text


_TASK_COLUMNS = (
    Column("TASK", lambda task: task["id"], right=True),
    Column("STATE", lambda task: task["state"]),
    Column("HOST", lambda task: task["host"]),
    Column("ATTEMPT", lambda task: task["attempt"] or None, right=True),
    Column("EXIT", lambda task: _how(task), right=True),
    Column("TIME", running_time, right=True),
    Column("REASON", lambda task: _first_line(task.get("error") or task.get("reason") or ""), cut=True),
)


@command(
    "jobs",
    examples=(
        "depalmactl jobs",
        "depalmactl jobs --state running,suspended --tag exp1",
        "depalmactl jobs --all --since 2d --name 'train-*' --state failed",
        "depalmactl jobs -w                        # one line a change",
        "depalmactl cancel $(depalmactl jobs --state queued -o name)",
        "depalmactl jobs --all -o json | jq '.[].name'",
    ),
)
@click.option("-w", "--watch", is_flag=True, help="Print changes, line by line, until Ctrl-C.")
@click.option("--state", type=Parsed("states", _states), metavar="STATE[,…]", help=f"Only these: {', '.join(STATES)}.")
@click.option("--tag", metavar="TAG", help="Only with this tag.")
@click.option("--name", metavar="NAME", help="Only of this name; *, ? and [...] stand for others.")
@click.option("--user", metavar="USER", help="Only of this user.")
@click.option("-a", "--all", "everything", is_flag=True, help="All that are kept, not only live and recent ones.")
@click.option("--since", type=PAST, metavar="TIME", help="That ended then or later, or live: 2d, 03:00, 2026-11-27.")
@click.option("--until", type=PAST, metavar="TIME", help="That were submitted before.")
@click.option("--limit", type=Whole(1), default=100, show_default=True, metavar="N", help="At most so many.")
@click.pass_obj
def jobs(session: Session, /, watch: bool, everything: bool, limit: int, **filters: Any) -> None:
    """List jobs, newest first: those that live, and those that ended in the last hour.

    With --all or --since also those that ended earlier, as long as they are kept; what is no longer kept is said.
    """
    filters = {**filters, "all": "1" if everything else None}
    if watch:
        for row in _changes(session, filters, limit):
            _print_change(session, row)
        return
    rows, more, notes = _fetch(session, filters, limit)
    show_rows(session, rows, _JOB_COLUMNS, key="id")
    if more:
        session.narrate(f"there are more than {limit}; see --limit")
    elif not rows and not session.structured and session.output != "name":
        such = " such" if any(value is not None for name, value in filters.items() if name != "all") else ""
        recent = "" if everything or filters["since"] else " among live and recent ones (--all shows older ones, too)"
        session.narrate(f"no{such} jobs{recent}")
    for note in notes:
        session.narrate(f"note: {clean(note)}")


def _fetch(session: Session, filters: Mapping[str, Any], limit: int) -> tuple[list[dict[str, Any]], bool, list[str]]:
    """Returns jobs, whether there are more, and what is not kept of what was asked for."""
    rows: list[dict[str, Any]] = []
    before = None
    while True:
        page = session.get("/v1/jobs", **filters, limit=min(_PAGE, limit - len(rows)), before=before)
        rows += page["jobs"]
        before = page.get("next")
        if before is None or len(rows) >= limit:
            return rows, before is not None, page.get("notes", [])


def _changes(session: Session, filters: Mapping[str, Any], limit: int) -> Iterator[dict[str, Any]]:
    """Yields each job first as it is, then whenever its state or its counts change. Ends never."""
    seen: dict[int, object] = {}
    index: str | None = None
    while True:
        answer = session.ask("/v1/jobs", **filters, limit=min(limit, _PAGE), wait="5s" if index else None, index=index)
        session.be_patient()
        index = answer.headers.get("depalma-index")
        for row in reversed(answer.json()["jobs"]):
            mark = (row["state"], row["tasks"])
            if seen.get(row["id"]) != mark:
                seen[row["id"]] = mark
                yield row
        time.sleep(_WATCH_PAUSE_S)


def _print_change(session: Session, row: dict[str, Any]) -> None:
    if session.structured:
        print_json(row)
    elif session.output == "name":
        click.echo(row["id"])
    else:
        name = clean(row["name"])
        click.echo(f"{time.strftime('%H:%M:%S')}  {row['id']:>6}  {row['state']:<10} {progress(row):<12} {name}")


# ---------------------------------------------------------------- show


@command(
    "show",
    examples=(
        "depalmactl show 42",
        "depalmactl show 42.7                      # one task, with all its attempts",
        "depalmactl show last -o json | jq .tasks",
        "depalmactl show 42 --tasks failed         # which tasks failed, and why",
    ),
)
@click.option("--tasks", "state", metavar="STATE", help="List only tasks in this state.", type=click.Choice(STATES))
@click.option("--limit", type=Whole(1), default=20, show_default=True, metavar="N", help="At most N tasks.")
@click.argument("target", type=ids.TARGET, metavar="JOB[.TASK]")
@click.pass_obj
def show(session: Session, target: ids.Target, state: str | None, limit: int) -> None:
    """Show a job and its first tasks, or one task and its attempts.

    For programs it is the job (or the task) alone; with --tasks, the list of tasks.
    """
    job, task = target
    if task is not None:
        _show_task(session, session.get(f"/v1/tasks/{ids.job_id(session, job)}.{task}"))
        return
    view = session.get(f"/v1/jobs/{job}")
    if (session.structured and state is None) or session.output == "name":
        show_value(session, view, [], key="id")
        return
    page = session.get(f"/v1/jobs/{view['id']}/tasks", state=state, limit=min(limit, _PAGE))
    if not session.structured:
        show_value(session, view, _job_lines(view), key="id")
    if page["tasks"]:
        if not session.structured:
            click.echo("")
        show_rows(session, page["tasks"], _TASK_COLUMNS, key="id")
    elif session.structured:
        show_rows(session, [], _TASK_COLUMNS, key="id")
    if page["more"]:
        session.narrate(f"the first {len(page['tasks'])} tasks; see --limit and --tasks STATE")


def _job_lines(job: Row) -> list[tuple[str, object]]:
    tasks = job["tasks"]
    counts = [f"{tasks[state]:,} {state}" for state in tasks if state != "total" and tasks[state]]
    lines = [
        ("Job", job["id"]),
        ("Name", job["name"]),
        ("State", job["state"]),
        ("Reason", job.get("reason")),
        ("Exit code", job.get("exit_code")),
        ("Tasks", f"{tasks['total']:,}" + (f": {', '.join(counts)}" if counts else "")),
        ("User", job["user"]),
        ("Kind", job["kind"]),
        ("Command", job.get("command")),
        ("Priority", job["priority"]),
        ("Group", job["group"]),
        ("Tags", listed(job["tags"])),
        ("Code index", job["code_index"]),
        ("Submitted", f"{moment(job['submitted_at'])} ({ago(job['submitted_at'])})"),
        ("Started", moment(job["started_at"])),
        ("Finished", moment(job["finished_at"])),
        ("Time", running_time(job)),
        ("Archived", "yes: its results and its output are no longer kept" if job.get("archived") else None),
    ]
    return [line for line in lines if line[1] not in (None, "", "-")]


def _show_task(session: Session, task: dict[str, Any]) -> None:
    lines = [
        ("Task", task["id"]),
        ("State", task["state"]),
        ("Reason", task.get("reason")),
        ("Host", task["host"]),
        ("Alternative", task.get("alternative") or None),
        ("GPUs", given(task["gpus"], task.get("gpu_share", 0.0)) if task.get("gpus") else None),
        ("Attempt", task["attempt"]),
        ("Exit", _how(task)),
        ("Outputs", _outputs(task)),
        ("Code", f"{task['code_index']} {task['code_digest'][:12]}".strip()),
        ("Started", moment(task["started_at"])),
        ("Finished", moment(task["finished_at"])),
        ("Time", running_time(task)),
    ]
    show_value(session, task, [line for line in lines if line[1] not in (None, "", "-")], key="id")
    if session.structured or session.output == "name":
        return
    if task.get("attempts"):
        click.echo("")
        cells = [
            [str(a["number"]), a["state"], clean(a["host"]) or "-", moment(a["started_at"]), running_time(a),
             clean(a.get("reason", "")) or "-"]
            for a in task["attempts"]
        ]  # fmt: skip
        headings = ("ATTEMPT", "STATE", "HOST", "STARTED", "TIME", "REASON")
        click.echo("\n".join(plain_table(headings, cells, (True, False, False, False, True, False))))
    if task.get("error"):
        click.echo("")
        click.echo("\n".join(clean(line) for line in task["error"].splitlines()))


def _outputs(task: Row) -> str | None:
    if not task.get("outputs"):
        return None
    return f"{size(task['outputs']['size_bytes'])} packed; get them with: depalmactl result {task['id']} --output DIR"


def _how(task: Row) -> str | None:
    if task.get("signal"):
        return f"signal {task['signal']}"
    code = task.get("exit_code")
    return None if code is None else str(code)


def _first_line(text: str) -> str:
    """The last line of a traceback says what happened; of anything else the first does."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


# ---------------------------------------------------------------- explain, cancel


@command("explain", examples=("depalmactl explain 42", "depalmactl explain 42.7", "depalmactl explain last -o json"))
@click.argument("target", type=ids.TARGET, metavar="JOB[.TASK]")
@click.pass_obj
def explain(session: Session, target: ids.Target) -> None:
    """Say why a job or a task waits, why it ran where it ran, or why it ended as it did."""
    job, task = target
    if task is None:
        answer = session.get(f"/v1/jobs/{job}/explain")
    else:
        answer = session.get(f"/v1/tasks/{ids.job_id(session, job)}.{task}/explain")
    if session.structured:
        show_value(session, answer, [], key="lines")
    else:
        for line in answer["lines"]:
            click.echo(clean(line))


@command(
    "cancel",
    examples=("depalmactl cancel 42", "depalmactl cancel 40-45 last", "depalmactl cancel -y 1-500 -o json"),
)
@click.option("-y", "--yes", is_flag=True, help=f"Do not ask, even for more than {_MANY} jobs.")
@click.argument("jobs", nargs=-1, required=True, type=ids.JOBS, metavar="JOB…")
@click.pass_obj
def cancel(session: Session, jobs: tuple[list[str], ...], yes: bool) -> None:
    """Cancel whole jobs: what waits never starts, what runs gets SIGTERM, then SIGKILL.

    All or nothing: when one of the jobs does not exist, none is cancelled.
    """
    from depalma.ctl.spec import login_name

    numbers = ids.resolve(session, jobs)
    if len(numbers) > _MANY and not yes and sys.stdin.isatty():
        click.confirm(f"Cancel {len(numbers)} jobs?", abort=True, err=True)
    cancelled = session.post("/v1/jobs/cancel", {"jobs": numbers, "by": login_name()})["cancelled"]
    over = sorted(set(numbers) - set(cancelled))
    if session.structured:
        show_value(session, {"cancelled": cancelled, "already_over": over}, [], key="cancelled")
    else:
        _say_cancelled(session, cancelled, over)


def _say_cancelled(session: Session, cancelled: Sequence[int], over: Sequence[int]) -> None:
    for number in cancelled:
        click.echo(number)
    if cancelled:
        session.narrate(f"{count(len(cancelled), 'job')} cancelled")
    if over:
        session.narrate(f"already over: {listed(over, limit=20)}")
