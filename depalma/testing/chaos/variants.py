"""Masters that differ from the product's: one whose log is fed poison, and one of a release with one more command."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from random import SystemRandom
from typing import Any

import msgspec

from depalma.consensus.replica import Replica
from depalma.state.commands import Applied, Rejected
from depalma.state.machine import Machine
from depalma.testing.chaos.poison import poison

#: a file: the leader puts a poisonous command before one of `ONE_IN`, and writes a line there for each
POISON = "DEPALMA_CHAOS_POISON"
ONE_IN = 20
#: a file: this master knows LATER, and proposes it once when the file is there
NEWER = "DEPALMA_CHAOS_NEWER"
#: a command of a kind that this release does not know
LATER = msgspec.msgpack.encode(["chaos.later", 1])


def install() -> None:
    """Makes the master of this process what the environment says."""
    if POISON in os.environ:
        before_each_proposal(Poisoner(Path(os.environ[POISON])))
    if NEWER in os.environ:
        know_later()
        before_each_proposal(LaterOnce(Path(os.environ[NEWER])))


def before_each_proposal(extra: Callable[[bytes], Iterable[bytes]]) -> None:
    """Replicates what `extra` gives before the command it is given. Its answers are awaited, and must be refusals
    or this master's own."""
    propose = Replica.propose

    async def also(self: Replica, command: bytes, **options: Any) -> object:
        for data in extra(command):
            outcome = await propose(self, data, **options)
            if not isinstance(outcome, Rejected) and data != LATER:
                raise AssertionError(f"poison was accepted: {data!r}: {outcome!r}")
        return await propose(self, command, **options)

    Replica.propose = also  # type: ignore[method-assign]


class Poisoner:
    """Bytes that no master would propose, in the log nevertheless."""

    def __init__(self, told: Path) -> None:
        self._told = told
        self._random = SystemRandom()

    def __call__(self, command: bytes) -> Iterable[bytes]:
        if self._random.randrange(ONE_IN):
            return
        yield poison(command, self._random)
        with self._told.open("a") as file:
            file.write("refused\n")


class LaterOnce:
    """The new command of a newer release."""

    def __init__(self, wish: Path) -> None:
        self._wish = wish

    def __call__(self, command: bytes) -> Iterable[bytes]:
        if self._wish.exists():
            self._wish.unlink()
            yield LATER


def know_later() -> None:
    """Makes LATER a command of this release."""
    known = Machine._apply

    def apply(self: Machine, data: bytes, index: int) -> Applied | Rejected:
        if data != LATER:
            return known(self, data, index)
        self.state.version += 1
        return Applied("later", self.state.version)

    Machine._apply = apply  # type: ignore[method-assign]
