"""F21's parts: bytes that must be refused are refused, and a machine that breaks a promise is found."""

from __future__ import annotations

from random import Random

import pytest

from depalma.model import JobSpec
from depalma.state import commands as c
from depalma.state.machine import Machine
from depalma.testing.chaos.poison import fuzz, poison

REAL = [
    c.encode(c.SubmitJob("r1", JobSpec(kind="command", argv=("/bin/true",), hold=True, open=True), 1.0)),
    c.encode(c.CloseJob("r2", 1, 1.0)),
    c.encode(c.CancelJobs("r3", (1, 2), 1.0)),
    c.encode(c.HostLost("h1", "i1", "silent", 1.0)),
]


def test_poison_is_refused_by_every_machine() -> None:
    random = Random(1)
    for _ in range(200):
        outcome = Machine().apply(poison(random.choice(REAL), random), 1)
        assert isinstance(outcome, c.Rejected)


def test_fuzzing_reaches_everything_and_finds_nothing_wrong() -> None:
    found = fuzz(REAL, 2000, Random(2))

    assert not found.broken
    assert min(found.applied, found.refused, found.unknown) > 20


class Raising(Machine):
    """Raises for bytes that are no command."""

    def apply(self, data: bytes, index: int) -> c.Applied | c.Rejected:
        if not data:
            raise ValueError("empty")
        return super().apply(data, index)


class Guessing(Machine):
    """Answers by what only this process knows."""

    def apply(self, data: bytes, index: int) -> c.Applied | c.Rejected:
        outcome = super().apply(data, index)
        return c.Rejected("bad_command", str(id(self))) if isinstance(outcome, c.Rejected) else outcome


@pytest.mark.parametrize("kind", [Raising, Guessing])
def test_a_machine_that_raises_or_differs_is_found(kind: type[Machine]) -> None:
    assert fuzz(REAL, 2000, Random(3), kind).broken
