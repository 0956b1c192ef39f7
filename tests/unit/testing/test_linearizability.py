"""The checker of histories is judged itself: by brute force on small ones, by construction on large ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from copy import copy
from pathlib import Path
from random import Random

import pytest

from depalma.testing import linearizability
from depalma.testing.history import History, Operation
from depalma.testing.job_model import ABSENT, REFUSED, JobModel, JobState, perform, with_finishes
from depalma.testing.linearizability import SearchTooLong, check

MODEL = JobModel()
UNKNOWN = (REFUSED, "unknown_job")


def simulate(random: Random, *, keys: int, each: int, clients: int, lost: float = 0.15) -> list[Operation]:
    """A history of a service that is linearizable: every operation takes effect at one instant while it lasts."""
    history: list[Operation] = []
    for k in range(keys):
        key = f"job-{k}"
        planned = [Operation("c0", "submit", key, (1, random.random() < 0.3), 0.0, 1.0)]
        for i in range(each - 1):
            kind = random.choice(["read", "read", "add", "add", "close" if i > each // 2 else "read", "cancel"])
            kind = "read" if kind == "cancel" and random.random() < 0.7 else kind
            began = random.uniform(0.2, each / clients)
            planned.append(
                Operation(
                    f"c{i % clients}", kind, key, 2 if kind == "add" else None, began, began + random.expovariate(1)
                )
            )
        history += play(random, planned, lost)
    return history


def play(random: Random, planned: list[Operation], lost: float) -> list[Operation]:
    """Gives each planned operation the answer of one order that fits, and forgets some answers (or effects)."""
    work = planned[0].input[1]
    instants = [(random.uniform(one.invoked_s, one.returned_s), i) for i, one in enumerate(planned)]
    if work and random.random() < 0.7:
        instants.append((random.uniform(1.0, 5.0), -1))
    state = ABSENT
    for _, i in sorted(instants):
        one = Operation("agents", "finish", "", _ending(state)) if i < 0 else planned[i]
        forgotten = i > 0 and random.random() < lost
        if forgotten:
            one.returned_s = math.inf
            if random.random() < 0.5:
                continue  # it never reached the service
        state, one.output = perform(state, one)
    return planned


def _ending(state: JobState) -> str:
    return "cancelled" if state.state == "cancelling" else "succeeded"


def verdict_of(history: Sequence[Operation]) -> bool:
    return check(with_finishes(history), MODEL).linearizable


def brute_force(history: Sequence[Operation]) -> bool:
    """Tries every subset of the open operations and every order."""
    known = [one for one in history if one.known]
    unknown = [one for one in history if not one.known]
    subsets = ([one for i, one in enumerate(unknown) if chosen >> i & 1] for chosen in range(1 << len(unknown)))
    return any(_has_order(MODEL.initial(""), known + subset) for subset in subsets)


def _has_order(state: Hashable, rest: list[Operation]) -> bool:
    if not rest:
        return True
    for one in rest:
        if all(one.invoked_s <= other.returned_s for other in rest):
            after = MODEL.step(state, one)
            if after is not None and _has_order(after, [other for other in rest if other is not one]):
                return True
    return False


# ---------------------------------------------------------------- corruptions that no order can explain


def _known(history: list[Operation], *kinds: str) -> list[Operation]:
    return [one for one in history if one.known and one.kind in kinds]


def read_of_the_future(random: Random, history: list[Operation]) -> None:
    """A read shows more tasks than were ever asked for."""
    one = random.choice([r for r in _known(history, "read") if r.output != UNKNOWN])
    one.output = (1000, *one.output[1:])


def lost_submit(random: Random, history: list[Operation]) -> None:
    """After the submit was acknowledged, a read finds no job."""
    late = max(one.invoked_s for one in history) + 10
    history.append(Operation("late", "read", random.choice(history).key, None, late, late + 1, UNKNOWN))


def lost_add(random: Random, history: list[Operation]) -> None:
    """After all is over, the job has fewer tasks than were acknowledged."""
    adds = [one for one in _known(history, "add") if isinstance(one.output, int)]
    one = random.choice(adds)
    late = max(other.invoked_s for other in history) + 10
    for is_open in (True, False):
        history.append(Operation("late", "read", one.key, None, late, late + 1, (one.output, is_open, "")))
        late += 2


def two_adds_of_one_number(random: Random, history: list[Operation]) -> None:
    """A fork: two adds got the same index."""
    adds = [one for one in _known(history, "add") if isinstance(one.output, int)]
    one = random.choice(adds)
    twin = copy(one)
    twin.client, twin.invoked_s, twin.returned_s = "twin", one.returned_s + 0.01, one.returned_s + 0.02
    history.append(twin)


def cancelled_and_alive(random: Random, history: list[Operation]) -> None:
    """A job that was seen at its end is live again."""
    key = random.choice(history).key
    late = max(one.invoked_s for one in history) + 10
    history.append(Operation("late", "cancel", key, None, late, late + 1, False))
    history.append(Operation("late", "cancel", key, None, late + 2, late + 3, True))


def stale_read(random: Random, history: list[Operation]) -> None:
    """A read that began after an add had ended does not show it."""
    adds = [one for one in _known(history, "add") if isinstance(one.output, int)]
    one = random.choice(adds)
    began = one.returned_s + 0.001
    history.append(Operation("stale", "read", one.key, None, began, began + 0.01, (one.output, True, "")))


CORRUPTIONS: list[Callable[[Random, list[Operation]], None]] = [
    read_of_the_future,
    lost_submit,
    lost_add,
    two_adds_of_one_number,
    cancelled_and_alive,
    stale_read,
]


@pytest.mark.parametrize("seed", range(20))
def test_a_true_history_passes(seed: int) -> None:
    history = simulate(Random(seed), keys=30, each=14, clients=5)

    verdict = check(with_finishes(history), MODEL)

    assert verdict.violations == []
    assert verdict.keys == 30


@pytest.mark.parametrize("corrupt", CORRUPTIONS)
def test_every_corruption_is_caught(corrupt: Callable[[Random, list[Operation]], None]) -> None:
    for seed in range(80):
        random = Random(seed)
        history = simulate(random, keys=3, each=14, clients=4)
        if not [one for one in _known(history, "add") if isinstance(one.output, int)]:
            continue
        assert verdict_of(history)

        corrupt(random, history)

        assert not verdict_of(history), f"seed {seed}"


def test_it_agrees_with_brute_force() -> None:
    """Small histories with one answer changed at random: some of these are still explainable, most are not."""
    said: dict[bool, int] = {True: 0, False: 0}
    for seed in range(400):
        random = Random(seed)
        history = simulate(random, keys=1, each=6, clients=3)
        one = random.choice([one for one in history if one.known])
        one.output = random.choice([random.randrange(8), True, False, (random.randrange(8), random.random() < 0.5, "")])
        full = with_finishes(history)

        expected = brute_force(full)

        assert check(full, MODEL).linearizable == expected, f"seed {seed}: {[str(one) for one in full]}"
        said[expected] += 1
    assert min(said.values()) > 20, said


def test_a_violation_names_what_contradicts() -> None:
    history = [
        Operation("a", "submit", "j", (1, False), 0, 1, True),
        Operation("a", "add", "j", 2, 2, 3, 1),
        Operation("b", "read", "j", None, 4, 5, (1, True, "")),
    ]

    (violation,) = check(history, MODEL).violations

    assert violation.explained == tuple(history[:2])
    assert violation.stuck == (history[2],)
    assert "read j None -> (1, True, '')" in str(violation)


def test_an_open_operation_may_take_effect_late_or_never() -> None:
    def history(*reads: int) -> list[Operation]:
        open_add = Operation("a", "add", "j", 5, 2)
        late = [Operation("b", "read", "j", None, 10 + i, 10.5 + i, (n, True, "")) for i, n in enumerate(reads)]
        return [Operation("a", "submit", "j", (1, False), 0, 1, True), open_add, *late]

    assert verdict_of(history(1, 1, 6))
    assert verdict_of(history(1, 1, 1))
    assert verdict_of(history(6, 6, 6))
    assert not verdict_of(history(1, 6, 1))
    assert not verdict_of(history(11))


def test_what_nobody_answered_contradicts_nothing() -> None:
    assert verdict_of([Operation("a", "submit", "j", (1, True), 0), Operation("b", "add", "j", 1, 1)])
    assert verdict_of([])


def test_equal_open_operations_are_counted_each() -> None:
    opened = [Operation(f"c{i}", "add", "j", 1, 2 + i) for i in range(12)]
    submit = Operation("a", "submit", "j", (1, False), 0, 1, True)

    assert verdict_of([submit, *opened, Operation("b", "read", "j", None, 20, 21, (13, True, ""))])
    assert not verdict_of([submit, *opened, Operation("b", "read", "j", None, 20, 21, (14, True, ""))])


def test_one_busy_key_is_checked_too() -> None:
    history = simulate(Random(7), keys=1, each=200, clients=8, lost=0.02)

    assert verdict_of(history)


def test_a_search_without_end_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linearizability, "LIMIT", 10)

    with pytest.raises(SearchTooLong, match="job-0"):
        verdict_of(simulate(Random(1), keys=1, each=40, clients=20))


def test_a_history_survives_its_file(tmp_path: Path) -> None:
    history = History(operations=simulate(Random(3), keys=5, each=14, clients=4))

    history.save(tmp_path / "history.jsonl")
    again = History.load(tmp_path / "history.jsonl")

    assert [str(one) for one in again.operations] == [str(one) for one in history.operations]
    assert verdict_of(again.operations)


def test_the_recorder_orders_call_and_answer() -> None:
    times = iter([1.0, 2.0, 3.0])
    history = History(now=lambda: next(times))

    first = history.invoke("a", "read", "j")
    history.invoke("b", "read", "k")
    history.complete(first, None, master="m1", index=4)

    assert (first.invoked_s, first.returned_s, first.known) == (1.0, 3.0, True)
    assert [one.known for one in history.operations] == [True, False]
    assert list(history.by_key()) == ["j", "k"]
