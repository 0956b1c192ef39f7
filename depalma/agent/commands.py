"""What is kept of the commands that the monitor was given. Pure."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import NamedTuple

from depalma.agent.events import Attempt
from depalma.model import AttemptRef, JobSpec


class Line:
    """The commands that a slot was given, the first of them running."""

    def __init__(self, lane: int) -> None:
        self.lane = lane
        self.refs: dict[AttemptRef, None] = {}


class Command(NamedTuple):
    """One command that the monitor was given."""

    key: int  #: the monitor's name for it
    attempt: Attempt
    slot: int


def stdin_of(spec: JobSpec, blob_path: Callable[[str], str]) -> bytes | str:
    """Returns what the commands of a job read: the bytes themselves, or the file they are in; empty = nothing."""
    given = spec.stdin
    if given is None:
        return b""
    return blob_path(given.digest) if given.digest else given.inline


def signal_name(number: int) -> str:
    """Returns `SIGSEGV` for 11."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
