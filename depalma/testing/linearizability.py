"""Is there an order of these operations that explains every answer? (Wing and Gong's search with Lowe's memory.)

A history is linearizable if each operation can be given one instant between its call and its answer such that a
sequential machine, doing them in that order, gives the same answers. Operations on different keys are independent, so
each key is searched alone; that keeps the search small. An operation without an answer may take effect at any instant
after its call, or never.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from depalma.testing.history import Operation, by_key

#: configurations looked at for one key before the search gives up
LIMIT = 2_000_000


class Model(Protocol):
    """A sequential machine for one key. States are hashable values."""

    def initial(self, key: str) -> Hashable:
        """The state before everything."""
        ...

    def step(self, state: Hashable, operation: Operation) -> Hashable | None:
        """The state after the operation, None if it could not have given that answer in this state.

        For an operation that is not `known`, the state after it whatever it answered.
        """
        ...


class SearchTooLong(Exception):
    """No verdict: the history of one key has too many orders. Record fewer operations a key."""


@dataclass(frozen=True, slots=True)
class Violation:
    """No order explains this key."""

    key: str
    #: the longest explanation found: operations in an order that works
    explained: tuple[Operation, ...]
    #: what could come next and contradicts that
    stuck: tuple[Operation, ...]

    def __str__(self) -> str:
        lines = [f"{self.key}: no order explains its history; longest explanation, then what contradicts it:"]
        lines += [f"    {operation}" for operation in self.explained]
        lines += [f"  ✗ {operation}" for operation in self.stuck]
        return "\n".join(lines)


@dataclass(slots=True)
class Verdict:
    """What the check of a whole history found."""

    keys: int = 0
    operations: int = 0
    configurations: int = 0
    violations: list[Violation] = field(default_factory=list)

    @property
    def linearizable(self) -> bool:
        """Whether every key has an explanation."""
        return not self.violations


def check(operations: Iterable[Operation], model: Model) -> Verdict:
    """Search every key. Raises SearchTooLong."""
    verdict = Verdict()
    for key, history in by_key(operations).items():
        search = _Search(key, history, model)
        verdict.keys += 1
        verdict.operations += len(history)
        violation = search.run()
        verdict.configurations += len(search.seen)
        if violation is not None:
            verdict.violations.append(violation)
    return verdict


class _Search:
    """Depth first over (set of operations done, state); a configuration seen twice is not entered again."""

    def __init__(self, key: str, history: Sequence[Operation], model: Model) -> None:
        self._key = key
        self._history = history  # by time of the call
        self._model = model
        self._must = sum(1 << i for i, operation in enumerate(history) if operation.known)
        self.seen: set[tuple[int, Hashable]] = set()
        self._best: tuple[int, ...] = ()

    def run(self) -> Violation | None:
        """None if an order was found."""
        if not self._must:
            return None  # nothing was answered
        start = self._model.initial(self._key)
        path: list[int] = []
        stack = [self._moves(0, start)]
        while True:
            move = next(stack[-1], None)
            if move is None:
                stack.pop()
                if not stack:
                    return self._violation()
                path.pop()
                continue
            i, done, state = move
            path.append(i)
            if done & self._must == self._must:
                return None
            if len(path) > len(self._best):
                self._best = tuple(path)
            stack.append(self._moves(done, state))

    def _moves(self, done: int, state: Hashable) -> Iterator[tuple[int, int, Hashable]]:
        """Operations that may be next, each with the configuration it leads to."""
        for i in self._candidates(done):
            operation = self._history[i]
            after = self._model.step(state, operation)
            if after is None or (after == state and not operation.known):
                continue
            config = (done | 1 << i, after)
            if config in self.seen:
                continue
            if len(self.seen) >= LIMIT:
                raise SearchTooLong(f"{self._key}: {len(self._history)} operations")
            self.seen.add(config)
            yield i, *config

    def _candidates(self, done: int) -> list[int]:
        """Operations not done that began before every one not done had ended."""
        first_end = math.inf
        found: list[int] = []
        open_ones: set[tuple[str, object]] = set()
        for i, operation in enumerate(self._history):
            if done >> i & 1:
                continue
            if operation.invoked_s > first_end:
                break
            if operation.known:
                first_end = min(first_end, operation.returned_s)
            else:
                # Equal ones without an answer are interchangeable: the oldest can do whatever a later one can.
                kind = (operation.kind, operation.input)
                if kind in open_ones:
                    continue
                open_ones.add(kind)
            found.append(i)
        return found

    def _violation(self) -> Violation:
        done = sum(1 << i for i in self._best)
        stuck = [self._history[i] for i in self._candidates(done) if self._history[i].known]
        return Violation(self._key, tuple(self._history[i] for i in self._best), tuple(stuck))
