"""What is kept of the commands that the monitor was given. Pure."""

from __future__ import annotations

from typing import NamedTuple

from depalma.agent.events import Attempt
from depalma.model import AttemptRef


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
