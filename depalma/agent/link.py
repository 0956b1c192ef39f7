"""The agent's side of the monitor: starts it, talks with it, notices its death."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import depalma.monitor
from depalma.agent import proctree
from depalma.agent.channel import Channel, Message
from depalma.agent.wardenlink import WardenLink
from depalma.monitor import boottime

log = logging.getLogger(__name__)

#: How much later than the lease the warden acts: a part of what is left of it, but not longer. Far within the margin
#: after which the work runs elsewhere, clocks that differ included (`lease.py`).
_WARDEN_LATE, _WARDEN_LATE_S = 0.03, 0.3


class MonitorLink:
    """One monitor process. `on_message` gets what it says, `on_death` is called once when it is gone."""

    def __init__(self, on_messages: Callable[[list[Message]], None], on_death: Callable[[], None]) -> None:
        self._on_messages = on_messages
        self._on_death = on_death
        self._process: subprocess.Popen[bytes] | None = None
        self._warden: WardenLink | None = None
        self._channel: Channel | None = None
        self._waits_for_room = False

    def start(self, root: Path, lock_fd: int, output_limit_bytes: int) -> None:
        """Starts the monitor. It shares the lock on the agent's folder and keeps it until everything is dead."""
        if self._warden is None:
            self._warden = WardenLink(root)
        self._warden.monitor = (0, 0)
        self._warden.hold(0.0)
        near, far = socket.socketpair()
        argv = [sys.executable, "-I", "-S", depalma.monitor.__file__, str(far.fileno()), str(lock_fd), str(root)]
        argv.append(str(output_limit_bytes))
        # The child inherits the mask: a signal to all processes of a service cannot end it before it ignores them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(far.fileno(), lock_fd),
                start_new_session=True,
                cwd="/",
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            far.close()
        self._warden.monitor = _identity(self._process.pid)
        self._channel = Channel(near)
        asyncio.get_running_loop().add_reader(near, self._readable)

    @property
    def pid(self) -> int:
        """Returns the monitor's process id, 0 if there is none."""
        return self._process.pid if self._process is not None else 0

    def send(self, message: Message, *fds: int) -> None:
        """Queues a message; `flush` sends it. Descriptors are closed here in any case."""
        if self._channel is not None:
            self._channel.queue(message, *fds)
            return
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def renew(self, until_s: float) -> None:
        """Says until when tasks may live (CLOCK_BOOTTIME). The warden gives the others a moment to be first."""
        if self._warden is not None:
            self._warden.hold(until_s + min(_WARDEN_LATE_S, _WARDEN_LATE * (until_s - boottime())))
        self.send(("lease", until_s))

    def flush(self) -> None:
        """Sends what is queued, the rest when there is room."""
        if self._channel is None or self._waits_for_room:
            return
        try:
            if not self._channel.flush():
                self._waits_for_room = True
                asyncio.get_running_loop().add_writer(self._channel.sock, self._writable)
        except OSError:
            self._died()

    def _writable(self) -> None:
        assert self._channel is not None
        asyncio.get_running_loop().remove_writer(self._channel.sock)
        self._waits_for_room = False
        self.flush()

    def _readable(self) -> None:
        if self._channel is None:
            return
        try:
            messages = self._channel.receive()
        except (EOFError, OSError, ValueError):
            self._died()
            return
        if any(message[0] == "all_dead" for message in messages) and self._warden is not None:
            self._warden.hold(0.0)
        if messages:
            self._on_messages(messages)

    def _died(self) -> None:
        self.close()
        self._on_death()

    def close(self) -> None:
        """Closes the channel; the monitor then kills everything, tells the masters and ends."""
        if self._channel is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._channel.sock)
            if self._waits_for_room:
                loop.remove_writer(self._channel.sock)
                self._waits_for_room = False
            self._channel.close()
            self._channel = None

    def end(self) -> None:
        """Closes the channel, and ends the warden: the monitor has ended everything, or was made to."""
        self.close()
        if self._warden is not None:
            self._warden.dismiss()

    def wait(self, timeout_s: float) -> bool:
        """Waits for the process to end (blocks). Returns whether it has, and then nothing of it lives."""
        if self._process is None:
            return True
        try:
            if self._process.wait(timeout_s) != 0:
                proctree.kill_descendants()  # it was killed: what it had started has fallen to us
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill_tree(self) -> None:
        """Kills what the monitor has started, without its help: it may be stopped itself."""
        for _ in range(3):
            if not self.pid or not proctree.send_tree(self.pid, signal.SIGKILL):
                return

    def kill(self) -> None:
        """Kills the monitor: it does not answer."""
        if self._process is not None:
            self._process.kill()

    def reaped(self, pids: set[int]) -> None:
        """Takes note that the process was reaped by somebody else."""
        if self._process is not None and self._process.pid in pids:
            self._process.returncode = -9


def _identity(pid: int) -> tuple[int, int]:
    """Returns a child's number and when it began, so that a later one of the same number is another one."""
    now = proctree.stat(pid)
    return (pid, now.start) if now is not None else (0, 0)
