"""The agent's side of the warden: starts it, tells it how long tasks may live, and starts it again if it dies."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import depalma
from depalma.agent import warden

log = logging.getLogger(__name__)

_END_S = 2.0


class WardenLink:
    """One warden, of an agent with the folder `root`, whose lock is held."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.monitor = (0, 0)  #: its process, and when that began
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Returns its process id, 0 if there is none."""
        return self._process.pid if self._process is not None else 0

    def hold(self, until_s: float) -> None:
        """Says until when tasks may live (CLOCK_BOOTTIME), 0 if there are none. To be called before any begins."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        try:
            self._say(until_s)
        except BrokenPipeError:  # it died this moment
            self._start()
            self._say(until_s)

    def dismiss(self) -> None:
        """Ends it: nothing is left that it could be needed for."""
        if self._process is None:
            return
        try:
            self._say(math.nan)
            self._process.wait(_END_S)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()  # it is dead, or stands still
            self._process.wait()
        self._let_go()

    def _start(self) -> None:
        """Errors: OSError."""
        if self._process is not None:
            log.warning("the warden is dead; a new one is started")
            self._let_go()
        # No word of the package or the folder in what `ps` shows, and not this interpreter's name if it has another.
        python = getattr(sys, "_base_executable", "") or sys.executable
        source = os.open(warden.__file__, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._process = subprocess.Popen(
                [python, "-I", "-S", f"/dev/fd/{source}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(source,),
                start_new_session=True,
                env={},
                cwd="/",
                bufsize=0,
            )
        finally:
            os.close(source)
        where = {"package": str(Path(depalma.__file__).parent.parent), "root": str(self._root), "agent": os.getpid()}
        stdin = self._process.stdin
        assert stdin is not None
        os.set_blocking(stdin.fileno(), False)
        os.write(stdin.fileno(), json.dumps(where).encode() + b"\n")

    def _say(self, until_s: float) -> None:
        """Errors: BrokenPipeError."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            os.write(self._process.stdin.fileno(), warden.WORD.pack(until_s, *self.monitor))
        except BlockingIOError:
            log.warning("the warden does not listen")  # it stands still, for hours; the other two hold the lease

    def _let_go(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.poll()
        self._process = None
