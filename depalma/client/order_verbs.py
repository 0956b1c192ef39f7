"""Whose turn it is, and how many at once: limits, shares, ageing. Verbs as in verbs.py."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from depalma.client.transport import Request, segment
from depalma.client.verbs import Verb, send
from depalma.model import JobSpec
from depalma.orderviews import OrderView, TrialView


def order() -> Verb[OrderView]:
    """Returns limits, shares and ageing."""
    answer = yield Request("GET", "/v1/order")
    return msgspec.json.decode(answer.body, type=OrderView)


def set_order(half_life_s: float | None, age_s: float | None) -> Verb[None]:
    """Changes how fast usage is forgotten, and ageing; what is None stays."""
    values = {"half_life_s": half_life_s, "age_s": age_s}
    yield from send("PATCH", "/v1/order", {name: value for name, value in values.items() if value is not None})


def set_limit(kind: str, name: str, limit: int | None) -> Verb[None]:
    """Sets a limit, or removes it."""
    path = f"/v1/limits/{segment(kind)}/{segment(name)}"
    if limit is None:
        yield from send("DELETE", path, None)
    else:
        yield from send("PUT", path, {"limit": limit})


def set_quota(kind: str, name: str, most: Mapping[str, float] | None) -> Verb[None]:
    """Sets a quota, all of it, or removes it."""
    path = f"/v1/quotas/{segment(kind)}/{segment(name)}"
    if most is None:
        yield from send("DELETE", path, None)
    else:
        yield from send("PUT", path, {"most": dict(most)})


def set_share(user: str, weight: float) -> Verb[None]:
    """Gives a user another weight."""
    yield from send("PUT", f"/v1/shares/{segment(user)}", {"weight": weight})


def trial(spec: JobSpec) -> Verb[TrialView]:
    """Returns what would become of a job; nothing is submitted."""
    answer = yield from send("POST", "/v1/trials", msgspec.to_builtins(spec))
    return msgspec.convert(answer, TrialView)
