"""Which incarnations an agent's folder has had, and of which it is certain that nothing lives any more.

Whoever holds the lock of the folder, and has killed what was left there, knows that of all that were recorded in it on
this machine. A leader believes nobody else that a host's earlier agent is over: it may be another machine that has the
same name, and goes on.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

NAME = "incarnations"
#: Many that come and go and never reach a leader push out the one that counts there; then its lease is waited for.
_KEPT = 32


def boot_id() -> str:
    """Returns what is another one after each start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def machine_id() -> str:
    """Returns what this machine is known by for as long as it is installed; empty if it has no such thing."""
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError:
        return ""


class Lives:
    """Of one folder, whose lock is held and in which nothing of an earlier agent is left. `over`: those that are."""

    def __init__(self, root: Path, machine: str, boot: str) -> None:
        self._path = root / NAME
        self._place = (machine or "-", boot)
        self._known = [line for line in self._read() if self._is_over(*line)]

    @property
    def over(self) -> tuple[str, ...]:
        """Incarnations of which nothing lives, oldest first."""
        return tuple(incarnation for incarnation, _, _ in self._known[:-1])

    def begin(self, incarnation: str) -> str:
        """Notes that all earlier ones are over and this one begins, before a leader hears of it. Returns it."""
        self._known = [*self._known, (incarnation, *self._place)][-_KEPT:]
        temporary = self._path.with_name(f".{NAME}.new")
        try:
            temporary.write_text("".join(" ".join(line) + "\n" for line in self._known))
            os.replace(temporary, self._path)
        except OSError as error:
            log.warning("the next agent of this host will have to wait for a lease: %s", error)
        return incarnation

    def _read(self) -> list[tuple[str, str, str]]:
        try:
            lines = self._path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        return [(words[0], words[1], words[2]) for line in lines if len(words := line.split()) == 3]

    def _is_over(self, incarnation: str, machine: str, boot: str) -> bool:
        """The lock proves it for this boot, and for earlier ones that this machine has been started since."""
        return boot == self._place[1] or (machine == self._place[0] != "-")
