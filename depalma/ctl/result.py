"""`result`: what the functions of a job returned. Only here, in the user's own process, is a result unpickled."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from depalma.ctl import failures, ids
from depalma.ctl.command import command
from depalma.ctl.output import Column, print_json, print_yaml, show_rows
from depalma.ctl.session import Session
from depalma.ctl.spec import checked_output
from depalma.ctl.wait import FINAL
from depalma.ctl.wording import clean, moment
from depalma.errors import Rejected

_PAGE = 1000


@command(
    "result",
    examples=(
        "depalmactl result 42",
        "depalmactl result 42.7",
        "depalmactl result last -o json",
        "depalmactl result 42.7 --raw > value.pickle",
        "depalmactl result 42 --output results/",
    ),
)
@click.option("--raw", is_flag=True, help="Write the result's bytes (a pickle) as they are; one task only.")
@click.option("--output", "folder", metavar="DIR", help="Get the output files instead, into this new folder.")
@click.argument("target", type=ids.TARGET, metavar="JOB[.TASK]")
@click.pass_obj
def result(session: Session, target: ids.Target, raw: bool, folder: str | None) -> None:
    """Print what a function returned, one line a task (its repr; for programs, JSON where it can be JSON).

    With --output, the files that the job was asked to keep: those of one task into DIR, those of several into
    DIR/INDEX. Nothing is unpickled then.

    Unpickling runs code that the result names: ask only for results of jobs that you trust. Modules are looked for
    in the current folder too.
    """
    job, index = target
    number = ids.job_id(session, job)
    if folder is not None:
        _get_files(session, number, index, Path(checked_output(folder)))
        return
    if raw:
        sys.stdout.buffer.write(_fetch(session, _only_task(session, number, index)))
        sys.stdout.buffer.flush()
        return
    sys.path.insert(0, os.getcwd())
    tasks = _tasks(session, number) if index is None else iter([session.get(f"/v1/tasks/{number}.{index}")])
    values = []
    bad = 0
    for task in tasks:
        value = _entry(session, task)
        bad += value["state"] != "succeeded"
        if session.output in ("json", "yaml"):
            values.append(value)
        else:
            _print_one(session, value, alone=index is not None)
    if session.output in ("json", "yaml"):
        one = values if index is None else values[0]
        (print_json if session.output == "json" else print_yaml)(one)
    if bad:
        sys.exit(failures.FAILED)


def _get_files(session: Session, job: int, index: int | None, folder: Path) -> None:
    """Unpacks the outputs of tasks and prints where they are. Errors: Failure if there are none."""
    from depalma import staging
    from depalma.archive import ArchiveError

    view = session.get(f"/v1/jobs/{job}")
    if view.get("archived"):
        why = f"the job finished at {moment(view['finished_at'])} and is in the archive only"
        raise failures.Failure(f"the output files of job {job} are no longer kept: {why}", code="output_gone")
    tasks = _tasks(session, job) if index is None else iter([session.get(f"/v1/tasks/{job}.{index}")])
    alone = index is not None or view["tasks"]["total"] == 1
    rows = []
    for task in tasks:
        if not task.get("outputs"):
            continue
        target = folder if alone else folder / str(task["index"])
        data = session.ask(f"/v1/blobs/{task['outputs']['digest']}").body
        try:
            staging.unpack(data, target)
        except (ArchiveError, OSError) as error:
            raise failures.Failure(f"{task['id']}: {error}", code="not_unpacked") from error
        rows.append({"task": task["id"], "folder": str(target)})
    if not rows:
        where = f"job {job}" if index is None else f"task {job}.{index}"
        raise failures.Failure(f"{where} has no output files (submit --output names them)", code="no_outputs")
    columns = (Column("TASK", lambda row: row["task"]), Column("FOLDER", lambda row: row["folder"]))
    show_rows(session, rows, columns, key="task")


def _only_task(session: Session, job: int, index: int | None) -> str:
    if index is not None:
        return f"{job}.{index}"
    tasks = session.get(f"/v1/jobs/{job}/tasks", limit=2)["tasks"]
    if len(tasks) != 1:
        raise click.UsageError(f"job {job} has several tasks: --raw takes one, such as {job}.0")
    return str(tasks[0]["id"])


def _tasks(session: Session, job: int) -> Iterator[dict[str, Any]]:
    after = -1
    while True:
        page = session.get(f"/v1/jobs/{job}/tasks", after=after, limit=_PAGE)
        yield from page["tasks"]
        if not page["more"] or not page["tasks"]:
            return
        after = page["tasks"][-1]["index"]


def _fetch(session: Session, task: str) -> bytes:
    """Errors: Rejected with code not_finished, no_result, unknown_task."""
    try:
        return session.ask(f"/v1/tasks/{task}/result").body
    except Rejected as error:
        if error.code != "no_result":
            raise
        raise Rejected(f"{error} (what a command wrote is in: depalmactl logs {task})", code=error.code) from error


def _entry(session: Session, task: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = {"task": task["id"], "state": task["state"]}
    if task["state"] == "succeeded":
        value = _unpickled(task["id"], _fetch(session, task["id"]))
        entry |= {"value": _jsonable(value), "repr": repr(value)}
    elif task["state"] in FINAL:
        entry["error"] = task.get("error") or task.get("reason") or task["state"]
    return entry


def _unpickled(task: str, data: bytes) -> Any:
    try:
        return pickle.loads(data)
    except Exception as error:  # anything can happen in the code that a pickle names; it is the user's own
        raise failures.Failure(
            f"the result of {task} cannot be unpickled here: {type(error).__name__}: {error}. "
            "Run this where its modules can be imported, or take it as it is with --raw",
            code="not_unpickled",
        ) from error


def _jsonable(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return None


def _print_one(session: Session, entry: dict[str, Any], *, alone: bool) -> None:
    if session.output == "jsonl":
        print_json(entry)
    elif session.output == "name":
        click.echo(entry["task"])
    elif entry["state"] == "succeeded":
        click.echo(clean(entry["repr"]) if not alone else entry["repr"])
    else:
        message = entry.get("error") or f"not over yet ({entry['state']})"
        text = "\n".join(clean(line) for line in message.splitlines())
        click.echo(f"{entry['task']} {entry['state']}: {text}", err=True)
