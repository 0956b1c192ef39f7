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
        self._missed = False  #: it could not be started, and that was said

    def hold(self, until_s: float) -> None:
        """Says until when tasks may live (CLOCK_BOOTTIME), 0 if there are none. To be called before any begins.

        Where it cannot be started, agent and monitor hold the lease alone until it can.
        """
        problem: OSError | None = None
        for _ in range(2):
            try:
                if self._process is None or self._process.poll() is not None:
                    self._start()
                self._say(until_s)
                self._missed = False
                return
            except OSError as error:
                problem = error
                if self._process is None:
                    break
                # It died this moment; or it has stood still for hours, and when it goes on it would act by an old word.
                self._end()
        self._miss(problem)

    def _miss(self, error: OSError | None) -> None:
        if not self._missed:
            log.error("there is no warden: %s", error)
        self._missed = True

    def dismiss(self) -> None:
        """Ends it: nothing is left that it could be needed for."""
        if self._process is None:
            return
        try:
            self._say(math.nan)
            self._process.wait(_END_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            log.debug("the warden is dead, or stands still: %s", error)
        self._end()

    def _start(self) -> None:
        """Errors: OSError."""
        if self._process is not None:
            log.warning("the warden is dead; a new one is started")
            self._end()
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
        """Errors: BrokenPipeError, BlockingIOError."""
        assert self._process is not None
        assert self._process.stdin is not None
        os.write(self._process.stdin.fileno(), warden.WORD.pack(until_s, *self.monitor))

    def _end(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._process = None
