"""Webhooks: who is told what happens. Verbs as in verbs.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import msgspec
from msgspec import Struct

from depalma.client.specs import login_name, texts
from depalma.client.transport import Request, segment, with_query
from depalma.client.verbs import Verb, send
from depalma.model import WebhookView


class WebhookOptions(TypedDict, total=False):
    """What can be said of a webhook; what is not given stays as it is, or is the default of a new one."""

    kinds: Sequence[str]  #: of events: `job.finished` (the default), `task.*`, `*`
    jobs: Sequence[int]  #: only events of these jobs; empty = of any
    tags: Sequence[str]  #: only events of jobs with one of these
    users: Sequence[str]  #: only events of jobs of these
    keep: int  #: so many of the latest ids are kept, delivered or not


class WebhookSaved(Struct, frozen=True):
    """A webhook as it is now, and its secret if that is a new one: it is not shown again."""

    webhook: WebhookView
    secret: str = ""


def webhooks() -> Verb[list[WebhookView]]:
    """Returns the webhooks."""

    class _Page(Struct):
        webhooks: list[WebhookView]

    answer = yield Request("GET", "/v1/webhooks")
    return msgspec.json.decode(answer.body, type=_Page).webhooks


def webhook(name: str) -> Verb[WebhookView]:
    """Returns one webhook."""
    answer = yield Request("GET", f"/v1/webhooks/{segment(name)}")
    return msgspec.json.decode(answer.body, type=WebhookView)


def add_webhook(name: str, url: str, options: WebhookOptions) -> Verb[WebhookSaved]:
    """Makes a webhook."""
    body = {"name": name, "url": url, "by": login_name(), **_plain(options)}
    return msgspec.convert((yield from send("POST", "/v1/webhooks", body)), WebhookSaved)


def set_webhook(name: str, url: str | None, new_secret: bool, options: WebhookOptions) -> Verb[WebhookSaved]:
    """Changes what is given of a webhook."""
    body = {"url": url, "new_secret": new_secret, "by": login_name(), **_plain(options)}
    answer = yield from send("PATCH", f"/v1/webhooks/{segment(name)}", body)
    return msgspec.convert(answer, WebhookSaved)


def remove_webhook(name: str) -> Verb[None]:
    """Ends a webhook."""
    yield from send("DELETE", with_query(f"/v1/webhooks/{segment(name)}", {"by": login_name()}), None)


def replay_webhook(name: str, from_id: int, skip: bool) -> Verb[WebhookView]:
    """Delivers from an id on."""
    body = {"from": from_id, "skip": skip, "by": login_name()}
    return msgspec.convert((yield from send("POST", f"/v1/webhooks/{segment(name)}/replay", body)), WebhookView)


def try_webhook(name: str) -> Verb[int]:
    """Sends a test event; returns its id."""
    path = with_query(f"/v1/webhooks/{segment(name)}/test", {"by": login_name()})
    return int((yield from send("POST", path, None))["id"])


def _plain(options: WebhookOptions) -> dict[str, Any]:
    plain: dict[str, Any] = dict(options)
    for key in ("kinds", "tags", "users"):
        if key in plain:
            plain[key] = texts(key, plain[key])
    return plain
