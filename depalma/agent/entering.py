"""Starts a process by a fork of the monitor, for what must not be touched by the monitor itself (`mounts.py`).

Whatever waits for ever on the way to the program (the working folder, a file for its output, the search for it, the
program itself) so waits in the child, which is the task's process already: it has its time limit, it can be cancelled,
and it ends with the lease. The rest has the plain way, a `posix_spawn`, which costs half as much, but which the monitor
waits for.

If the monitor dies the kernel kills the child (PR_SET_PDEATHSIG), so that none of them becomes a task that nobody
knows of. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import signal
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

from depalma.agent import proctree

#: Signals that Python ignores for itself and that a command must see with their usual meaning.
RESET = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
#: What such a process is called until it has become the program.
NAME = "depalma-enter"
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_LIBC = ctypes.CDLL(None, use_errno=True)
_FIRST_FREE = 10
#: What tasks hold leaves so many: to look at processes and to kill them takes some, and without them the lease would
#: not be held.
_SPARE_DESCRIPTORS = 16
_WORDS_BYTES = 8192


class SpawnError(Exception):
    """The process could not be started. `exit_code` is what a shell would answer: 127 not found, 126 otherwise."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Program(NamedTuple):
    """What a process becomes."""

    path: bytes
    argv: list[bytes]
    environment: dict[bytes, bytes]
    descriptors: list[int]  #: its 0, 1, 2, …


def not_started(name: bytes, error: OSError) -> SpawnError:
    """Returns the words for a program that the kernel did not start."""
    shown = os.fsdecode(name)
    if error.errno == errno.ENOENT:
        return SpawnError(f"{shown}: command not found, or its interpreter is missing", 127)
    if error.errno == errno.ENOEXEC:
        return SpawnError(f"{shown}: not a program, and it has no #! line", 126)
    return SpawnError(f"{shown}: {error.strerror}", 126)


def leave_spare(fd: int, name: str) -> None:
    """Closes a descriptor that is one of the spare ones. Errors: OSError, as if there were none left."""
    if fd >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_DESCRIPTORS:
        os.close(fd)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), name)


class Words:
    """What a child has to say before it has become its program: what it does now, or why it cannot go on."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("words", os.MFD_CLOEXEC)
        leave_spare(self._fd, "words")

    def say(self, text: str, exit_code: int = 0) -> None:
        """Replaces what was said before; with an exit code it is the reason for the end."""
        data = b"%d " % exit_code + text.encode(errors="surrogateescape")[:_WORDS_BYTES]
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, data, 0)

    def failure(self) -> str:
        """Returns why it could not be started; empty if it was, or is still on the way."""
        code, _, text = self._read().partition(" ")
        return text if code != "0" else ""

    def doing(self, pid: int) -> str:
        """Returns what a process that has not been waited for is doing, or was; empty if it has become its program."""
        return self._read().partition(" ")[2] if proctree.name(pid) == NAME else ""

    def _read(self) -> str:
        return os.pread(self._fd, _WORDS_BYTES + 100, 0).decode(errors="surrogateescape")

    def keep_only(self, descriptors: list[int]) -> list[int]:
        """Closes every other descriptor of this process but standard ones. Returns where the given ones are now.

        The lock of the agent's folder is among those that are closed: what hangs must not keep it.
        """
        kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE) for fd in (self._fd, *descriptors)]
        for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
            if fd > 2 and fd not in kept:
                try:
                    os.close(fd)
                except OSError:
                    continue  # that of the listing itself
        self._fd, *rest = kept
        return rest

    def close(self) -> None:
        """Forgets it all."""
        os.close(self._fd)


def fork(prepare: Callable[[Words, list[int]], Program], descriptors: list[int]) -> tuple[int, Words]:
    """Returns the new process, in a session of its own, and what it says. It does what `prepare` does, which gets the
    descriptors under their new numbers, and becomes what that returns. Errors: OSError."""
    words = Words()
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        words.close()
        raise
    if pid == 0:
        _become(prepare, descriptors, words, parent)
    return pid, words


def _become(
    prepare: Callable[[Words, list[int]], Program], descriptors: list[int], words: Words, parent: int
) -> NoReturn:
    """Is the child; never returns, whatever goes wrong."""
    code = 126
    try:
        os.setsid()
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _LIBC.prctl(_PR_SET_NAME, NAME.encode(), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(code)  # it died before we had asked to be told
        signal.set_wakeup_fd(-1)
        for unusual in RESET:
            signal.signal(unusual, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        program = prepare(words, words.keep_only(descriptors))
        for number, fd in enumerate(program.descriptors):
            os.dup2(fd, number)  # all of them are higher: see `keep_only`
        words.say(f"starting {os.fsdecode(program.argv[0])}")
        try:
            os.execve(program.path, program.argv, program.environment)
        except OSError as error:
            raise not_started(program.argv[0], error) from error
    except SpawnError as error:
        code = error.exit_code
        words.say(str(error), code)
    except BaseException as error:
        words.say(f"the command cannot be started: {error!r}", code)
    finally:
        os._exit(code)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Has what goes wrong told in words. Errors: SpawnError."""
    try:
        yield
    except OSError as error:
        where = error.filename or ""
        where = os.fsdecode(where) if isinstance(where, bytes) else str(where)
        raise SpawnError(f"{where}: {error.strerror}", 126) from error
    except (ValueError, TypeError, LookupError) as error:  # a zero byte, an empty command, and the like
        raise SpawnError(f"the command cannot be started: {error}", 126) from error


@contextlib.contextmanager
def closed(handles: list[int]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            os.close(handle)


def append_to(path: str, opened: list[int]) -> int:
    """Returns the descriptor of a file to append to, which is made if need be."""
    # Without O_NONBLOCK a FIFO that nobody reads would hold up whoever opens it.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    opened.append(os.open(path, flags, 0o644))
    os.set_blocking(opened[-1], True)
    return opened[-1]


def enter(cwd: str) -> None:
    """Makes `cwd` the working folder, for the child to inherit. Errors: SpawnError that names it."""
    try:
        os.chdir(cwd or "/")
    except OSError as error:
        raise SpawnError(f"working folder {cwd}: {error.strerror}", 126) from error
