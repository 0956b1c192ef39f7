"""The agent's end of the processes that workers are forked from (forkserver.py), one for each of the newest code trees.

A worker that is forked costs some milliseconds, and has imported whatever any worker of its code before it had to
import. Where there is no such process yet, or it does not answer, workers are started from the beginning.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import logging
import marshal
import socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from depalma.agent.link import MonitorLink
from depalma.agent.workers import WorkerHandle

log = logging.getLogger(__name__)

_KEEP = 2
#: A fork that takes longer is given up, with the process; so much longer while it imports, which its worker would have
#: to do as well.
_FORK_WITHIN_S = 5.0
_IMPORT_WITHIN_S = 20.0
_MESSAGE_BYTES = 262_144
_NAMES = 2000
#: What takes more processor time to import is not left to each worker that was there before: another is forked for it.
_HEAVY_S = 0.1
#: After so many that ended by themselves, or had to be ended, it is done without them: what the tasks import does not
#: go together with forking (a module that starts threads), and trying again would cost its import each time.
_FAILURES = 3


class Nursery:
    """One process, and the workers that it was asked for."""

    def __init__(self, code_index: int) -> None:
        self.code_index = code_index
        self.key = 0  #: the monitor's name for it
        self.retired = False  #: a newer one took its place
        self.ready = False
        self.taught: set[str] = set()
        self.importing: deque[list[str]] = deque()  #: what it was told to import, and has not said to have done
        self.asked: dict[int, WorkerHandle] = {}
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.near.setblocking(False)


class Nurseries:
    """All of an agent's. `start` starts the process of one; `spawn` starts a worker without any.

    `on_heavy(code_index, names)`: workers that are forked from now on have these modules, which take long to import.
    """

    def __init__(
        self,
        link: MonitorLink,
        start: Callable[[Nursery], None],
        spawn: Callable[[WorkerHandle], None],
        on_heavy: Callable[[int, list[str]], None],
    ) -> None:
        self._link = link
        self._start = start
        self._spawn = spawn
        self._on_heavy = on_heavy
        self._by_index: dict[int, Nursery] = {}
        self._ending: list[Nursery] = []
        self._libraries: dict[str, None] = {}  #: modules that are not part of a code tree, in the order of import
        self._failures = 0
        self._own: dict[int, dict[str, None]] = {}  #: those that are, by code index

    def fork(self, handle: WorkerHandle) -> None:
        """Starts a worker, the fastest way there is."""
        nursery = self._by_index.get(handle.code_index)
        if nursery is None and self._failures < _FAILURES:
            self._open(handle.code_index)
        if nursery is None or not nursery.ready or not self._ask(nursery, handle):
            self._spawn_anew(handle)

    def _spawn_anew(self, handle: WorkerHandle) -> None:
        """Starts a worker without any."""
        self._spawn(handle)
        self._repeat(handle)

    def _repeat(self, handle: WorkerHandle) -> None:
        """Tells the monitor, which knows the worker from now on, what it was told before."""
        for reason in sorted(handle.still):
            self._link.send(("suspend", handle.key, reason))
        if handle.stopped:
            self._link.send(("kill", handle.key, 0.0))

    def _ask(self, nursery: Nursery, handle: WorkerHandle) -> bool:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [handle.far.fileno()]))]
        try:
            nursery.near.sendmsg([marshal.dumps(("fork", handle.number, handle.key))], rights)
        except OSError:
            return False
        nursery.asked[handle.number] = handle
        handle.imported |= nursery.taught
        within_s = _IMPORT_WITHIN_S if nursery.importing else _FORK_WITHIN_S
        asyncio.get_running_loop().call_later(within_s, self._give_up, nursery, handle.number)
        return True

    def _give_up(self, nursery: Nursery, number: int) -> None:
        if number in nursery.asked and self._by_index.get(nursery.code_index) is nursery:
            log.warning("a worker of code index %d could not be forked in time", nursery.code_index)
            self._link.send(("kill", nursery.key, 0.0))
            self._link.flush()

    def _open(self, code_index: int) -> None:
        for old in list(self._by_index)[: 1 - _KEEP or None]:
            self._by_index[old].retired = True
            self._link.send(("kill", self._by_index[old].key, 0.0))
        nursery = self._by_index[code_index] = Nursery(code_index)
        self._start(nursery)
        nursery.far.close()
        asyncio.get_running_loop().add_reader(nursery.near, self._readable, nursery)

    def learn(self, code_index: int, libraries: Iterable[str], own: Iterable[str]) -> None:
        """Takes note of what a worker had to import."""
        for known, names in ((self._libraries, libraries), (self._own.setdefault(code_index, {}), own)):
            for name in names:
                if len(known) < _NAMES:
                    known[name] = None
        nursery = self._by_index.get(code_index)
        if nursery is not None and nursery.ready:
            self._teach(nursery)

    def _teach(self, nursery: Nursery) -> None:
        known = [*self._libraries, *self._own.get(nursery.code_index, ())]
        names = [name for name in known if name not in nursery.taught]
        if not names:
            return
        with contextlib.suppress(OSError):  # it is full of such messages, or gone
            nursery.near.send(marshal.dumps(("import", names)))
            nursery.taught.update(names)
            nursery.importing.append(names)

    def _readable(self, nursery: Nursery) -> None:
        while True:
            try:
                data = nursery.near.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except ConnectionResetError:
                continue  # it died before it had read everything; what it had said comes after that
            except OSError:
                data = b""
            if not data:
                asyncio.get_running_loop().remove_reader(nursery.near)
                return  # its end is told by the monitor
            message = _message(nursery, data)
            if message is None:
                log.warning("the process that workers are forked from sent what is no answer: it is killed")
                self._link.send(("kill", nursery.key, 0.0))
                self._link.flush()
            elif message[0] == "ready":
                nursery.ready = True
                if self._libraries or self._own.get(nursery.code_index):
                    self._teach(nursery)
            elif message[0] == "imported":
                names = nursery.importing.popleft()
                if message[1] > _HEAVY_S:
                    self._on_heavy(nursery.code_index, names)
            else:
                _, number, pid, start = message
                handle = nursery.asked.pop(number)
                self._link.send(("adopt", handle.key, pid, start))
                self._repeat(handle)
                self._link.flush()

    def end(self, indices: Iterable[int]) -> None:
        """Ends the processes of these code indices; new ones are started when they are wanted."""
        for index in indices:
            nursery = self._by_index.pop(index, None)
            self._own.pop(index, None)
            if nursery is not None:
                nursery.retired = True
                self._ending.append(nursery)
                self._link.send(("kill", nursery.key, 0.0))
        self._link.flush()

    def ended(self, nursery: Nursery) -> None:
        """Takes the end of a process: workers that it owes are started without it."""
        if not nursery.retired:
            self._failures += 1
            if self._failures == _FAILURES:
                log.warning("workers are not forked any more: what their tasks import does not allow it")
        if self._by_index.get(nursery.code_index) is nursery:
            del self._by_index[nursery.code_index]
            self._own.pop(nursery.code_index, None)
        elif nursery in self._ending:
            self._ending.remove(nursery)
        self._readable(nursery)  # what it has said before it died: these workers are there
        self._close(nursery)
        owed, nursery.asked = nursery.asked, {}
        for handle in owed.values():
            self._spawn_anew(handle)

    def forget_all(self) -> None:
        """Forgets every process: all are dead, or about to be."""
        for nursery in (*self._by_index.values(), *self._ending):
            self._close(nursery)
        self._by_index.clear()
        self._ending.clear()

    @staticmethod
    def _close(nursery: Nursery) -> None:
        asyncio.get_running_loop().remove_reader(nursery.near)
        nursery.near.close()


def _message(nursery: Nursery, data: bytes) -> tuple[Any, ...] | None:
    """Returns what a process says; None if that is no answer: code in it must have written to its socket."""
    try:
        message: tuple[Any, ...] = marshal.loads(data)
    except (ValueError, EOFError, TypeError):
        return None
    match message:
        case ("ready",):
            return message
        case ("imported", float()) if nursery.importing:
            return message
        case ("forked", int(number), int(), int()) if number in nursery.asked:
            return message
    return None
