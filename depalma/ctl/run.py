"""`run`: a command somewhere in the cluster that feels like a local one."""

from __future__ import annotations

import io
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import click

from depalma.ctl import failures
from depalma.ctl.after import put_after
from depalma.ctl.command import command
from depalma.ctl.follow import follow_task
from depalma.ctl.output import show_value
from depalma.ctl.session import Session
from depalma.ctl.spec import build_spec, login_name, spec_options, stage_files
from depalma.ctl.submit import PASS_THROUGH, post_job
from depalma.ctl.wait import FINAL, cause, exit_code, wait_for
from depalma.ctl.wording import clean
from depalma.errors import DepalmaError

#: How often the waiting looks whether the reader of our output went away.
_SLICE_S = 1.0
_BROKEN_PIPE = 128 + signal.SIGPIPE


class Terminated(Exception):
    """SIGTERM came."""


@command(
    "run",
    context_settings=PASS_THROUGH,
    examples=(
        "depalmactl run -- echo hello",
        "depalmactl run --cwd . --cpus 2 --timeout 10m -- make -j2 test; echo $?",
        "depalmactl run --on-host h1 -- hostname",
        "depalmactl run -- sh -c 'ls | wc -l' > count.txt",
    ),
)
@spec_options()
@click.argument("words", nargs=-1, required=True, metavar="-- CMD ARG…", type=click.UNPROCESSED)
@click.pass_obj
def run(session: Session, /, words: tuple[str, ...], **options: Any) -> None:
    """Submit a command, stream what it writes, and exit with its exit code.

    Ctrl-C cancels the job. The output follows the command across retries and leader changes. Exit codes: the job's
    own, 128+n for signal n, 125 when Depalma itself failed.
    """
    failures.passes_job_code = True
    spec = build_spec(words, options, default_name=Path(words[0]).name)
    put_after(session, spec, options)
    stage_files(session, options, spec)
    job = post_job(session, spec)
    session.narrate(f"job {job}")
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        sys.exit(_attend(session, job))
    except KeyboardInterrupt:
        _cancel(session, job)
        sys.exit(failures.INTERRUPTED)
    except Terminated:
        _cancel(session, job)
        sys.exit(128 + signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _attend(session: Session, job: int) -> int:
    """Streams until the job is over; returns its exit code. For programs, one value at the end has it all."""
    sinks: list[BinaryIO] = [sys.stdout.buffer, sys.stderr.buffer]
    if session.structured:
        sinks = [io.BytesIO(), io.BytesIO()]
    pumps = [_Pump(session, job, stream, sink) for stream, sink in zip(("stdout", "stderr"), sinks, strict=True)]
    for pump in pumps:
        pump.start()
    while True:
        view = _slice(session, job)
        for pump in pumps:
            if pump.reader_gone:
                _cancel(session, job)
                return _BROKEN_PIPE
        if view["state"] in FINAL:
            break
    for pump in pumps:
        while pump.is_alive():
            pump.join(_SLICE_S)
        if isinstance(pump.trouble, OSError):
            raise pump.trouble
        if pump.trouble is not None:
            session.warn(f"{pump.stream} is incomplete: {clean(str(pump.trouble))}")
    if session.structured:
        texts = [sink.getvalue().decode("utf-8", "replace") for sink in sinks if isinstance(sink, io.BytesIO)]
        show_value(session, {**view, "stdout": texts[0], "stderr": texts[1]}, [], key="id")
    elif view["state"] != "succeeded" and view.get("reason"):
        session.narrate(f"job {job} {view['state']}: {cause(view)}")
    return exit_code(session, view)


def _slice(session: Session, job: int) -> dict[str, Any]:
    view: dict[str, Any] = session.get(f"/v1/jobs/{job}", wait=f"{_SLICE_S:g}s", until="final")
    return view


class _Pump(threading.Thread):
    """Copies one stream of the job's only task."""

    def __init__(self, session: Session, job: int, stream: str, sink: BinaryIO) -> None:
        super().__init__(name=f"pump-{stream}", daemon=True)
        self.stream = stream
        self.trouble: DepalmaError | OSError | None = None
        self.reader_gone = False
        self._session = session
        self._task = f"{job}.0"
        self._sink = sink

    def run(self) -> None:
        note = self._session.narrate if self.stream == "stdout" else None
        try:
            for chunk in follow_task(self._session, self._task, self.stream, from_the_first=True, note=note):
                self._sink.write(chunk.data)
                self._sink.flush()
        except BrokenPipeError:
            self.reader_gone = True
        except (DepalmaError, OSError) as error:  # such as a full disk
            self.trouble = error


def _cancel(session: Session, job: int) -> None:
    """Asks for the end of the job and waits for it; another Ctrl-C leaves that to the cluster."""
    session.narrate(f"cancelling job {job} (Ctrl-C again: do not wait for its end)")
    taken = False
    try:
        session.post("/v1/jobs/cancel", {"jobs": [job], "by": login_name()})
        taken = True
        wait_for(session, job)
    except (KeyboardInterrupt, Terminated):
        how = "is being cancelled" if taken else "may go on: no master has said that it is cancelled"
        session.narrate(f"job {job} {how}; see: depalmactl show {job}")


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated
