"""One task in a process of its own: forked from a warm worker, watched by it, gone with everything it started.

A fork costs some milliseconds and brings all that the worker has imported. What the task's process imports besides is
learnt: the worker imports it too before the next task, so that only the first one pays. Standard library only.
"""

from __future__ import annotations

import contextlib
import importlib
import marshal
import os
import resource
import select
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from depalma.agent import proctree
from depalma.agent.cgroups import ControlGroups
from depalma.agent.limits import LOOK_S, NOTHING, Ended, Limits, Watch, rlimits, watched
from depalma.agent.worker import after_fork, new_modules, newest_module

_HEAD = struct.Struct("<Q")
_RECORD_BYTES = 64 * 1024 * 1024
#: More modules than that are not imported ahead: it is no library, but something that makes modules.
_LEARN = 5000


class Outcome(NamedTuple):
    """How a process ended: with a record, or without, and why."""

    record: tuple[Any, ...] | None
    error: str = ""
    exit_code: int | None = None
    signal: int | None = None
    code: str = ""


class Apart:
    """Runs one task after the other, each in its own process."""

    def __init__(self, groups: str) -> None:
        self._groups = ControlGroups.borrowed(groups)
        self._count = 0
        self.learnt: list[tuple[str, str]] = []  #: what the last task had to import, each with its file
        self._unimportable: dict[str, str] = {}
        proctree.become_subreaper()  # whatever a task leaves behind becomes a child of ours, and is killed

    def prepare(self) -> None:
        """Imports what the task before had to import, before the next one is forked."""
        found, self.learnt = self.learnt, []
        for name, _ in found:
            if name in self._unimportable:
                continue
            try:
                importlib.import_module(name)
            except BaseException as error:  # user code: it worked there; if it does not here, each task imports it
                self._unimportable[name] = repr(error)

    def run(
        self, work: Callable[[], tuple[Any, ...]], numbers: tuple[Any, ...], scratch: str, outputs: tuple[str, ...]
    ) -> Outcome:
        """Returns what `work` returned in a process of its own, or how that ended."""
        self.prepare()
        limits = Limits(*numbers)
        self._count += 1
        files = [(path, 0) for path in outputs]
        watch = watched(self._groups, f"{os.getpid()}.{self._count}", limits, scratch, files)
        reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            _become(work, limits, watch, writing)
        os.close(writing)
        try:
            return self._attend(pid, reading, watch)
        finally:
            os.close(reading)
            proctree.kill_descendants()
            self._groups.discard(watch.group)

    def _attend(self, pid: int, reading: int, watch: Watch) -> Outcome:
        handle = os.pidfd_open(pid)
        os.set_blocking(reading, False)
        data = bytearray()
        over: Ended | None = None
        timeout_s = LOOK_S if watch.limits != NOTHING else None
        poller = select.poll()
        poller.register(reading, select.POLLIN)
        poller.register(handle, select.POLLIN)
        ended = False
        try:
            while not ended:
                ready = {fd for fd, _ in poller.poll(None if timeout_s is None else timeout_s * 1000)}
                ended = handle in ready
                if reading in ready and not _drain(reading, data):
                    poller.unregister(reading)
                if over is None and not ended and timeout_s is not None:
                    over = watch.look(lambda: [pid, *(child for child, _ in proctree.descendants(os.getpid()))])
                    if over is not None:
                        watch.group.kill()
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)
        _, status, usage = os.wait4(pid, 0)
        _drain(reading, data)
        over = over or watch.at_end(status, usage.ru_maxrss * 1024)
        return self._outcome(status, data, over)

    def _outcome(self, status: int, data: bytearray, over: Ended | None) -> Outcome:
        code = os.waitstatus_to_exitcode(status)
        exit_code, number = (None, -code) if code < 0 else (code, None)
        record = _decoded(data)
        if record is not None and code == 0:
            self.learnt = record[1][:_LEARN]
            return Outcome(record[0])
        if over is not None:
            return Outcome(None, over.words, exit_code, number, over.code)
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        return Outcome(None, f"the task's process died: {how}", exit_code, number)


def _become(work: Callable[[], tuple[Any, ...]], limits: Limits, watch: Watch, writing: int) -> None:
    """Is the process of the task; never returns."""
    code = 1
    try:
        after_fork()
        os.setsid()
        for path in watch.group.procs:
            with contextlib.suppress(OSError), open(path, "w") as file:
                file.write("0")
        for number, pair in rlimits(limits, watch.group):
            resource.setrlimit(number, pair)
        newest = newest_module()
        pid = os.getpid()
        record = work()
        sys.stdout.flush()
        sys.stderr.flush()
        if os.getpid() != pid:
            os._exit(0)  # the function forked, and its child came back here
        data = marshal.dumps((record, new_modules(newest)))
        os.write(writing, _HEAD.pack(len(data)))
        while data:
            data = data[os.write(writing, data) :]
        code = 0
    finally:
        os._exit(code)


def _drain(fd: int, data: bytearray) -> bool:
    """Reads what there is. Returns whether more may come."""
    with contextlib.suppress(BlockingIOError):
        while len(data) < _RECORD_BYTES:
            part = os.read(fd, 65536)
            if not part:
                return False
            data += part
    return True


def _decoded(data: bytearray) -> tuple[tuple[Any, ...], list[tuple[str, str]]] | None:
    """Returns the record and the modules, if they are whole."""
    if len(data) < _HEAD.size:
        return None
    (size,) = _HEAD.unpack_from(data)
    if len(data) != _HEAD.size + size:
        return None
    try:
        record, modules = marshal.loads(bytes(data[_HEAD.size :]))
    except (ValueError, EOFError, TypeError):
        return None
    return record, modules
