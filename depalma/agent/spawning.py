"""How the monitor starts one process and keeps its output and its scratch folder. Standard library only.

A slot has one pair of spool files and one scratch folder, made once and used by task after task as long as they stay
empty: most short tasks write nothing, and creating files would cost them more than running. A spool with something in
it is renamed to the task's own output file; a scratch folder with something in it goes to the trash.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from depalma.agent import entering, mounts, proctree
from depalma.agent.cgroups import GROUPS, ControlGroups
from depalma.agent.entering import RESET, Program, Words, append_to, closed, leave_spare, told
from depalma.agent.limits import Ended, Limits, Watch, shim, watched
from depalma.agent.mounts import MayHang
from depalma.agent.proctree import MARKER
from depalma.agent.way import Wanted, Way

#: In place of a slot: the process is no task and no worker, but what workers are forked from.
NURSERY = -2


def marker(key: int) -> str:
    """Returns what the environment of process `key` of this monitor says; no other monitor uses it."""
    return f"{os.getpid()}:{key}"


class Spawned:
    """One process that the monitor started, and what is known to belong to it."""

    __slots__ = (
        "deadline", "dirty", "ended", "finals", "hangs", "keep", "key", "orphans", "over", "pid", "slot", "started",
        "status", "visited", "visitors", "watch", "words", "wrote",
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
        self.words: Words | None = None  #: what it says on the way to its program, if it goes that by itself
        self.hangs = ""  #: where it hung when it was killed

    def pids(self) -> list[int]:
        """Returns every process of it, dead ones that wait to be reaped included."""
        tops = [self.pid, *self.orphans]
        return [pid for top in tops for pid in (top, *(child for child, _ in proctree.descendants(top)))]

    def reap(self) -> int:
        """Takes note of the end of its main process, which has ended. Returns the most memory that it had, in bytes."""
        doing = self.words.doing(self.pid) if self.words is not None else ""
        _, self.status, usage = os.wait4(self.pid, 0)
        self.ended = time.time()
        if doing and os.WIFSIGNALED(self.status):
            self.hangs = f"it had not begun: {doing}"
        return usage.ru_maxrss * 1024

    def failure(self) -> str:
        """Returns why it has not become its program; empty if it has, or if that was told at once. Once."""
        words, self.words = self.words, None
        if words is None:
            return ""
        try:
            return words.failure()
        finally:
            words.close()

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
            with contextlib.suppress(PermissionError):  # `sudo` has made it another user's
                try:
                    os.killpg(self.pid, number)
                except ProcessLookupError:  # it has just been forked, and has no group of its own yet
                    os.kill(self.pid, number)
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
        leave_spare(fd, path)
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
            if not os.path.islink(path) and not mounts.begins_at(path) and not os.listdir(path):
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
    """Starts processes with posix_spawn: no fork of the monitor, no code of ours between it and the program. What may
    wait for ever on the way to its program goes by itself (`entering.py`)."""

    def __init__(self, slots: Slots, groups: ControlGroups) -> None:
        self.slots = slots
        self.groups = groups
        self.way = Way()
        self.environments: dict[int, dict[bytes, bytes]] = {}
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def spawn(self, spawned: Spawned, message: tuple[Any, ...], fd: int) -> None:
        """Starts what a `spawn` message asks for, in a session of its own. Errors: SpawnError."""
        _, key, argv, job, extra, cwd, (out, err), slot, _, limits, (inputs, spawned.keep), *rest = message
        environment = {**self.environments.get(job, {}), **extra, MARKER.encode(): marker(key).encode()}
        if slot < 0:
            environment[GROUPS.encode()] = self.groups.shared().encode()
        opened: list[int] = []
        with told(), closed(opened):
            scratch = self.slots.scratch_of(slot, inputs) if slot >= 0 else ""
            stdin = self._stdin(rest[0] if rest else b"", opened)
            streams = (stdin, *self._outputs(slot, out, err), *((fd,) if fd >= 0 else ()))
            bound = partial(self._bound, spawned, Limits(*limits)) if limits else None
            self._begin(spawned, Wanted(argv, environment, cwd or scratch, bool(cwd), streams, "", bound), opened)

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
        streams, terminal = ((), place) if isinstance(place, str) else (tuple(place), "")
        limited = None if bound is None else lambda argv, _: bound(argv)
        opened: list[int] = []
        with told(), closed(opened):
            self._begin(visitor, Wanted(argv, environment, cwd, True, streams, terminal, limited), opened)

    # ------------------------------------------------------------ the way to the program

    def _begin(self, spawned: Spawned, wanted: Wanted, opened: list[int]) -> None:
        try:
            program = self.way.go(wanted, opened, None)
            spawned.started = time.time()
            spawned.pid = self._start(program, wanted.terminal)
        except MayHang:
            streams = tuple(self._open_here(stream, wanted.cwd, opened) for stream in wanted.streams)
            wanted = wanted._replace(streams=streams)
            if wanted.bound is not None:  # the control groups and the watch are the monitor's
                prefix = wanted.bound([], [stream for stream in streams[1:3] if isinstance(stream, int)])
                wanted = wanted._replace(bound=lambda argv, _: [*prefix, *argv])
            given = [stream for stream in streams if isinstance(stream, int)]
            spawned.started = time.time()
            spawned.pid, spawned.words = entering.fork(partial(self._alone, wanted), given)

    def _open_here(self, stream: int | str, cwd: str, opened: list[int]) -> int | str:
        """Returns the descriptor of a file that the monitor may open, so that it can see how long it gets."""
        if isinstance(stream, str):
            try:
                self.way.mounts.check(os.path.join(cwd or "/", stream))
            except MayHang:
                return stream
            return append_to(os.path.join(cwd or "/", stream), opened)
        return stream

    def _alone(self, wanted: Wanted, words: Words, given: list[int]) -> Program:
        """Goes the way in the process that is to become the program, with its descriptors. Errors: SpawnError."""
        self.way.mounts.trust()
        numbers = iter(given)
        streams = tuple(next(numbers) if isinstance(stream, int) else stream for stream in wanted.streams)
        with told():
            return self.way.go(wanted._replace(streams=streams), [], words)

    def _bound(self, spawned: Spawned, limits: Limits, argv: list[bytes], files: list[int]) -> list[bytes]:
        watch = spawned.watch = self._watch(spawned, limits, files)
        return shim(watch.limits, watch.group, argv)

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

    def _outputs(self, slot: int, out: str, err: str) -> list[int | str]:
        """Returns where standard output and error go: what starts with `>` is a file of the user's."""
        spools = self.slots.spools(slot) if slot >= 0 else [self._null, self._null]
        return [out[1:] if out[:1] == ">" else spools[0], err[1:] if err[:1] == ">" else spools[1]]

    def _start(self, program: Program, terminal: str) -> int:
        actions: list[Any] = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(program.descriptors)]
        if terminal:
            # Opened by the leader of a new session: so it is its controlling terminal.
            actions = [(os.POSIX_SPAWN_OPEN, 0, terminal, os.O_RDWR, 0)]
            actions += [(os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
        path, argv, environment, _ = program
        try:
            return os.posix_spawn(
                path, argv, environment, file_actions=actions, setsid=True, setsigmask=[], setsigdef=RESET
            )
        except OSError as error:
            self.way.forget()
            raise entering.not_started(argv[0], error) from error


def _rename(source: str, target: str) -> None:
    try:
        os.rename(source, target)
    except FileNotFoundError:
        Path(target).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.rename(source, target)
