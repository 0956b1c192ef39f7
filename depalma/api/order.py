"""/v1/order, /v1/limits, /v1/shares: whose turn it is, and how many at once."""

from __future__ import annotations

from aiohttp import web

from depalma.api.context import Api, now
from depalma.api.inputs import Body, idempotency_key
from depalma.api.problems import bad_field
from depalma.api.route import READ_QUERY, Mode, Route
from depalma.api.shapes import Empty, LimitToSet, OrderChange, QuotaToSet, ShareToSet
from depalma.orderviews import LimitView, OrderView, QuotaView, ShareView
from depalma.state.limits import KINDS
from depalma.state.order_commands import SetLimit, SetOrder, SetQuota, SetShare
from depalma.state.quotas import Amounts
from depalma.state.shapes import shown

_LIMIT = Body(LimitToSet)
_QUOTA = Body(QuotaToSet)
_SHARE = Body(ShareToSet)
_ORDER = Body(OrderChange)


def _shown(amounts: Amounts) -> Amounts:
    return {name: shown(name, number) for name, number in amounts.items()}


async def show(api: Api, request: web.Request) -> web.StreamResponse:
    """Shows limits, users with their shares, and what holds for all."""
    state = api.state
    limits = [
        LimitView(kind=kind, name=name, limit=limit, tasks=state.limits.live(kind, name, state.shares))
        for kind in KINDS
        for name, limit in sorted(state.limits.of_kind(kind).items())
    ]
    quotas = [
        QuotaView(kind=kind, name=name, most=most, used=_shown(state.quotas.used.get((kind, name), {})))
        for (kind, name), most in sorted(state.quotas.most.items())
    ]
    at = now()
    users = [
        ShareView(
            user=account.name,
            weight=account.weight,
            usage_s=state.shares.usage_at(account, at),
            slots=account.slots,
            tasks=account.tasks,
            waiting=sum(len(line.jobs) for line in state.ready.lines_of(account)),
        )
        for account in sorted(state.shares.accounts.values(), key=lambda each: each.name)
    ]
    view = OrderView(half_life_s=state.shares.half_life_s, age_s=state.age_s, limits=limits, users=users, quotas=quotas)
    return api.reply(request, view)


async def change(api: Api, request: web.Request) -> web.StreamResponse:
    """Changes what holds for all."""
    wanted: OrderChange = _ORDER.decode(request, await api.body(request))
    applied = await api.execute(SetOrder(idempotency_key(request), now(), wanted.half_life_s, wanted.age_s))
    return api.reply(request, Empty(), version=applied.version)


async def set_limit(api: Api, request: web.Request) -> web.StreamResponse:
    """Sets a limit."""
    wanted: LimitToSet = _LIMIT.decode(request, await api.body(request))
    return await _limit(api, request, wanted.limit)


async def remove_limit(api: Api, request: web.Request) -> web.StreamResponse:
    """Removes a limit."""
    return await _limit(api, request, None)


async def _limit(api: Api, request: web.Request, limit: int | None) -> web.StreamResponse:
    kind, name = request.match_info["kind"], request.match_info["name"]
    if kind not in KINDS:
        raise bad_field("kind", kind, ", ".join(KINDS))
    applied = await api.execute(SetLimit(idempotency_key(request), kind, name, limit, now()))
    return api.reply(request, Empty(), version=applied.version)


async def set_quota(api: Api, request: web.Request) -> web.StreamResponse:
    """Sets a quota, all of it."""
    wanted: QuotaToSet = _QUOTA.decode(request, await api.body(request))
    return await _quota(api, request, wanted.most)


async def remove_quota(api: Api, request: web.Request) -> web.StreamResponse:
    """Removes a quota."""
    return await _quota(api, request, None)


async def _quota(api: Api, request: web.Request, most: dict[str, float] | None) -> web.StreamResponse:
    kind, name = request.match_info["kind"], request.match_info["name"]
    if kind not in KINDS:
        raise bad_field("kind", kind, ", ".join(KINDS))
    applied = await api.execute(SetQuota(idempotency_key(request), kind, name, most, now()))
    return api.reply(request, Empty(), version=applied.version)


async def set_share(api: Api, request: web.Request) -> web.StreamResponse:
    """Gives a user another weight."""
    wanted: ShareToSet = _SHARE.decode(request, await api.body(request))
    user = request.match_info["user"]
    applied = await api.execute(SetShare(idempotency_key(request), user, wanted.weight, now()))
    return api.reply(request, Empty(), version=applied.version)


ROUTES = (
    Route("GET", "/v1/order", show, Mode.READ, "Show limits, shares and ageing", query=READ_QUERY, returns=OrderView),
    Route("PATCH", "/v1/order", change, Mode.WRITE, "Change how fast usage is forgotten, and ageing", body=_ORDER,
          returns=Empty),
    Route("PUT", "/v1/limits/{kind}/{name}", set_limit, Mode.WRITE, "Limit the tasks of a tag, a user or a group",
          body=_LIMIT, returns=Empty),
    Route("DELETE", "/v1/limits/{kind}/{name}", remove_limit, Mode.WRITE, "Remove a limit", returns=Empty),
    Route("PUT", "/v1/quotas/{kind}/{name}", set_quota, Mode.WRITE,
          "Limit what tasks of a tag, a user or a group take together", body=_QUOTA, returns=Empty),
    Route("DELETE", "/v1/quotas/{kind}/{name}", remove_quota, Mode.WRITE, "Remove a quota", returns=Empty),
    Route("PUT", "/v1/shares/{user}", set_share, Mode.WRITE, "Give a user another weight", body=_SHARE, returns=Empty),
)  # fmt: skip
