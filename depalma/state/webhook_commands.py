"""The replicated commands about webhooks. [pure]"""

from __future__ import annotations

from depalma.state.command import Command


class AddWebhook(Command, frozen=True, tag="webhook.add"):
    """From now on, events of these `kinds` (`job.finished`, `task.*`, `*`) go to `url`; of jobs, tags and users, where
    some are named, to those only. The latest `keep` of them are kept. `secret` signs what is sent."""

    request: str
    name: str
    url: str
    kinds: tuple[str, ...]
    jobs: tuple[int, ...]
    tags: tuple[str, ...]
    users: tuple[str, ...]
    secret: str
    keep: int
    at: float
    by: str = ""


class SetWebhook(Command, frozen=True, tag="webhook.set"):
    """Changes what is given of a webhook; None leaves as it is. Ids go on, and so does what was not delivered."""

    request: str
    name: str
    at: float
    url: str | None = None
    kinds: tuple[str, ...] | None = None
    jobs: tuple[int, ...] | None = None
    tags: tuple[str, ...] | None = None
    users: tuple[str, ...] | None = None
    secret: str | None = None
    keep: int | None = None
    by: str = ""


class RemoveWebhook(Command, frozen=True, tag="webhook.remove"):
    """Ends a webhook, with all that it has not delivered."""

    request: str
    name: str
    at: float
    by: str = ""


class ReplayWebhook(Command, frozen=True, tag="webhook.replay"):
    """What comes next is `from_id`. Refused when that is no longer kept, and when it would leave out what was not
    delivered, unless `skip`. Answers Applied(how many ids are to be delivered)."""

    request: str
    name: str
    from_id: int
    skip: bool
    at: float
    by: str = ""


class TryWebhook(Command, frozen=True, tag="webhook.test"):
    """Makes an event for this webhook only. Answers Applied(its id)."""

    request: str
    name: str
    at: float
    by: str = ""


class DeliverWebhooks(Command, frozen=True, tag="webhook.deliver"):
    """Records how far webhooks are: (name, epoch, last id that was delivered, what is wrong with the next one).
    Those whose epoch is another one (replayed, or made anew, meanwhile) stay as they are. Answers Applied(those that
    were recorded)."""

    targets: tuple[tuple[str, int, int, str], ...]
    at: float
