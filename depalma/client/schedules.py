"""Jobs at times of day: the verbs."""

from __future__ import annotations

from typing import Any

import msgspec

from depalma.client.specs import Work, login_name
from depalma.client.transport import MSGPACK, Request, segment
from depalma.client.verbs import Verb, get, send, stored
from depalma.model import ScheduleView


def add(name: str, cron: str, work: Work, zone: str, catch_up: str, overlap: str) -> Verb[ScheduleView]:
    """Adds a schedule."""
    body = {
        "name": name, "cron": cron, "job": (yield from stored(work)), "zone": zone, "catch_up": catch_up,
        "overlap": overlap, "by": login_name(),
    }  # fmt: skip
    answer = yield Request("POST", "/v1/schedules", msgspec.msgpack.encode(body), MSGPACK)
    return msgspec.json.decode(answer.body, type=ScheduleView)


def listing() -> Verb[list[ScheduleView]]:
    """Returns the schedules, by name."""
    answer: Any = yield from get("/v1/schedules", {})
    return msgspec.convert(answer["schedules"], type=list[ScheduleView])


def remove(name: str) -> Verb[None]:
    """Removes a schedule."""
    yield from send("DELETE", f"/v1/schedules/{segment(name)}", None)
