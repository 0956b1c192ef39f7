"""The agent's part in visits: what a user runs inside a running task, and its streams.

The monitor starts and ends the processes (`visiting.py`); here are the ends of their pipes or terminals. Nothing is
read from them beyond what the user has room for, so a process that prints without end waits, as before a slow pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import logging
import os
import struct
import termios
import time
from collections.abc import Callable
from pathlib import Path

from depalma import visits as talk
from depalma.agent import sight
from depalma.agent.core import AgentCore
from depalma.agent.events import Attempt
from depalma.agent.link import MonitorLink
from depalma.agent.measure import printable
from depalma.agent.runner import Runner
from depalma.agent.visiting import REFUSED, TASK_OVER
from depalma.agent.workers import is_apart, task_variables
from depalma.model import AttemptRef
from depalma.protocol import CloseVisit, FromVisit, InVisit, OpenVisit, ToVisit, VisitOver
from depalma.visits import CHUNK_BYTES, MAX_SIDE, PER_HOST, SIGNALS, STDERR, STDOUT, Breach, Flight, Over

log = logging.getLogger(__name__)

#: Names of the monitor for them: far from those of the runner, which count from 1.
_FIRST_KEY = 1 << 40
#: Between SIGTERM and SIGKILL when the user has gone.
_GRACE_S = 1.0
#: Signals of one visit in a second: each makes the monitor walk a tree.
_SIGNALS_PER_S = 20
_END_OF_INPUT = b"\x04"  #: what a terminal takes for it at the beginning of a line
_SHELL = "/bin/sh"


class Streams:
    """This side's ends of what a visitor has as standard input, output and error."""

    def __init__(self, *, tty: bool) -> None:
        self.terminal = ""  #: path of the terminal, if it has one
        self._number = 0
        self.given: tuple[int, ...] = ()  #: for the visitor; the monitor's channel closes them
        self.reading: dict[int, int] = {}  #: descriptor → stream
        self._kept: list[int] = []
        if tty:
            master, slave = os.openpty()
            self._kept = [slave]  # as long as one has it open, what was written to it can be read
            self._number = os.fstat(slave).st_rdev
            sight.made.add(self._number)  # who types there is not the owner of the machine
            self.terminal = os.ttyname(slave)
            self.writing, self.reading = os.dup(master), {master: STDOUT}
        else:
            far_in, self.writing = os.pipe()
            out, far_out = os.pipe()
            error, far_error = os.pipe()
            self.given, self.reading = (far_in, far_out, far_error), {out: STDOUT, error: STDERR}
        for fd in (self.writing, *self.reading):
            os.set_blocking(fd, False)

    def resize(self, rows: int, columns: int) -> None:
        """Gives the terminal a size; whoever runs on it is told by the kernel."""
        if self.terminal and self.writing >= 0:
            fcntl.ioctl(self.writing, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def close_writing(self) -> None:
        """Ends the input."""
        if self.writing >= 0:
            asyncio.get_running_loop().remove_writer(self.writing)
            os.close(self.writing)
            self.writing = -1

    def close_reading(self, fd: int) -> None:
        """Ends an output."""
        asyncio.get_running_loop().remove_reader(fd)
        del self.reading[fd]
        os.close(fd)

    def close(self) -> None:
        """Closes all; on a terminal everybody gets SIGHUP."""
        self.close_writing()
        for fd in list(self.reading):
            self.close_reading(fd)
        while self._kept:
            os.close(self._kept.pop())
            sight.made.discard(self._number)


class Visit:
    """One visitor, and what passes between it and its user."""

    def __init__(self, number: int, key: int, ref: AttemptRef, say: Callable[[FromVisit], None], *, tty: bool) -> None:
        self.number = number
        self.key = key
        self.ref = ref
        self.why = ""  #: what ended it, if not itself
        self.mark = ""  #: file by which a worker knows that it has visitors
        self.gone = False  #: nobody listens any more
        self.streams = Streams(tty=tty)
        self._say = say
        self._over: Over | None = None  #: once the process and all that it started are dead
        self._out, self._in = Flight(), Flight()
        self._input = bytearray()
        self._input_ended = False
        self._signals: tuple[int, int] = (0, 0)  #: second, and how many came in it
        self._listen()

    # ------------------------------------------------------------ out

    def _listen(self) -> None:
        for fd in self.streams.reading:
            asyncio.get_running_loop().add_reader(fd, self._readable, fd)

    def _readable(self, fd: int) -> None:
        room = min(CHUNK_BYTES, self._out.room_bytes)
        if not room:
            for each in self.streams.reading:
                asyncio.get_running_loop().remove_reader(each)
            return
        try:
            data = os.read(fd, room)
        except BlockingIOError:
            if self._over is None:
                return
            data = b""  # whoever could write is dead: there is nothing more
        except OSError:  # a terminal that nobody has open any more
            data = b""
        if data:
            self._out.add(len(data))
            self._tell(talk.Data(self.streams.reading[fd], data))
        else:
            self.streams.close_reading(fd)
            self._finish()

    def over(self, last_word: Over) -> None:
        """Takes note that all of it is dead. What it has written before is still told, then the last word."""
        self._over = last_word
        self.streams.close_writing()
        for fd in list(self.streams.reading):
            while fd in self.streams.reading and self._out.room_bytes:
                self._readable(fd)  # what somebody else still holds would never come to an end by itself
        self._finish()

    def _finish(self) -> None:
        if self._over is not None and not self.streams.reading and not self.gone:
            self._tell(self._over)
            self._say(VisitOver(self.number))
            self.close()

    def close(self) -> None:
        """Says no more, and lets go of the streams."""
        self.gone = True
        self.streams.close()

    def _tell(self, message: talk.FromTask) -> None:
        if not self.gone:
            self._say(InVisit(self.number, talk.encode(message)))

    # ------------------------------------------------------------ in

    def take(self, message: talk.FromUser, signal: Callable[[int], None]) -> None:
        """Does what the user says. Errors: Breach."""
        match message:
            case talk.Data(data=data):
                self._in.add(len(data))
                self._input += data
                self._write()
            case talk.End():
                self._input_ended = True
                self._write()
            case talk.Credit(size_bytes=size_bytes):
                self._out.consumed(size_bytes)
                self._listen()
                if self._over is not None:
                    self.over(self._over)  # goes on with what is left to be told
            case talk.Size(rows=rows, columns=columns):
                self.streams.resize(rows, columns)
            case talk.Signal(name=name):
                second = int(time.monotonic())
                count = self._signals[1] + 1 if self._signals[0] == second else 1
                self._signals = second, count
                if count > _SIGNALS_PER_S:
                    raise Breach(f"more than {_SIGNALS_PER_S} signals in a second")
                signal(SIGNALS[name])

    def _write(self) -> None:
        """Gives the process what it takes now; what nobody reads any more is dropped."""
        fd = self.streams.writing
        taken = len(self._input)
        if fd >= 0 and self._input:
            try:
                taken = os.write(fd, self._input[:CHUNK_BYTES])
            except BlockingIOError:
                taken = 0
            except OSError:
                self.streams.close_writing()
        if taken:
            del self._input[:taken]
            self._in.consumed(taken)
            self._tell(talk.Credit(taken))
        fd = self.streams.writing
        if fd >= 0:
            loop = asyncio.get_running_loop()
            loop.remove_writer(fd)
            if self._input:
                loop.add_writer(fd, self._write)
            elif self._input_ended:
                self._end_input()

    def _end_input(self) -> None:
        if not self.streams.terminal:
            self.streams.close_writing()
        else:
            self._input_ended = False
            with contextlib.suppress(OSError):
                os.write(self.streams.writing, _END_OF_INPUT)


class Visits:
    """All on this host. `say` takes frames for the leader, for when the connection has nothing better to do."""

    def __init__(self, runner: Runner, link: MonitorLink, core: AgentCore, say: Callable[[FromVisit], None]) -> None:
        self._runner = runner
        self._link = link
        self._core = core
        self._say = say
        self._by_key: dict[int, Visit] = {}  #: those of which something may live
        self._by_number: dict[int, Visit] = {}  #: those that the leader knows
        self._keys = itertools.count(_FIRST_KEY)
        self._marks: set[str] = set()

    # ------------------------------------------------------------ from the leader

    def take(self, frame: ToVisit) -> None:
        """Does what the leader, or through it a user, says."""
        if isinstance(frame, OpenVisit):
            try:
                self._open(frame)
            except (Breach, OSError, ValueError, RuntimeError) as error:
                self._unmark()
                self._refuse(frame.visit, printable(str(error)))
            self._link.flush()
            return
        visit = self._by_number.get(frame.visit)
        if visit is None:
            return
        if isinstance(frame, CloseVisit):
            self._end(visit)
        else:
            try:
                visit.take(talk.from_user(frame.message), lambda number: self._signal(visit, number))
            except Breach as error:
                log.warning("a visit of task %d.%d ends: %s", *visit.ref[:2], error)
                self._refuse(visit.number, f"what came from the user was refused: {error}")
                self._end(visit)
        self._link.flush()

    def _tell(self, frame: FromVisit) -> None:
        if isinstance(frame, VisitOver):
            self._by_number.pop(frame.visit, None)
        self._say(frame)

    def _refuse(self, number: int, error: str) -> None:
        self._tell(InVisit(number, talk.encode(Over(None, error))))
        self._tell(VisitOver(number))

    def _open(self, frame: OpenVisit) -> None:
        """Errors: Breach, OSError, ValueError, RuntimeError; their words are for the user."""
        ref = (frame.job, frame.task, frame.attempt)
        name = f"task {frame.job}.{frame.task}"
        if len(self._by_key) >= PER_HOST:
            raise Breach(f"there are {PER_HOST} visits on this host already, the most at once")
        attempt = self._core.attempts.get(ref)
        if attempt is None or attempt.state != "sent":
            raise Breach(f"{name} does not run any more, or not yet")
        if still := self._core.why_still().get(f"{frame.job}.{frame.task}"):
            raise Breach(f"{name} stands still: {still}")
        place = self._place(ref)
        if place is None:
            raise Breach(f"{name} does not run any more, or not yet")
        task_key, folder, mark = place
        variables = task_variables(attempt, folder)
        if frame.tty:
            variables[b"TERM"] = (frame.terminal or "xterm").encode()
        words = [os.fsencode(word) for word in frame.argv or self._shell(attempt, tty=frame.tty)]
        cwd = attempt.job.spec.cwd or folder
        apart = attempt.job.is_function and is_apart(attempt.job.spec)
        self._runner.tell_environment(attempt.job)
        visit = Visit(frame.visit, next(self._keys), ref, self._tell, tty=frame.tty)
        visit.mark = mark
        visit.streams.resize(_side(frame.rows), _side(frame.columns))
        where = (attempt.job.key, variables), cwd, visit.streams.terminal, apart
        self._link.send(("visit", visit.key, task_key, words, *where), *visit.streams.given)
        self._by_key[visit.key] = self._by_number[visit.number] = visit

    def _place(self, ref: AttemptRef) -> tuple[int, str, str] | None:
        """Returns what the monitor calls the process of an attempt, its scratch folder, and the mark of its worker;
        None if it has no process now."""
        runner = self._runner
        slot = runner.command_slot(ref)
        if slot is not None:
            return runner.commands[ref].key, f"{runner.root}/scratch/{slot}", ""
        worker = runner.worker_of(ref)
        if worker is None:
            return None
        # First the mark, then a look at what the worker has answered: it answers, and only then looks for a mark. So
        # either the attempt is known to be over here, or the worker begins no other one before its visitors are gone.
        mark = f"{runner.root}/spool/w{worker.number}.visited"
        Path(mark).touch(0o600)
        self._marks.add(mark)
        runner.drain(worker)
        if runner.worker_of(ref) is not worker:
            return None
        return worker.key, f"{runner.root}/scratch/w{worker.number}", mark

    def _unmark(self) -> None:
        """Takes away the marks of workers without visitors."""
        for mark in self._marks - {visit.mark for visit in self._by_key.values()}:
            Path(mark).unlink(missing_ok=True)
            self._marks.discard(mark)

    def _shell(self, attempt: Attempt, *, tty: bool) -> tuple[str, ...]:
        """Returns the command that is a shell for this task."""
        wanted = attempt.job.spec.env.get("SHELL") or os.environ.get("SHELL", "")
        if not tty or not wanted.startswith("/"):
            return (_SHELL,)
        # The visitor looks whether it is one: it may be where everybody waits.
        return _SHELL, "-c", '[ -f "$1" ] && [ -x "$1" ] && exec "$1"; exec "$0"', _SHELL, wanted

    # ------------------------------------------------------------ ends

    def _signal(self, visit: Visit, number: int) -> None:
        self._link.send(("signal", visit.key, number))

    def _end(self, visit: Visit) -> None:
        """Ends what nobody wants any more."""
        self._by_number.pop(visit.number, None)
        visit.close()
        self._link.send(("kill", visit.key, _GRACE_S))

    def look(self) -> None:
        """Ends the visits of attempts that have ended, and all when there is no leader: they came by him."""
        if not self._by_number:
            return
        for visit in list(self._by_number.values()):
            attempt = self._core.attempts.get(visit.ref)
            if not self._core.connected:
                self._end(visit)
            elif (attempt is None or attempt.state != "sent") and not visit.why:
                visit.why = _over(visit.ref)
                self._link.send(("kill", visit.key, 0.0))
        self._link.flush()

    def exits(self, ended: list[tuple[int, int, float, float, str, str, bool]]) -> None:
        """Takes the ends of processes; others than visitors are passed over."""
        for key, status, _, _, error, code, _ in ended:
            visit = self._by_key.pop(key, None) if key >= _FIRST_KEY else None
            if visit is not None:
                visit.over(_last_word(visit, status, printable(error), code))
                self._unmark()

    def forget_all(self) -> None:
        """Everything was killed, or is about to be, and there is nobody to tell."""
        for visit in (*self._by_key.values(), *self._by_number.values()):
            visit.close()
        self._by_key.clear()
        self._by_number.clear()
        self._unmark()


def _last_word(visit: Visit, status: int, error: str, code: str) -> Over:
    if code == REFUSED:
        return Over(None, f"task {visit.ref[0]}.{visit.ref[1]}: {error}")
    number = os.waitstatus_to_exitcode(status)
    if number == -9 and (visit.why or code == TASK_OVER):
        return Over(None, visit.why or _over(visit.ref))
    return Over(128 - number if number < 0 else number, error)


def _over(ref: AttemptRef) -> str:
    return f"attempt {ref[2]} of task {ref[0]}.{ref[1]} has ended, and what was run in it with it"


def _side(number: int) -> int:
    return min(max(number, 1), MAX_SIDE)
