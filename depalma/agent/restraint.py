"""Holds the trees of tasks back: stops them, lets them go on, lowers their priority. Standard library only.

A tree stands still as long as there is any reason for it, of its own or of the whole host, so that the owner of the
machine and the user of the job do not undo what the other one wants. What has been told to end is let go: it needs to
run for that. Nothing here touches the lease: SIGKILL ends what stands still as it ends everything else.

Stopping is SIGSTOP, which needs no right and no control group. It is exact: only what was stopped here goes on again,
not what a task had stopped itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from depalma.agent import proctree
from depalma.agent.cgroups import ControlGroups
from depalma.agent.spawning import NURSERY, Spawned

#: How soon it is looked again after something was still moving, and when nothing was.
_SOON_S, _SETTLED_S = 0.1, 1.0
#: Looks at one tree in a row: what was forked before its parent stopped is found by the next one.
_ROUNDS = 20
_LOWEST = 19
#: Of the system call ioprio_set, which the C library does not offer; elsewhere the disk is not given up.
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273}.get(platform.machine(), -1)
_IO_IDLE, _IO_DEFAULT = 3 << 13, 0
#: In place of a key: a process that may belong to any task.
_ANY = 0


class _Stopped(NamedTuple):
    start: int
    key: int


class Restraint:
    """Of one monitor."""

    def __init__(self, groups: ControlGroups) -> None:
        self._groups = groups
        self._reasons: set[str] = set()  #: why everything stands still
        self._of_keys: dict[int, set[str]] = {}  #: why single ones do
        self._lower = False
        self._stopped: dict[int, _Stopped] = {}
        self._unknown: Mapping[int, Collection[int]] = {}  #: orphans, and the keys that they may belong to
        self._nice: dict[int, tuple[int, int]] = {}  #: of lowered processes: start, and what they had
        self._look_s = 0.0

    def due(self, now: float) -> bool:
        """Returns whether `look` has something to do."""
        return now >= self._look_s and bool(self._reasons or self._of_keys or self._lower)

    def wait_s(self, now: float) -> float:
        """Returns how long nothing is to be done here."""
        return max(0.0, self._look_s - now) if self._reasons or self._of_keys or self._lower else _SETTLED_S

    @property
    def holds_all(self) -> bool:
        """Returns whether nothing may start."""
        return bool(self._reasons)

    def suspend(self, key: int | None, reason: str) -> None:
        """Adds a reason, for one key or for everything; `look` does it."""
        (self._reasons if key is None else self._of_keys.setdefault(key, set())).add(reason)
        self.look_soon()

    def look_soon(self) -> None:
        """Has the next look be now: there is something new."""
        self._look_s = 0.0

    def resume(self, key: int | None, reason: str, living: Iterable[Spawned]) -> None:
        """Takes a reason back; what no other reason holds goes on."""
        if key is None:
            self._reasons.discard(reason)
        elif key in self._of_keys:
            self._of_keys[key].discard(reason)
            if not self._of_keys[key]:
                del self._of_keys[key]
        self.let_go(living)

    def let_go(self, living: Iterable[Spawned]) -> None:
        """Lets everything go on that is not held any more."""
        held = {spawned.key for spawned in living if self._is_held(spawned)}
        for pid, (start, key) in list(self._stopped.items()):
            if key in held or (key == _ANY and self._holds_any(self._unknown.get(pid, ()), held)):
                continue
            del self._stopped[pid]
            proctree.send_same(pid, start, signal.SIGCONT)

    def forget(self, key: int | None = None) -> None:
        """Forgets one that has ended, or all; reasons for everything stay."""
        if key is None:
            self._of_keys.clear()
            self._stopped.clear()
            self._nice.clear()
        else:
            self._of_keys.pop(key, None)

    def _is_held(self, spawned: Spawned) -> bool:
        if spawned.deadline is not None or spawned.over is not None or spawned.status is not None:
            return False
        # What stands beside the tasks goes on: code that is put in place, and what workers are forked from.
        everything = bool(self._reasons) and spawned.key > 0 and spawned.slot != NURSERY
        return everything or spawned.key in self._of_keys or spawned.visited in self._of_keys

    def _holds_any(self, candidates: Collection[int], held: Collection[int]) -> bool:
        """Returns whether a process stands still that may belong to each of the candidates."""
        return bool(self._reasons) or (bool(candidates) and all(key in held for key in candidates))

    # ------------------------------------------------------------ looking

    def look(self, living: Collection[Spawned], unknown: Mapping[int, Collection[int]], now: float) -> None:
        """Stops and lowers whatever is not yet; call it when it is due, with all orphans known, and the keys that those
        may belong to of which it is not known."""
        moving = False
        self._unknown = unknown
        held = {spawned.key for spawned in living if self._is_held(spawned)}
        for spawned in living:
            if spawned.key in held:
                moving |= self._stop(spawned.key, [spawned.pid, *spawned.orphans])
        moving |= self._stop(_ANY, [pid for pid, keys in unknown.items() if self._holds_any(keys, held)])
        for pid, (start, _) in list(self._stopped.items()):
            found = proctree.stat(pid)
            if found is None or found.start != start:
                del self._stopped[pid]
        if self._lower:
            moving |= self._lower_all()
        self._look_s = now + (_SOON_S if moving else _SETTLED_S)

    def _stop(self, key: int, tops: list[int]) -> bool:
        """Stops trees. Returns whether anything of them moved."""
        moved = False
        seen: set[int] = set()
        for _ in range(_ROUNDS):
            fresh = False
            for pid in [p for top in tops for p in (top, *(child for child, _ in proctree.descendants(top)))]:
                if pid in seen:
                    continue
                seen.add(pid)
                found = proctree.stat(pid)
                if found is None or found.state in "TtZX":
                    continue  # also what the task itself has stopped: that is not ours to let go
                if found.state == "D" and self._stopped.get(pid) == (found.start, key):
                    continue  # it obeys as soon as it can; after a vfork that is when its child goes on
                if proctree.send_same(pid, found.start, signal.SIGSTOP):
                    self._stopped[pid] = _Stopped(found.start, key)
                    fresh = moved = True
            if not fresh:
                break
        return moved

    # ------------------------------------------------------------ priority

    def lower(self, lowered: bool) -> None:
        """Has everything below this process run at the lowest priority from now on, or as before again.

        Without the right to raise a priority what was lowered stays so: that costs it nothing on an idle machine.
        """
        if lowered == self._lower:
            return
        self._lower = lowered
        self._groups.lower(lowered)
        if lowered:
            self.look_soon()
            return
        own = os.getpriority(os.PRIO_PROCESS, 0)
        for pid, _ in proctree.descendants(os.getpid()):
            found = proctree.stat(pid)
            if found is not None and _nice_of(pid) == _LOWEST:
                start, nice = self._nice.get(pid, (found.start, own))
                _set_priority(pid, found.session, nice if start == found.start else own, _IO_DEFAULT)
        self._nice.clear()

    def _lower_all(self) -> bool:
        moved = False
        for pid, _ in proctree.descendants(os.getpid()):
            nice = _nice_of(pid)
            found = proctree.stat(pid) if nice != _LOWEST else None
            if found is not None and found.state != "Z":
                self._nice[pid] = found.start, nice
                moved |= _set_priority(pid, found.session, _LOWEST, _IO_IDLE)
        self._nice = {pid: known for pid, known in self._nice.items() if os.path.exists(f"/proc/{pid}")}
        return moved


def _nice_of(pid: int) -> int:
    """Returns the niceness of a process; the lowest priority if it is gone: then there is nothing to do."""
    try:
        return os.getpriority(os.PRIO_PROCESS, pid)
    except OSError:
        return _LOWEST


def _set_priority(pid: int, session: int, nice: int, io: int) -> bool:
    """Sets both priorities of every thread, and that of the session. Returns whether the kernel took any."""
    done = False
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return False
    for thread in map(int, threads):
        _set_io(thread, io)
        with contextlib.suppress(OSError):  # it has ended, or we may not raise it
            os.setpriority(os.PRIO_PROCESS, thread, nice)
            done = True
    if session == pid:
        # Where the kernel shares the processor by session, niceness counts only within one; this counts between them.
        with contextlib.suppress(OSError), open(f"/proc/{pid}/autogroup", "w") as file:
            file.write(str(nice))
    return done


def _set_io(thread: int, value: int) -> None:
    if _IOPRIO_SET > 0:
        ctypes.CDLL(None).syscall(_IOPRIO_SET, 1, thread, value)
