"""What jobs used. Verbs as in verbs.py."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from depalma.accounting import JobUse
from depalma.client.transport import Request, with_query
from depalma.client.verbs import Verb


class UsePage(Struct, frozen=True):
    """Some rows, newest job first, and where to go on."""

    rows: list[JobUse]
    next: int | None = None
    notes: list[str] = []
    master: str = ""


def page(params: Mapping[str, object]) -> Verb[UsePage]:
    """Returns one page; `before` is the `next` of the one before."""
    answer = yield Request("GET", with_query("/v1/accounting", params))
    return msgspec.json.decode(answer.body, type=UsePage)
