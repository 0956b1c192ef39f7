"""Every kind of command and of event, each by a short way of its own.

The random tests are only as good as what they reach; what must be reached at all is reached here, whatever chance does
(and every legal move of a task in test_state_transitions.py).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any, get_args

import msgspec
import pytest

from depalma.state import commands as c
from depalma.state.kinds import KINDS
from tests.unit.state.conftest import Bench
from tests.unit.state.kind_examples import ACCEPTED, AGAIN, EVENTS, NEVER_REFUSED, REFUSED, set_stage
from tests.unit.state.wild import wild

EVERY: list[Any] = sorted(get_args(c.AnyCommand), key=lambda kind: kind.__struct_config__.tag)
NAMES = {kind: kind.__struct_config__.tag for kind in EVERY}


@pytest.fixture(scope="module")
def first_stage() -> Any:
    bench = Bench()
    set_stage(bench)
    bench.tick()
    return bench


def another(first: Any) -> Any:
    """Returns a bench in the same state."""
    bench, pieces = Bench(), list(first.machine.snapshot())
    bench.machine.restore(pieces)
    bench.twin.restore(pieces)
    bench.now, bench.fences, bench.outcomes = first.now, dict(first.fences), dict(first.outcomes)
    return bench


@pytest.fixture
def stage(first_stage: Any) -> Any:
    """A bench of the test's own, with a bit of everything."""
    return another(first_stage)


def test_every_kind_of_command_has_an_example_that_is_accepted_and_one_that_is_refused() -> None:
    where = "add one for each in tests/unit/state/kind_examples.py"
    assert sorted(NAMES[kind] for kind in set(EVERY) - set(ACCEPTED)) == [], f"no example in ACCEPTED: {where}"
    missing = set(EVERY) - set(REFUSED) - NEVER_REFUSED
    assert sorted(NAMES[kind] for kind in missing) == [], f"no example in REFUSED: {where}"
    assert not NEVER_REFUSED & set(REFUSED)


def test_the_fuzzer_makes_every_kind_of_command(stage: Any, make_fuzzer: Any) -> None:
    """Or the random tests leave it out. By its makers, not by the examples, which know the stage only."""
    fuzzer = make_fuzzer(stage, random.Random(1))
    made = Counter(type(fuzzer.make()) for _ in range(6000))
    assert sorted(NAMES[kind] for kind in set(EVERY) - set(made)) == [], (
        "no maker among those of Fuzzer.make in tests/unit/state/conftest.py: add a method that makes it, mostly "
        "plausible for the state as it is and sometimes nonsense, there or in a *_makers.py beside it"
    )


@pytest.mark.parametrize("kind", EVERY, ids=NAMES.get)
def test_an_accepted_command_is_accepted_once(stage: Any, kind: Any) -> None:
    """The bench looks at all the rest; here: what it makes, and that its request id answers a second one."""
    command = ACCEPTED[kind](stage)

    outcome = stage.do(command)

    assert isinstance(outcome, c.Applied), outcome
    if getattr(command, "request", ""):
        assert command.request == AGAIN
        stage.tick(50)
        count = len(stage.events())
        again = stage.do(msgspec.structs.replace(command, at=stage.now))
        assert isinstance(again, c.Applied), again
        assert again.value == outcome.value
        assert len(stage.events()) == count


@pytest.mark.parametrize("kind", sorted(REFUSED, key=NAMES.__getitem__), ids=NAMES.get)
def test_a_refused_command_says_why_and_may_come_again(stage: Any, kind: Any) -> None:
    """A refusal keeps nothing, not even the request id: what was wrong may have been put right."""
    refusal = stage.refused(REFUSED[kind](stage))

    assert refusal.message
    assert isinstance(stage.do(ACCEPTED[kind](stage)), c.Applied)


@pytest.mark.parametrize("kind", EVERY, ids=NAMES.get)
def test_a_time_that_is_none_is_refused(stage: Any, kind: Any) -> None:
    for at in (math.nan, math.inf, -math.inf, -1.0, 1e12):
        assert stage.refused(msgspec.structs.replace(ACCEPTED[kind](stage), at=at)).message.startswith("at: ")


@pytest.mark.parametrize("kind", EVERY, ids=NAMES.get)
def test_wild_values_in_any_field(stage: Any, kind: Any) -> None:
    """Whatever a field holds: no exception, replicas agree, and a refusal changes nothing."""
    rng = random.Random(NAMES[kind])
    for _ in range(25):
        stage.do(wild((ACCEPTED if rng.random() < 0.7 else {**ACCEPTED, **REFUSED})[kind](stage), rng))


# ---------------------------------------------------------------- events


@pytest.mark.parametrize("event", [kind for kind in KINDS if kind != "cluster.restored"])
def test_every_kind_of_event_happens(stage: Any, event: str, of_accepted: set[str]) -> None:
    """The bench refuses events that are no kind of the list; here: none of the list is one that never happens."""
    if event not in EVENTS:
        where = "add a way to it to EVENTS in tests/unit/state/kind_examples.py"
        assert event in of_accepted, f"no example makes {event}: {where}"
        return
    for make in EVENTS[event]:
        before = stage.events()[-1].index
        stage.tick()
        stage.ok(make(stage))
    assert event in stage.kinds(before)


@pytest.fixture(scope="module")
def of_accepted(first_stage: Any) -> set[str]:
    """The kinds of events that the accepted examples make."""
    found: set[str] = set()
    for make in ACCEPTED.values():
        bench = another(first_stage)
        before = bench.events()[-1].index
        bench.ok(make(bench))
        found |= set(bench.kinds(before))
    return found


def test_kinds_of_events_are_sorted_and_the_restored_cluster_says_so(bench: Any) -> None:
    bench.machine.begin_anew("restored")
    bench.twin.begin_anew("restored")

    assert bench.kinds() == ["cluster.restored"]
    assert sorted(set(KINDS)) == list(KINDS)
