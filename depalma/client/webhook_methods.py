"""What `Client` can do about webhooks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar, Unpack

from depalma.client import webhook_verbs
from depalma.client.verbs import Verb
from depalma.client.webhook_verbs import WebhookOptions, WebhookSaved
from depalma.model import WebhookView

T = TypeVar("T")


class WebhookMethods(ABC):
    """The part of a client that says who is told what happens."""

    @abstractmethod
    def _run(self, verb: Verb[T]) -> T: ...

    def webhooks(self) -> list[WebhookView]:
        """Returns the webhooks."""
        return self._run(webhook_verbs.webhooks())

    def webhook(self, name: str) -> WebhookView:
        """Returns one webhook, and how far it is."""
        return self._run(webhook_verbs.webhook(name))

    def add_webhook(self, name: str, url: str, **options: Unpack[WebhookOptions]) -> WebhookSaved:
        """Makes a webhook: events go to `url`, signed with the secret of the answer, which is not shown again."""
        return self._run(webhook_verbs.add_webhook(name, url, options))

    def set_webhook(
        self, name: str, *, url: str | None = None, new_secret: bool = False, **options: Unpack[WebhookOptions]
    ) -> WebhookSaved:
        """Changes what is given; ids go on, and so does what was not delivered."""
        return self._run(webhook_verbs.set_webhook(name, url, new_secret, options))

    def remove_webhook(self, name: str) -> None:
        """Ends a webhook, with all that it has not delivered."""
        self._run(webhook_verbs.remove_webhook(name))

    def replay_webhook(self, name: str, from_id: int, *, skip: bool = False) -> WebhookView:
        """Delivers from this id on, once more. With `skip` it may leave out what was not delivered."""
        return self._run(webhook_verbs.replay_webhook(name, from_id, skip))

    def test_webhook(self, name: str) -> int:
        """Sends a test event to this webhook only; returns its id."""
        return self._run(webhook_verbs.try_webhook(name))
