"""Who encodes a snapshot: a forked child, so that the leader does not stall, or (in simulation) we ourselves."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from depalma.consensus.snapshot import SnapshotStore
from depalma.consensus.snapshot_format import Header

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
#: how much less urgent the child is: where both want a core, it gets a quarter of it
_NICE = 5
_libc = ctypes.CDLL(None, use_errno=True)


class SnapshotWriter(Protocol):
    """Writes one snapshot at a time."""

    def begin(self, store: SnapshotStore, header: Header, pieces: Callable[[], Iterable[bytes]]) -> None:
        """Start to write the state as it is now."""
        ...

    def poll(self) -> bool | None:
        """True once it is written and synced, False once it failed, None while neither is known."""
        ...

    def cancel(self) -> None:
        """Give up what is being written."""
        ...


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection within: a large state that is being built is looked at again and again, for nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class InlineSnapshots:
    """Writes at once, in the caller's process."""

    def __init__(self) -> None:
        self._written: bool | None = None

    def begin(self, store: SnapshotStore, header: Header, pieces: Callable[[], Iterable[bytes]]) -> None:
        try:
            store.write(header, pieces())
            self._written = True
        except OSError as error:
            logger.error("writing a snapshot failed: %s", error)
            self._written = False

    def poll(self) -> bool | None:
        written, self._written = self._written, None
        return written

    def cancel(self) -> None:
        self._written = None


class ForkedSnapshots:
    """Writes in a child that has a copy of the state: it only encodes, writes, syncs and exits.

    The child takes no lock that another thread might have held at the fork (no logging, no OpenSSL), holds none
    of our sockets (a peer must see the connection close when we die), and dies with us.
    """

    #: a child that is not ready after so long is stuck
    TIMEOUT_S = 600.0

    def __init__(self) -> None:
        self._pid = 0
        self._started_at = 0.0

    def begin(self, store: SnapshotStore, header: Header, pieces: Callable[[], Iterable[bytes]]) -> None:
        parent = os.getpid()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads: see the class
                pid = os.fork()
        except OSError as error:
            logger.error("cannot fork to write a snapshot: %s", error)
            pid = -1
        if pid == 0:
            _child(parent, lambda: store.write(header, pieces()))
        self._pid = pid
        self._started_at = time.monotonic()

    def poll(self) -> bool | None:
        if self._pid <= 0:
            failed, self._pid = self._pid < 0, 0
            return False if failed else None
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid:
            self._pid = 0
            if status:
                logger.error("the child that writes a snapshot ended with status %d", status)
            return status == 0
        if time.monotonic() - self._started_at > self.TIMEOUT_S:
            logger.error("the child that writes a snapshot is stuck; killing it")
            self.cancel()
            return False
        return None

    def cancel(self) -> None:
        if self._pid > 0:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0


def _child(parent: int, work: Callable[[], None]) -> None:
    """Do the work and exit, whatever happens: nothing of the parent's loop may run here."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            gc.disable()
            os.nice(_NICE)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            work()
            status = 0
    except BaseException as error:
        os.write(2, f"writing a snapshot failed: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)
