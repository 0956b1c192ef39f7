"""/v1/webhooks: who is told what happens."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from aiohttp import web

from depalma.api.context import Api, now
from depalma.api.inputs import Body, idempotency_key
from depalma.api.problems import Problem, bad_field, shown
from depalma.api.route import READ_QUERY, Mode, Route
from depalma.api.shapes import (
    Empty,
    WebhookChange,
    WebhookList,
    WebhookReplay,
    WebhookSaved,
    WebhookTested,
    WebhookToAdd,
)
from depalma.model import WebhookView
from depalma.state.kinds import KINDS
from depalma.state.outbox import OWN_KINDS, Webhook, matches
from depalma.state.restoring import NUMBERS_JUMP
from depalma.state.webhook_commands import AddWebhook, RemoveWebhook, ReplayWebhook, SetWebhook, TryWebhook

_ADD = Body(WebhookToAdd)
_CHANGE = Body(WebhookChange)
_REPLAY = Body(WebhookReplay)
_SECRET_BYTES = 32


def _view(api: Api, webhook: Webhook) -> WebhookView:
    webhooks = api.state.webhooks
    oldest = webhooks.oldest(webhook.name)
    missing = max(0, oldest - webhook.delivered - 1)
    return WebhookView(
        name=webhook.name,
        url=webhook.url,
        kinds=webhook.kinds,
        jobs=webhook.jobs,
        tags=webhook.tags,
        users=webhook.users,
        keep=webhook.keep,
        made_at=webhook.made_at,
        by=webhook.by,
        last=webhook.last,
        delivered=webhook.delivered,
        oldest=oldest,
        waiting=webhooks.undelivered(webhook.name),
        missing=missing if missing < NUMBERS_JUMP else None,
        error=webhook.error,
        failing_since=webhook.failing_since,
    )


def _find(api: Api, name: str) -> Webhook:
    webhook = api.state.webhooks.by_name.get(name)
    if webhook is None:
        names = ", ".join(list(api.state.webhooks.by_name)[:20]) or "none"
        raise Problem("unknown_webhook", f"there is no webhook {shown(name)}; there are: {names}")
    return webhook


def _check_kinds(kinds: Sequence[str] | None) -> None:
    """A kind that never comes is a typing error. Here, not in the state: other versions know other kinds."""
    for pattern in kinds or ():
        if not any(matches(pattern, kind) for kind in KINDS):
            allowed = ", ".join(kind for kind in KINDS if not kind.startswith(OWN_KINDS))
            raise bad_field("kinds", pattern, f"*, job.*, and the like, or {allowed}")


async def listing(api: Api, request: web.Request) -> web.StreamResponse:
    """Lists the webhooks."""
    return api.reply(request, WebhookList([_view(api, each) for each in api.state.webhooks.by_name.values()]))


async def show(api: Api, request: web.Request) -> web.StreamResponse:
    """Shows a webhook."""
    return api.reply(request, _view(api, _find(api, request.match_info["webhook"])))


async def add(api: Api, request: web.Request) -> web.StreamResponse:
    """Makes a webhook; the answer has its secret."""
    wanted: WebhookToAdd = _ADD.decode(request, await api.body(request))
    _check_kinds(wanted.kinds)
    applied = await api.execute(
        AddWebhook(
            idempotency_key(request), wanted.name, wanted.url, wanted.kinds, wanted.jobs, wanted.tags, wanted.users,
            secrets.token_urlsafe(_SECRET_BYTES), wanted.keep, now(), wanted.by,
        )
    )  # fmt: skip
    # A repeated request made another secret, for nothing: what counts is that of the state.
    webhook = _find(api, wanted.name)
    headers = {"Location": f"/v1/webhooks/{wanted.name}"}
    answer = WebhookSaved(_view(api, webhook), webhook.secret)
    return api.reply(request, answer, status=201, version=applied.version, headers=headers)


async def change(api: Api, request: web.Request) -> web.StreamResponse:
    """Changes what is given of a webhook."""
    name = request.match_info["webhook"]
    wanted: WebhookChange = _CHANGE.decode(request, await api.body(request))
    _check_kinds(wanted.kinds)
    secret = secrets.token_urlsafe(_SECRET_BYTES) if wanted.new_secret else None
    applied = await api.execute(
        SetWebhook(
            idempotency_key(request), name, now(), wanted.url, wanted.kinds, wanted.jobs, wanted.tags, wanted.users,
            secret, wanted.keep, wanted.by,
        )
    )  # fmt: skip
    webhook = _find(api, name)
    answer = WebhookSaved(_view(api, webhook), webhook.secret if wanted.new_secret else "")
    return api.reply(request, answer, version=applied.version)


async def remove(api: Api, request: web.Request) -> web.StreamResponse:
    """Ends a webhook, and what it has not delivered."""
    command = RemoveWebhook(idempotency_key(request), request.match_info["webhook"], now(), request.query.get("by", ""))
    applied = await api.execute(command)
    return api.reply(request, Empty(), version=applied.version)


async def replay(api: Api, request: web.Request) -> web.StreamResponse:
    """Delivers from an id on, once more."""
    name = request.match_info["webhook"]
    wanted: WebhookReplay = _REPLAY.decode(request, await api.body(request))
    key = idempotency_key(request)
    applied = await api.execute(ReplayWebhook(key, name, wanted.from_id, wanted.skip, now(), wanted.by))
    return api.reply(request, _view(api, _find(api, name)), version=applied.version)


async def test(api: Api, request: web.Request) -> web.StreamResponse:
    """Makes an event for this webhook only."""
    name, by = request.match_info["webhook"], request.query.get("by", "")
    applied = await api.execute(TryWebhook(idempotency_key(request), name, now(), by))
    assert isinstance(applied.value, int)
    return api.reply(request, WebhookTested(applied.value), version=applied.version)


_BY = frozenset({"by"})
ROUTES = (
    Route("GET", "/v1/webhooks", listing, Mode.READ, "List the webhooks", query=READ_QUERY, returns=WebhookList),
    Route("GET", "/v1/webhooks/{webhook}", show, Mode.READ, "Show a webhook, and how far it is", query=READ_QUERY,
          returns=WebhookView),
    Route("POST", "/v1/webhooks", add, Mode.WRITE, "Make a webhook; shows its secret, once", body=_ADD,
          returns=WebhookSaved, status=201),
    Route("PATCH", "/v1/webhooks/{webhook}", change, Mode.WRITE, "Change a webhook", body=_CHANGE,
          returns=WebhookSaved),
    Route("DELETE", "/v1/webhooks/{webhook}", remove, Mode.WRITE, "Remove a webhook", query=_BY, returns=Empty),
    Route("POST", "/v1/webhooks/{webhook}/replay", replay, Mode.WRITE, "Deliver again from an id on", body=_REPLAY,
          returns=WebhookView),
    Route("POST", "/v1/webhooks/{webhook}/test", test, Mode.WRITE, "Deliver a test event", query=_BY,
          returns=WebhookTested),
)  # fmt: skip
