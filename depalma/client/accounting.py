"""What `Client` can tell of what jobs used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TypeVar

from depalma.accounting import JobUse
from depalma.client import accounting_verbs
from depalma.client.verbs import Verb

T = TypeVar("T")


class Accounting(ABC):
    """The part of a client that is about accounting."""

    @abstractmethod
    def _run(self, verb: Verb[T]) -> T: ...

    def accounting(
        self,
        *,
        since: float | None = None,
        until: float | None = None,
        user: str | None = None,
        tag: str | None = None,
        name: str | None = None,
        unfinished: bool = False,
    ) -> Iterator[JobUse]:
        """Yields what each job used that ended from `since` on and before `until` (seconds since the epoch), newest
        first; with `unfinished` also those that have not ended. `depalma.accounting.grouped` sums them up.

        They come page by page, from live and archived jobs, whoever leads meanwhile. Errors: Rejected.
        """
        params: dict[str, object] = {
            "since": since, "until": until, "user": user, "tag": tag, "name": name, "unfinished": unfinished or None,
        }  # fmt: skip
        while True:
            page = self._run(accounting_verbs.page(params))
            yield from page.rows
            if page.next is None:
                return
            params["before"] = page.next
