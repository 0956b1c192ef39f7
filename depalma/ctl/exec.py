"""`exec`: a command, or a shell, inside a task that runs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import threading
import tty
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import click

from depalma.ctl import failures, ids
from depalma.ctl.command import command
from depalma.ctl.failures import Failure
from depalma.ctl.output import show_value
from depalma.ctl.session import Session
from depalma.ctl.submit import PASS_THROUGH
from depalma.ctl.wording import clean

if TYPE_CHECKING:
    from depalma.client.visiting import Granted
    from depalma.visits import FromUser, Over

_STDIN, _STDOUT = 0, 1
#: Pieces of input that wait to be sent; who types or pipes more waits.
_AHEAD = 4
_BROKEN_PIPE = 128 + signal.SIGPIPE


class HungUp(Exception):
    """The user leaves; what he ran is ended. `exit_code` is that of this program."""

    def __init__(self, exit_code: int) -> None:
        super().__init__()
        self.exit_code = exit_code


@command(
    "exec",
    context_settings=PASS_THROUGH,
    examples=(
        "depalmactl exec 42                        # a shell in the only task of job 42 that runs",
        "depalmactl exec 42.7 -- nvidia-smi",
        "depalmactl exec 42.7 -- py-spy dump --pid 1234",
        "depalmactl exec -t 42 -- htop",
        "tar c data | depalmactl exec 42 -- tar x",
    ),
)
@click.option(
    "-t/-T",
    "--tty/--no-tty",
    "wants_tty",
    default=None,
    help="With a terminal, also for a command; -T, --no-tty: without one, also for a shell.",
)
@click.argument("target", type=ids.TARGET, metavar="JOB[.TASK]")
@click.argument("words", nargs=-1, metavar="[-- CMD ARG…]", type=click.UNPROCESSED)
@click.pass_obj
def exec_command(session: Session, /, target: ids.Target, words: tuple[str, ...], wants_tty: bool | None) -> None:
    """Run a command, or a shell, on the host of a running task: in its folder, with its variables and its limits.

    Without a command, at a terminal, it is an interactive shell (Enter, then ~. leaves one that hangs); otherwise
    /bin/sh reads the commands from stdin. TASK may be left out if only one task of the job runs. What is run belongs
    to the attempt: it ends with it, counts against its limits, and changes nothing of how it ends. When you leave, it
    ends, too. Ctrl-C goes to the command; twice, without a terminal, leaves.

    Exit codes: the command's own, 128+n for signal n, 126 and 127 when it cannot be started, 125 when Depalma itself
    failed, the task ended, or its host or the leader was lost.
    """
    failures.passes_job_code = True
    at_terminal = os.isatty(_STDIN)
    on_tty = at_terminal and not words if wants_tty is None else wants_tty
    name, task = target
    words = words[1:] if words[:1] == ("--",) else words
    visitor = _Visitor(session, on_tty=on_tty, raw=on_tty and at_terminal)
    try:
        code = visitor.visit(ids.job_id(session, name), task, words)
    except BrokenPipeError:
        code = _BROKEN_PIPE
    except HungUp as left:
        sys.stderr.flush()
        os._exit(left.exit_code)  # a thread may wait for ever for somebody to take the output
    sys.exit(code)


class _Visitor:
    """This side of one visit: stdin, the terminal, signals, stdout and stderr."""

    def __init__(self, session: Session, *, on_tty: bool, raw: bool) -> None:
        self._session = session
        self._on_tty = on_tty
        self._raw = raw
        self._gathered = {1: bytearray(), 2: bytearray()} if session.structured and not on_tty else None
        self._interrupted = False

    def visit(self, job: int, task: int | None, words: tuple[str, ...]) -> int:
        """Returns the exit code. Errors: Failure, Rejected, NoLeader, BrokenPipeError, HungUp."""
        from depalma.client.visiting import ask
        from depalma.client.visits import TRIES, NotBegun

        for left in reversed(range(TRIES)):
            granted = self._session.run(ask(job, task, words, **self._terminal()))
            if self._raw:
                self._session.narrate(f"task {granted.task} on host {granted.host}")
            try:
                with self._raw_mode():
                    over = asyncio.run(self._attend(granted))
                break
            except NotBegun:
                if not left:
                    raise
        return self._told(granted, over)

    def _told(self, granted: Granted, over: Over) -> int:
        if over.exit_code is None:
            if self._raw:
                click.echo(err=True)  # the shell was in the middle of a line
            raise Failure(clean(over.error), exit_code=failures.OWN_FAILURE, code="visit_ended")
        if over.error:
            click.echo(f"error: {clean(over.error)}", err=True)
        if self._gathered is not None:
            texts = {name: self._gathered[number].decode("utf-8", "replace") for number, name in _NAMES.items()}
            where = {"task": granted.task, "attempt": granted.attempt, "host": granted.host}
            show_value(self._session, {**where, "exit_code": over.exit_code, **texts}, [], key="task")
        return over.exit_code

    def _terminal(self) -> dict[str, Any]:
        if not self._on_tty:
            return {}
        rows, columns = _size()
        return {"tty": True, "rows": rows, "columns": columns, "terminal": os.environ.get("TERM", "")[:200]}

    @contextlib.contextmanager
    def _raw_mode(self) -> Iterator[None]:
        """Has every key go to the other side; the terminal is as it was whatever happens."""
        if not self._raw:
            yield
            return
        before = termios.tcgetattr(_STDIN)
        tty.setraw(_STDIN, termios.TCSADRAIN)  # what was typed ahead is meant for the other side, too
        try:
            yield
        finally:
            termios.tcsetattr(_STDIN, termios.TCSADRAIN, before)

    async def _attend(self, granted: Granted) -> Over:
        from depalma.client.visits import converse

        session, loop = self._session, asyncio.get_running_loop()
        said: asyncio.Queue[FromUser | HungUp] = asyncio.Queue()
        pool = ThreadPoolExecutor(1, "stdout")
        self._catch_signals(loop, said)

        async def sink(stream: int, data: bytes) -> None:
            if self._gathered is not None:
                self._gathered[stream] += data
            else:
                await loop.run_in_executor(pool, _write, stream, data)

        try:
            return await converse(session.connections, granted, self._source(loop, said), sink)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _catch_signals(self, loop: asyncio.AbstractEventLoop, said: asyncio.Queue[FromUser | HungUp]) -> None:
        from depalma.visits import Signal, Size

        def interrupt() -> None:
            if self._interrupted:
                said.put_nowait(HungUp(failures.INTERRUPTED))
            else:
                self._interrupted = True
                said.put_nowait(Signal("INT"))

        signal.signal(signal.SIGTTIN, signal.SIG_IGN)  # in the background there is no input, and it goes on
        loop.add_signal_handler(signal.SIGINT, interrupt)
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, said.put_nowait, HungUp(128 + number))
        if self._on_tty:
            loop.add_signal_handler(signal.SIGWINCH, lambda: said.put_nowait(Size(*_size())))
            said.put_nowait(Size(*_size()))  # it may have changed since it was asked for

    async def _source(
        self, loop: asyncio.AbstractEventLoop, said: asyncio.Queue[FromUser | HungUp]
    ) -> AsyncIterator[FromUser]:
        """Yields what the user says from now on. Errors: HungUp."""
        from depalma.visits import Data

        room = threading.Semaphore(_AHEAD)
        threading.Thread(target=self._read, args=(loop, said, room), name="stdin", daemon=True).start()
        while True:
            message = await said.get()
            if isinstance(message, HungUp):
                raise message
            yield message
            if isinstance(message, Data):
                room.release()

    def _read(
        self, loop: asyncio.AbstractEventLoop, said: asyncio.Queue[FromUser | HungUp], room: threading.Semaphore
    ) -> None:
        """Reads stdin to its end, in a thread: no loop can wait for a file."""
        from depalma.visits import CHUNK_BYTES, Data, End

        escape = Escape() if self._raw else None
        with contextlib.suppress(RuntimeError):  # the loop is closed: all is over
            while True:
                room.acquire()
                try:
                    data = os.read(_STDIN, CHUNK_BYTES)
                except OSError:  # there is none
                    data = b""
                if not data:
                    loop.call_soon_threadsafe(said.put_nowait, End())
                    return
                if escape is not None:
                    data, leaves = escape.pass_on(data)
                    if leaves:
                        loop.call_soon_threadsafe(said.put_nowait, HungUp(failures.OWN_FAILURE))
                        return
                loop.call_soon_threadsafe(said.put_nowait, Data(0, data))


class Escape:
    """Finds `~.` at the beginning of a line, as ssh does; `~~` there is one `~`."""

    def __init__(self) -> None:
        self._at_start = True
        self._held = False

    def pass_on(self, data: bytes) -> tuple[bytes, bool]:
        """Returns what goes to the other side, and whether the user leaves."""
        out = bytearray()
        for byte in data:
            key = bytes([byte])
            if self._held:
                self._held = False
                if key == b".":
                    return bytes(out), True
                if key != b"~":
                    out += b"~"
            elif self._at_start and key == b"~":
                self._held = True
                continue
            out += key
            self._at_start = key in b"\r\n"
        return bytes(out), False


_NAMES = {1: "stdout", 2: "stderr"}


def _write(stream: int, data: bytes) -> None:
    while data:
        data = data[os.write(stream, data) :]


def _size() -> tuple[int, int]:
    """Returns rows and columns of this terminal."""
    for fd in (_STDIN, _STDOUT):
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(fd)
            if size.lines > 0 and size.columns > 0:
                return size.lines, size.columns
    return 24, 80
