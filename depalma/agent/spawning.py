"""How the monitor starts one process and keeps its output and its scratch folder. Standard library only.

A slot has one pair of spool files and one scratch folder, made once and used by task after task as long as they stay
empty: most short tasks write nothing, and creating files would cost them more than running. A spool with something in
it is renamed to the task's own output file; a scratch folder with something in it goes to the trash.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from depalma.agent import proctree
from depalma.agent.cgroups import GROUPS, ControlGroups
from depalma.agent.limits import Ended, Limits, Watch, shim, watched
from depalma.agent.proctree import MARKER

#: Signals that Python ignores for itself and that a command must see with their usual meaning.
_RESET = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_RESOLVED_FOR_S = 2.0
#: Slots leave so many: to look at processes and to kill them takes some, and without them the lease would not be held.
_SPARE_DESCRIPTORS = 16
#: In place of a slot: the process is no task and no worker, but what workers are forked from.
NURSERY = -2


def marker(key: int) -> str:
    """Returns what the environment of process `key` of this monitor says; no other monitor uses it."""
    return f"{os.getpid()}:{key}"


class SpawnError(Exception):
    """The process could not be started. `exit_code` is what a shell would answer: 127 not found, 126 otherwise."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Spawned:
    """One process that the monitor started, and what is known to belong to it."""

    __slots__ = (
        "deadline", "dirty", "ended", "finals", "keep", "key", "orphans", "over", "pid", "slot", "started",
        "status", "visited", "visitors", "watch", "wrote",
    )  # fmt: skip

    def __init__(self, key: int, slot: int, finals: tuple[str, str]) -> None:
        self.key = key
        self.slot = slot  #: -1: no spool and no scratch folder of its own
        self.keep = ""  #: where its scratch folder goes; empty = to the trash
        self.finals = finals  #: where spooled output goes; empty = it went to a file of the user's choice
        self.pid = 0
        self.started = 0.0
        self.ended = 0.0
        self.status: int | None = None  #: wait status, once the main process is reaped
        self.orphans: set[int] = set()  #: descendants that have become children of the monitor
        self.deadline: float | None = None  #: when SIGTERM has had its grace
        self.watch: Watch | None = None  #: if it has limits
        self.over: Ended | None = None  #: which of them ended it
        self.dirty = False  #: somebody else may still have had the spool open
        self.wrote = False  #: there is output of it
        self.visitors: list[Spawned] = []  #: what users run inside it; it ends with it
        self.visited: int | None = None  #: the key of what it is a visitor of

    def pids(self) -> list[int]:
        """Returns every process of it, dead ones that wait to be reaped included."""
        tops = [self.pid, *self.orphans]
        return [pid for top in tops for pid in (top, *(child for child, _ in proctree.descendants(top)))]

    def look_at_limits(self) -> None:
        """Kills it if it uses more than it may."""
        if self.watch is None or self.over is not None or self.status is not None:
            return
        self.over = self.watch.look(self.pids)
        if self.over is not None:
            self.deadline = 0.0  # again and again, until nothing is left
            self.watch.group.kill()
            self.signal(signal.SIGKILL)

    def end(self, deadline: float, *, polite: bool) -> None:
        """Asks it to end, also when it stands still, and kills it at the deadline; at once if it is not `polite`."""
        self.deadline = deadline
        if polite:
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)
        else:
            self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Signals the process group, and what has left it."""
        own = os.getpid()
        if self.status is None:
            below = list(proctree.descendants(self.pid))
            with contextlib.suppress(ProcessLookupError, PermissionError):  # `sudo` has made it another user's
                os.killpg(self.pid, number)
            for pid, parent in below:
                now = proctree.stat(pid)
                if now is not None and now.pgrp != self.pid:
                    proctree.send(pid, parent, number)
        for pid in list(self.orphans):
            proctree.send_tree(pid, number)
            proctree.send(pid, own, number)


class Slots:
    """Spools and scratch folders below the agent's folder."""

    def __init__(self, root: str, output_limit_bytes: int) -> None:
        self.output_limit_bytes = output_limit_bytes
        self.spool = f"{root}/spool"
        self.scratch = f"{root}/scratch"
        self.trash = f"{root}/trash"
        self._open: dict[int, list[int]] = {}
        self._scratches: set[int] = set()
        self._discarded = 0
        for folder in (self.spool, self.scratch, self.trash):
            os.makedirs(folder, mode=0o700, exist_ok=True)

    def spools(self, slot: int) -> list[int]:
        """Returns the two open spool files of a slot, empty."""
        pair = self._open.get(slot)
        if pair is None:
            pair = [self._new_spool(slot, "out")]
            try:
                pair.append(self._new_spool(slot, "err"))
            except OSError:
                os.close(pair[0])
                raise
            self._open[slot] = pair
        return pair

    def scratch_of(self, slot: int, inputs: str = "") -> str:
        """Returns the scratch folder of a slot, existing and empty; `inputs`: that folder, which it becomes."""
        path = f"{self.scratch}/{slot}"
        if slot not in self._scratches:
            self._move_away(path)  # a monitor that was killed has left it, or it could not be moved before
        if inputs:
            os.rename(inputs, path)  # over the empty one, if there is one
            self._scratches.add(slot)
        elif slot not in self._scratches:
            os.makedirs(path, mode=0o700, exist_ok=True)
            self._scratches.add(slot)
        return path

    def finish(self, spawned: Spawned) -> None:
        """Moves what a task wrote to its place, and readies the slot for the next one."""
        slot = spawned.slot
        pair = self._open.get(slot)
        try:
            if pair is not None:
                sizes_bytes = [os.fstat(fd).st_size for fd in pair]
                spawned.wrote = any(sizes_bytes)
                if spawned.dirty or spawned.wrote:
                    # Out of use first: whatever fails below, the next task gets new files.
                    del self._open[slot]
                    self._keep(slot, pair, sizes_bytes, spawned.finals)
        finally:
            self._renew_scratch(slot, spawned.keep)

    def kept(self, spawned: Spawned) -> str:
        """Does the same; returns what went wrong."""
        try:
            if spawned.slot >= 0:
                self.finish(spawned)
        except OSError as error:
            return f"output could not be kept: {error.strerror}: {error.filename}"
        return ""

    def _keep(self, slot: int, pair: list[int], sizes_bytes: list[int], finals: tuple[str, str]) -> None:
        try:
            for fd, name, size_bytes, final in zip(pair, ("out", "err"), sizes_bytes, finals, strict=True):
                if size_bytes > self.output_limit_bytes:
                    os.ftruncate(fd, self.output_limit_bytes)
                if size_bytes and final:
                    _rename(f"{self.spool}/{slot}.{name}", final)
        finally:
            for fd in pair:
                os.close(fd)

    def _new_spool(self, slot: int, name: str) -> int:
        path = f"{self.spool}/{slot}.{name}"
        # A new inode: whoever still has the old one open cannot write into the next task's output.
        if os.path.exists(path):
            os.unlink(path)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if fd >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_DESCRIPTORS:
            os.close(fd)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
        return fd

    def _renew_scratch(self, slot: int, keep: str) -> None:
        """Makes the scratch folder of a slot a new one; what is in it goes to `keep`, or to the trash."""
        if slot in self._scratches:
            self._scratches.discard(slot)  # whatever fails below: who gets it next looks at it first
            if not self._move_away(f"{self.scratch}/{slot}", keep):
                self._scratches.add(slot)

    def _move_away(self, path: str, keep: str = "") -> bool:
        """Moves what is there, unless it is an empty folder. Returns whether it is not there any more."""
        try:
            if not os.path.islink(path) and not os.listdir(path):
                return False
        except FileNotFoundError:
            return True
        except (NotADirectoryError, PermissionError):
            pass  # the task put something else in its place, or took the permissions away
        self._discarded += 1
        target = keep or f"{self.trash}/{os.getpid()}.{self._discarded}"
        try:
            os.rename(path, target)
        except PermissionError:
            os.chmod(path, 0o700)  # a folder that must not be written cannot be moved either
            os.rename(path, target)
        return True


class Spawner:
    """Starts processes with posix_spawn: no fork of the monitor, no code of ours between it and the program."""

    def __init__(self, slots: Slots, groups: ControlGroups) -> None:
        self.slots = slots
        self.groups = groups
        self.environments: dict[int, dict[bytes, bytes]] = {}
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._resolved: dict[tuple[bytes, bytes], tuple[bytes, float]] = {}

    def spawn(self, spawned: Spawned, message: tuple[Any, ...], fd: int) -> None:
        """Starts what a `spawn` message asks for, in a session of its own. Errors: SpawnError."""
        _, key, argv, job, extra, cwd, (out, err), slot, _, limits, (inputs, spawned.keep), *rest = message
        environment = {**self.environments.get(job, {}), **extra, MARKER.encode(): marker(key).encode()}
        if slot < 0:
            environment[GROUPS.encode()] = self.groups.shared().encode()
        opened: list[int] = []
        with _told(), _closed(opened):
            if slot >= 0:
                scratch = self.slots.scratch_of(slot, inputs)
                cwd = cwd or scratch
            _enter(cwd)
            files = self._outputs(slot, out, err, opened)
            actions = [
                (os.POSIX_SPAWN_DUP2, self._stdin(rest[0] if rest else b"", opened), 0),
                (os.POSIX_SPAWN_DUP2, files[0], 1),
                (os.POSIX_SPAWN_DUP2, files[1], 2),
            ]
            if fd >= 0:
                actions.append((os.POSIX_SPAWN_DUP2, fd, 3))
            path = self._resolve(argv[0], environment.get(b"PATH", os.defpath.encode()))
            if limits:
                watch = spawned.watch = self._watch(spawned, Limits(*limits), files)
                argv = shim(watch.limits, watch.group, [path, *argv[1:]])
                path = argv[0]
            spawned.started = time.time()
            spawned.pid = self._start(path, argv, environment, actions)

    def enter(
        self,
        visitor: Spawned,
        argv: list[bytes],
        variables: tuple[int, dict[bytes, bytes]],
        cwd: str,
        place: str | list[int],
        bound: Callable[[list[bytes]], list[bytes]] | None,
    ) -> None:
        """Starts a visitor (`visiting.py`) on a terminal, which becomes its own, or with three descriptors as standard
        input, output and error. `variables`: the job, and what is set besides; `bound` puts it under the limits of
        the task. Errors: SpawnError."""
        job, extra = variables
        environment = {**self.environments.get(job, {}), **extra, MARKER.encode(): marker(visitor.key).encode()}
        with _told():
            _enter(cwd)
            if isinstance(place, str):
                # Opened by the leader of a new session: so it is its controlling terminal.
                actions: list[Any] = [(os.POSIX_SPAWN_OPEN, 0, place, os.O_RDWR, 0)]
                actions += [(os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
            else:
                actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(place)]
            path = self._resolve(argv[0], environment.get(b"PATH", os.defpath.encode()))
            if bound is not None:
                argv = bound([path, *argv[1:]])
                path = argv[0]
            visitor.started = time.time()
            visitor.pid = self._start(path, argv, environment, actions)

    def _watch(self, spawned: Spawned, limits: Limits, files: list[int]) -> Watch:
        outputs = [(f"/proc/self/fd/{fd}", os.fstat(fd).st_size) for fd in files]
        named = [(os.readlink(path), size_bytes) for path, size_bytes in outputs]
        scratch = self.slots.scratch_of(spawned.slot) if spawned.slot >= 0 else ""
        return watched(self.groups, str(spawned.key), limits, scratch, list(dict(named).items()))

    def _stdin(self, given: bytes | str, opened: list[int]) -> int:
        """Returns the descriptor of what is read, at its beginning: bytes, a file, or nothing."""
        if not given:
            return self._null
        if isinstance(given, str):
            opened.append(os.open(given, os.O_RDONLY | os.O_CLOEXEC))
        else:
            opened.append(os.memfd_create("stdin", os.MFD_CLOEXEC))
            os.write(opened[-1], given)
            os.lseek(opened[-1], 0, os.SEEK_SET)
        return opened[-1]

    def _outputs(self, slot: int, out: str, err: str, opened: list[int]) -> list[int]:
        """Returns the descriptors for standard output and error; a path starting with `>` is a file to append to."""
        files = list(self.slots.spools(slot)) if slot >= 0 else [self._null, self._null]
        for position, target in enumerate((out, err)):
            if target.startswith(">"):
                # Without O_NONBLOCK a FIFO nobody reads would hold up every task of this host.
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
                files[position] = os.open(target[1:], flags, 0o644)
                opened.append(files[position])
                os.set_blocking(files[position], True)
        return files

    def _start(self, path: bytes, argv: list[bytes], environment: dict[bytes, bytes], actions: list[Any]) -> int:
        try:
            return os.posix_spawn(
                path, argv, environment, file_actions=actions, setsid=True, setsigmask=[], setsigdef=_RESET
            )
        except OSError as error:
            self._resolved.clear()
            name = os.fsdecode(argv[0])
            if error.errno == errno.ENOENT:
                raise SpawnError(f"{name}: command not found, or its interpreter is missing", 127) from error
            if error.errno == errno.ENOEXEC:
                raise SpawnError(f"{name}: not a program, and it has no #! line", 126) from error
            raise SpawnError(f"{name}: {error.strerror}", 126) from error

    def _resolve(self, name: bytes, path: bytes) -> bytes:
        """Returns the file that a shell would run; remembered for a moment. Errors: SpawnError."""
        if b"/" in name:
            return name
        known = self._resolved.get((name, path))
        now = time.monotonic()
        if known is not None and now < known[1]:
            return known[0]
        denied = False
        for folder in path.split(b":"):
            candidate = (folder or b".") + b"/" + name
            if os.path.isfile(candidate):
                if os.access(candidate, os.X_OK):
                    if not folder.startswith(b"/"):
                        return candidate
                    self._resolved[(name, path)] = (candidate, now + _RESOLVED_FOR_S)
                    return candidate
                denied = True
        shown = os.fsdecode(name)
        if denied:
            raise SpawnError(f"{shown}: permission denied", 126)
        raise SpawnError(f"{shown}: command not found", 127)


@contextlib.contextmanager
def _told() -> Iterator[None]:
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
def _closed(handles: list[int]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            os.close(handle)


def _enter(cwd: str) -> None:
    """Makes `cwd` the working folder, for the child to inherit. Errors: SpawnError that names it."""
    try:
        os.chdir(cwd or "/")
    except OSError as error:
        raise SpawnError(f"working folder {cwd}: {error.strerror}", 126) from error


def _rename(source: str, target: str) -> None:
    try:
        os.rename(source, target)
    except FileNotFoundError:
        Path(target).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.rename(source, target)
