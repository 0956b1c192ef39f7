"""`logs`: what tasks wrote."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click

from depalma.ctl import ids
from depalma.ctl.command import command
from depalma.ctl.failures import Failure
from depalma.ctl.follow import Chunk, follow_task, read_attempt
from depalma.ctl.output import print_json, print_yaml
from depalma.ctl.session import Session
from depalma.ctl.values import Whole
from depalma.ctl.wording import clean, count, listed
from depalma.errors import Rejected

_PAGE = 1000


@command(
    "logs",
    examples=(
        "depalmactl logs 42",
        "depalmactl logs -f last                   # follow, across retries and leader changes",
        "depalmactl logs 42.7 --stderr",
        "depalmactl logs 42.7 --attempt 1",
    ),
)
@click.option("-f", "--follow", is_flag=True, help="Go on as it is written, until the task is over.")
@click.option("--stderr", is_flag=True, help="What was written to stderr, instead of stdout.")
@click.option("--attempt", type=Whole(1), metavar="N", help="Of this attempt (the latest).")
@click.argument("target", type=ids.TARGET, metavar="JOB[.TASK]")
@click.pass_obj
def logs(session: Session, target: ids.Target, follow: bool, stderr: bool, attempt: int | None) -> None:
    """Print what a task wrote; of a job with several tasks, one task after the other in order.

    With -f it goes on where an attempt ends and the next one begins, on whichever host and under whichever leader,
    each byte once, until the task is over; stderr says where one attempt ends. What an attempt wrote is on its host. If
    that is gone, or keeps it no longer, the last 64 KiB are printed, which the masters keep, and stderr says why.
    """
    if follow and attempt:
        raise click.UsageError("--attempt is for finished output; -f follows the latest attempt")
    stream = "stderr" if stderr else "stdout"
    job, index = target
    number = ids.job_id(session, job)
    many = index is None
    tasks = _tasks(session, number) if many else iter([session.get(f"/v1/tasks/{number}.{index}")])
    if follow:
        _follow(session, tasks, stream)
    else:
        _print(session, tasks, stream, attempt, many)


def _tasks(session: Session, job: int) -> Iterator[dict[str, Any]]:
    """Yields the tasks in order of their index."""
    after = -1
    while True:
        page = session.get(f"/v1/jobs/{job}/tasks", after=after, limit=_PAGE)
        yield from page["tasks"]
        if not page["more"] or not page["tasks"]:
            return
        after = page["tasks"][-1]["index"]


def _follow(session: Session, tasks: Iterable[dict[str, Any]], stream: str) -> None:
    for task in tasks:
        for chunk in follow_task(session, task["id"], stream, note=session.narrate):
            if session.structured:
                print_json(_value(task["id"], stream, chunk.attempt, chunk.data))
            else:
                _write(chunk.data)


def _print(session: Session, tasks: Iterable[dict[str, Any]], stream: str, attempt: int | None, many: bool) -> None:
    values = []
    waiting = asked = 0
    gone: list[str] = []
    for task in tasks:
        if not task["attempt"]:
            waiting += 1
            if not many:
                raise Failure(
                    f"{task['id']} has not started ({task['state']}); -f waits for it, and see: "
                    f"depalmactl explain {task['id']}",
                    code="not_started",
                )
            continue
        asked += 1
        chunks = _chunks(session, task["id"], stream, attempt, gone if many else None)
        if session.output == "jsonl":
            for chunk in chunks:
                print_json(_value(task["id"], stream, chunk.attempt, chunk.data))
        elif session.structured:
            gathered = list(chunks)
            number = gathered[-1].attempt if gathered else attempt or task["attempt"]
            values.append(_value(task["id"], stream, number, b"".join(chunk.data for chunk in gathered)))
        else:
            for chunk in chunks:
                _write(chunk.data)
    if waiting:
        session.narrate(f"{count(waiting, 'task')} not started yet (-f waits for them)")
    if session.output == "json":
        print_json(values if many else values[0])
    elif session.output == "yaml":
        print_yaml(values if many else values[0])
    if gone and len(gone) == asked:
        raise Failure(f"there is nothing of what {listed(gone, limit=5)} wrote", code="log_unavailable")


def _chunks(session: Session, task: str, stream: str, attempt: int | None, gone: list[str] | None) -> Iterator[Chunk]:
    """Of many tasks, one whose output is out of reach does not hide that of the others: it is noted in `gone`."""
    try:
        yield from read_attempt(session, task, stream, attempt)
    except Rejected as error:
        if gone is None or error.code != "log_unavailable":
            raise
        gone.append(task)
        session.warn(f"{task}: {clean(str(error))}")


def _value(task: str, stream: str, attempt: int, data: bytes) -> dict[str, Any]:
    return {"task": task, "attempt": attempt, "stream": stream, "text": data.decode("utf-8", "replace")}


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
