"""Processes beside the tasks: host-wide commands and installations. The monitor owns them like everything else here."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from depalma.agent.link import MonitorLink
from depalma.agent.proctree import OWNER
from depalma.errors import DepalmaError

#: The monitor's number for their environment; the runner's are -1 and above.
_ENVIRONMENT = -2
_SECRET = frozenset(["DEPALMA_TOKEN", "DEPALMA_TOKEN_FILE"])
_GRACE_S = 5.0
_TAIL_BYTES = 4096


class Interrupted(DepalmaError):
    """It was ended with the agent's lease, or together with the monitor; it is to be done again."""


class Done(Struct, frozen=True):
    """How a process ended."""

    exit_code: int  #: 128 + n for signal n, 124 when its time was up
    reason: str  #: empty when it is 0
    output: str  #: its last lines


class Aside:
    """Runs programs through the monitor. Its keys are negative, those of the runner are not."""

    def __init__(self, root: Path, host: str, link: MonitorLink) -> None:
        self._root = root
        self._host = host
        self._link = link
        self._next_key = -1
        self._waiting: dict[int, asyncio.Future[tuple[int, str]]] = {}

    async def run(
        self, argv: list[str], log: Path, *, cwd: Path, variables: Mapping[str, str], timeout_s: float = 0.0
    ) -> Done:
        """Runs a program to its end, with all that it prints in `log`. Errors: Interrupted."""
        log.unlink(missing_ok=True)
        key = self._next_key
        self._next_key -= 1
        self._tell_environment()
        files = (f">{log}", f">{log}")
        extra = {os.fsencode(name): os.fsencode(value) for name, value in variables.items()}
        words = [os.fsencode(word) for word in argv]
        ended: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self._waiting[key] = ended
        self._link.send(("spawn", key, words, _ENVIRONMENT, extra, str(cwd), files, -1, False, (), ("", "")))
        self._link.flush()
        late = False
        try:
            await asyncio.wait([ended], timeout=timeout_s or None)
            if not ended.done():
                late = True
                self._kill(key)
            status, error = await ended
        except BaseException:
            self._kill(key)
            raise
        finally:
            self._waiting.pop(key, None)
        if "lease is over" in error:
            raise Interrupted(error)
        code = os.waitstatus_to_exitcode(status)
        code = 128 - code if code < 0 else code
        if late:
            return Done(124, f"timed out after {timeout_s:g} s", tail(log))
        return Done(code, error or (f"exit code {code}" if code else ""), tail(log))

    def _kill(self, key: int) -> None:
        self._link.send(("kill", key, _GRACE_S))
        self._link.flush()

    def _tell_environment(self) -> None:
        """Each time: a monitor that was started anew knows nothing."""
        inherited = {name: value for name, value in os.environ.items() if name not in _SECRET}
        whole = {**inherited, OWNER: str(self._root), "DEPALMA_HOST": self._host}
        encoded = {os.fsencode(name): os.fsencode(value) for name, value in whole.items()}
        self._link.send(("environment", _ENVIRONMENT, encoded))

    def exits(self, ended: list[tuple[int, int, float, float, str, str, bool]]) -> None:
        """Takes the ends of processes; others than ours are passed over."""
        for key, status, _, _, error, _, _ in ended:
            waiting = self._waiting.get(key)
            if waiting is not None and not waiting.done():
                waiting.set_result((status, error))

    def forget_all(self) -> None:
        """Everything was killed, or is about to be."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(Interrupted("ended with everything on this host"))


def tail(log: Path) -> str:
    """Returns the last lines of a file, at most 4 KiB."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return text if size <= _TAIL_BYTES else text.partition("\n")[2]
