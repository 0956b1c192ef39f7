"""What `Client` can do about whose turn it is: limits, shares, ageing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TypeVar, Unpack

from depalma.client import order_verbs, specs
from depalma.client.specs import JobOptions
from depalma.client.verbs import Verb
from depalma.orderviews import OrderView, TrialView

T = TypeVar("T")


class Ordering(ABC):
    """The part of a client that is about the order."""

    @abstractmethod
    def _run(self, verb: Verb[T]) -> T: ...

    def order(self) -> OrderView:
        """Returns the limits, the users with their shares, and ageing."""
        return self._run(order_verbs.order())

    def set_order(self, *, half_life_s: float | None = None, age_s: float | None = None) -> None:
        """Changes how fast usage is forgotten, and after how long a priority that got nothing gets a task (0: never).

        What is None stays. Errors: Rejected.
        """
        self._run(order_verbs.set_order(half_life_s, age_s))

    def set_limit(self, kind: str, name: str, limit: int | None) -> None:
        """Lets at most `limit` tasks of a `tag`, a `user` (`*`: each) or a `group` be on hosts at once; None: no limit.

        Errors: Rejected.
        """
        self._run(order_verbs.set_limit(kind, name, limit))

    def set_quota(self, kind: str, name: str, most: Mapping[str, float] | None) -> None:
        """Lets the tasks of a `tag`, a `user` (`*`: each) or a `group` have at most so much at once of `slots`, `gpus`,
        `memory_bytes` and resources, in the whole cluster; None: no quota. Errors: Rejected.
        """
        self._run(order_verbs.set_quota(kind, name, most))

    def set_share(self, user: str, weight: float) -> None:
        """Gives a user another weight: within a priority, users get slots in proportion to theirs. Errors: Rejected."""
        self._run(order_verbs.set_share(user, weight))

    def dry_run(
        self, argv: Sequence[str], *, array: int | str | None = None, **options: Unpack[JobOptions]
    ) -> TrialView:
        """Returns where and when such a command would run; nothing is submitted. Errors: Rejected."""
        return self._run(order_verbs.trial(specs.command_work(argv, indices=array, options=options).spec))
