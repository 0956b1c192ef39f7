"""Commands about webhooks: make, change, remove, replay, and how far deliveries are. [pure]"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from depalma.state.checks import bad_field, bad_name, bad_range
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import Applied, Rejected
from depalma.state.event_log import Detail
from depalma.state.outbox import Webhook
from depalma.state.webhook_commands import (
    AddWebhook,
    DeliverWebhooks,
    RemoveWebhook,
    ReplayWebhook,
    SetWebhook,
    TryWebhook,
)

MAX_WEBHOOKS: Final = 100
MAX_KEEP: Final = 1_000_000
MAX_FILTERS: Final = 100
MAX_URL: Final = 2000
MAX_ERROR: Final = 300
MAX_BY: Final = 200
#: By hand: the parsers of different Python versions read the odd URL differently, and replicas must agree.
_URL = re.compile(r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?(?:[/?][!-~]*)?")
_SECRET = re.compile(r"[!-~]{16,200}")
_KIND = re.compile(r"\*|[a-z_]+\.(?:\*|[a-z_]+)")


def add_webhook(state: ClusterState, command: AddWebhook) -> Applied | Rejected:
    """Makes a target; its ids begin at 1."""
    if state.answers.find("add_webhook", command.request):
        return Applied(None, state.version)
    name, webhooks = command.name, state.webhooks
    if wrong := bad_name("name", name) or _bad_by(command.by):
        return wrong
    if name in webhooks.by_name:
        return Rejected("name_taken", f"there is a webhook {name} already")
    if len(webhooks.by_name) >= MAX_WEBHOOKS:
        return Rejected("too_many_webhooks", f"there are {MAX_WEBHOOKS} webhooks, which is the limit")
    webhook = Webhook(
        name, command.url, command.kinds, command.jobs, command.tags, command.users, command.secret, command.keep,
        command.at, command.by, state.version,
    )  # fmt: skip
    if wrong := _bad_webhook(webhook):
        return wrong
    webhooks.add(webhook)
    if state.events.fresh is None:
        state.events.fresh = []
    detail: Detail = {"webhook": name, "url": _shown_url(webhook.url), "by": command.by}
    state.events.add("webhook.added", command.at, detail=detail)
    state.changes.webhooks.add(name)
    state.answers.keep("add_webhook", command.request, None, command.at)
    return Applied(None, state.version)


def set_webhook(state: ClusterState, command: SetWebhook) -> Applied | Rejected:
    """Changes a target. What is on its way to another place, or signed otherwise, is sent again."""
    if state.answers.find("set_webhook", command.request):
        return Applied(None, state.version)
    old = state.webhooks.by_name.get(command.name)
    if old is None:
        return _unknown(command.name)
    fields = ("url", "kinds", "jobs", "tags", "users", "secret", "keep")
    given = {field: getattr(command, field) for field in fields if getattr(command, field) is not None}
    new: Webhook = msgspec.structs.replace(old, **given)
    if wrong := _bad_webhook(new) or _bad_by(command.by):
        return wrong
    changed = [field for field in given if getattr(old, field) != getattr(new, field)]
    if changed:
        if new.url != old.url or new.secret != old.secret:
            new.epoch = state.version
        state.webhooks.by_name[new.name] = new
        state.webhooks.changed()
        state.webhooks.outboxes[new.name].trim(new.keep)
        detail: Detail = {"webhook": new.name, "fields": ",".join(changed), "by": command.by}
        state.events.add("webhook.changed", command.at, detail=detail)
        state.changes.webhooks.add(new.name)
    state.answers.keep("set_webhook", command.request, None, command.at)
    return Applied(None, state.version)


def remove_webhook(state: ClusterState, command: RemoveWebhook) -> Applied | Rejected:
    """Ends a target."""
    if state.answers.find("remove_webhook", command.request):
        return Applied(None, state.version)
    name = command.name
    if name not in state.webhooks.by_name:
        return _unknown(name)
    if wrong := _bad_by(command.by):
        return wrong
    undelivered = state.webhooks.undelivered(name)
    state.webhooks.remove(name)
    if not state.webhooks.by_name:
        state.events.fresh = None
    detail: Detail = {"webhook": name, "undelivered": undelivered, "by": command.by}
    state.events.add("webhook.removed", command.at, detail=detail)
    state.changes.webhooks.add(name)
    state.answers.keep("remove_webhook", command.request, None, command.at)
    return Applied(None, state.version)


def replay_webhook(state: ClusterState, command: ReplayWebhook) -> Applied | Rejected:
    """Moves a target's cursor."""
    if known := state.answers.find("replay_webhook", command.request):
        return Applied(known.value, state.version)
    name = command.name
    webhook = state.webhooks.by_name.get(name)
    if webhook is None:
        return _unknown(name)
    if wrong := _bad_by(command.by):
        return wrong
    oldest, newest = state.webhooks.oldest(name), webhook.last + 1
    last = newest if command.skip else webhook.delivered + 1
    if oldest > last:
        return Rejected("no_longer_kept", f"webhook {name}: nothing is kept up to {last}; the oldest id is {oldest}")
    if not oldest <= command.from_id <= last:
        further = "" if command.skip else f" (with skip, to {newest}: what was not delivered is left out)"
        return bad_field("from", command.from_id, f"{oldest} to {last}{further}")
    webhook.delivered = command.from_id - 1
    webhook.epoch = state.version
    waiting = state.webhooks.undelivered(name)
    if not waiting:
        webhook.error, webhook.failing_since = "", None  # there is nothing left that could fail
    detail: Detail = {"webhook": name, "from": command.from_id, "by": command.by}
    state.events.add("webhook.replayed", command.at, detail=detail)
    state.changes.webhooks.add(name)
    state.answers.keep("replay_webhook", command.request, waiting, command.at)
    return Applied(waiting, state.version)


def try_webhook(state: ClusterState, command: TryWebhook) -> Applied | Rejected:
    """Makes an event for one target, whatever its filter."""
    if known := state.answers.find("test_webhook", command.request):
        return Applied(known.value, state.version)
    webhook = state.webhooks.by_name.get(command.name)
    if webhook is None:
        return _unknown(command.name)
    if wrong := _bad_by(command.by):
        return wrong
    state.events.add("webhook.tested", command.at, detail={"webhook": webhook.name, "by": command.by})
    state.webhooks.put(webhook.name, state.events.records[-1])
    state.changes.webhooks.add(webhook.name)
    state.answers.keep("test_webhook", command.request, webhook.last, command.at)
    return Applied(webhook.last, state.version)


def deliver_webhooks(state: ClusterState, command: DeliverWebhooks) -> Applied | Rejected:
    """Records how far targets are; each item is accepted or left out on its own."""
    recorded = 0
    for name, epoch, delivered, error in command.targets:
        webhook = state.webhooks.by_name.get(name)
        if webhook is None or webhook.epoch != epoch or not webhook.delivered <= delivered <= webhook.last:
            continue
        recorded += 1
        webhook.delivered = delivered
        _note_health(state, webhook, error[:MAX_ERROR], command.at)
        state.changes.webhooks.add(name)
    return Applied(recorded, state.version)


def _note_health(state: ClusterState, webhook: Webhook, error: str, at: float) -> None:
    since = webhook.failing_since
    webhook.error = error
    if error and since is None:
        webhook.failing_since = at
        following = state.webhooks.outboxes[webhook.name].after(webhook.delivered, 1)
        number = following[0][0] if following else None
        detail: Detail = {"webhook": webhook.name, "id": number, "error": error}
        state.events.add("webhook.failing", at, detail=detail)
    elif not error and since is not None:
        webhook.failing_since = None
        detail = {"webhook": webhook.name, "failed_s": round(max(0.0, at - since), 3)}
        state.events.add("webhook.recovered", at, detail=detail)


def _bad_webhook(webhook: Webhook) -> Rejected | None:
    return (
        bad_url("url", webhook.url)
        or _bad_list("kinds", webhook.kinds, _KIND, "kinds of events, like job.finished, task.* or *")
        or (None if webhook.kinds else bad_field("kinds", [], "at least one kind of events; * for all"))
        or _bad_jobs(webhook.jobs)
        or _bad_list("tags", webhook.tags, re.compile(r"[^\0]{1,200}"), "tags of 1 to 200 characters")
        or _bad_list("users", webhook.users, re.compile(r"[^\0]{1,200}"), "names of 1 to 200 characters")
        or (None if _SECRET.fullmatch(webhook.secret) else bad_field("secret", "…", "16 to 200 printable characters"))
        or bad_range("keep", webhook.keep, 1, MAX_KEEP)
    )


def bad_url(field: str, url: str) -> Rejected | None:
    """Refuses what is no http or https URL, or carries a user and a password."""
    match = _URL.fullmatch(url) if len(url) <= MAX_URL else None
    if match is None or "#" in url or not 0 < int(match["port"] or 1) <= 65_535:
        allowed = f"http://HOST[:PORT][/PATH] or https://…, at most {MAX_URL} characters, without user and fragment"
        return bad_field(field, url, allowed)
    return None


def _bad_jobs(jobs: tuple[int, ...]) -> Rejected | None:
    if len(jobs) > MAX_FILTERS or any(job < 1 for job in jobs):
        return bad_field("jobs", list(jobs), f"at most {MAX_FILTERS} numbers of jobs")
    return None


def _bad_list(field: str, values: Iterable[str], pattern: re.Pattern[str], allowed: str) -> Rejected | None:
    values = list(values)
    if len(values) > MAX_FILTERS:
        return bad_field(field, f"{len(values)} entries", f"at most {MAX_FILTERS}")
    for value in values:
        if not pattern.fullmatch(value):
            return bad_field(field, value, allowed)
    return None


def _bad_by(by: str) -> Rejected | None:
    return bad_field("by", by, f"at most {MAX_BY} characters") if len(by) > MAX_BY else None


def _shown_url(url: str) -> str:
    """Returns the URL without its query, which may be a secret."""
    return url.partition("?")[0]


def _unknown(name: str) -> Rejected:
    return Rejected("unknown_webhook", f"there is no webhook {name}")
