"""What `AsyncClient` can do about the cluster itself: its hosts, groups, masters and webhooks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TypeVar, Unpack

from depalma.client import host_verbs, master_verbs, order_verbs, specs, verbs, webhook_verbs
from depalma.client.host_verbs import GroupView, HostOptions, HostRemoval
from depalma.client.specs import JobOptions
from depalma.client.verbs import Verb
from depalma.client.webhook_verbs import WebhookOptions, WebhookSaved
from depalma.model import HostView, MasterView, WebhookView
from depalma.orderviews import OrderView, TrialView

T = TypeVar("T")


class AsyncCluster(ABC):
    """The part of a client that changes the cluster."""

    @abstractmethod
    async def _run(self, verb: Verb[T]) -> T: ...

    async def hosts(self) -> list[HostView]:
        """Returns the hosts."""
        return await self._run(verbs.hosts())

    async def host(self, name: str) -> HostView:
        """Returns one host."""
        return await self._run(host_verbs.host(name))

    async def add_host(self, name: str, **options: Unpack[HostOptions]) -> HostView:
        """Makes a host known."""
        return await self._run(host_verbs.add_host(name, options))

    async def set_host(self, name: str, **options: Unpack[HostOptions]) -> HostView:
        """Changes what is given of a host."""
        return await self._run(host_verbs.set_host(name, options))

    async def remove_host(self, name: str, *, force: bool = False) -> HostRemoval:
        """Takes a host off the list."""
        return await self._run(host_verbs.remove_host(name, force))

    async def set_owner(self, name: str, **fields: float | str | bool | None) -> HostView:
        """Changes what the owner of a host allows: fields of OwnerPolicy. Errors: Rejected, nothing is changed."""
        return await self._run(host_verbs.set_owner(name, fields))

    async def drain_host(self, name: str, *, deadline_s: float | None = None, reason: str = "") -> HostView:
        """Gives the host no new work."""
        return await self._run(host_verbs.drain_host(name, deadline_s, reason))

    async def wait_drained(self, name: str, timeout_s: float | None = None) -> HostView:
        """Returns when nothing of the host's work is left."""
        return await self._run(host_verbs.wait_drained(name, timeout_s))

    async def undrain_host(self, name: str) -> HostView:
        """Gives the host work again."""
        return await self._run(host_verbs.undrain_host(name))

    async def groups(self) -> list[GroupView]:
        """Returns the groups."""
        return await self._run(host_verbs.groups())

    async def set_group(self, name: str, hosts: Sequence[str]) -> list[str]:
        """Makes these the hosts of the group."""
        return await self._run(host_verbs.set_group(name, hosts))

    async def add_to_group(self, name: str, hosts: Sequence[str]) -> list[str]:
        """Puts hosts into the group."""
        return await self._run(host_verbs.add_to_group(name, hosts))

    async def remove_group(self, name: str, hosts: Sequence[str] = (), *, force: bool = False) -> list[str]:
        """Takes these hosts out of the group, or all."""
        return await self._run(host_verbs.remove_group(name, hosts, force))

    async def masters(self) -> list[MasterView]:
        """Returns the masters, those that cannot be reached included."""
        return await self._run(master_verbs.masters())

    async def add_master(
        self, master_id: str, host: str, *, port: int = 7070, raft_port: int = 7071, timeout_s: float = 60.0
    ) -> None:
        """Adds a master that was started with `--join`; returns when it has caught up and counts.

        Asking again for the same is harmless. Errors: Rejected, with the code not_ready if it took longer.
        """
        await self._run(master_verbs.add_master(master_id, host, port, raft_port, timeout_s))

    async def remove_master(self, master_id: str) -> None:
        """Removes a master; if it leads, another one leads first. Errors: Rejected."""
        await self._run(master_verbs.remove_master(master_id))

    async def transfer(self, master_id: str) -> None:
        """Lets this master lead. Errors: Rejected, with the code transfer_failed if it could not take over."""
        await self._run(master_verbs.transfer(master_id))

    async def webhooks(self) -> list[WebhookView]:
        """Returns the webhooks."""
        return await self._run(webhook_verbs.webhooks())

    async def webhook(self, name: str) -> WebhookView:
        """Returns one webhook, and how far it is."""
        return await self._run(webhook_verbs.webhook(name))

    async def add_webhook(self, name: str, url: str, **options: Unpack[WebhookOptions]) -> WebhookSaved:
        """Makes a webhook: events go to `url`, signed with the secret of the answer, which is not shown again."""
        return await self._run(webhook_verbs.add_webhook(name, url, options))

    async def set_webhook(
        self, name: str, *, url: str | None = None, new_secret: bool = False, **options: Unpack[WebhookOptions]
    ) -> WebhookSaved:
        """Changes what is given; ids go on, and so does what was not delivered."""
        return await self._run(webhook_verbs.set_webhook(name, url, new_secret, options))

    async def remove_webhook(self, name: str) -> None:
        """Ends a webhook, with all that it has not delivered."""
        await self._run(webhook_verbs.remove_webhook(name))

    async def replay_webhook(self, name: str, from_id: int, *, skip: bool = False) -> WebhookView:
        """Delivers from this id on, once more. With `skip` it may leave out what was not delivered."""
        return await self._run(webhook_verbs.replay_webhook(name, from_id, skip))

    async def test_webhook(self, name: str) -> int:
        """Sends a test event to this webhook only; returns its id."""
        return await self._run(webhook_verbs.try_webhook(name))

    async def order(self) -> OrderView:
        """Returns the limits, the users with their shares, and ageing."""
        return await self._run(order_verbs.order())

    async def set_order(self, *, half_life_s: float | None = None, age_s: float | None = None) -> None:
        """Changes how fast usage is forgotten, and ageing. What is None stays. Errors: Rejected."""
        await self._run(order_verbs.set_order(half_life_s, age_s))

    async def set_limit(self, kind: str, name: str, limit: int | None) -> None:
        """Lets at most `limit` tasks of a `tag`, a `user` (`*`: each) or a `group` be on hosts at once; None: no limit.

        Errors: Rejected.
        """
        await self._run(order_verbs.set_limit(kind, name, limit))

    async def set_quota(self, kind: str, name: str, most: Mapping[str, float] | None) -> None:
        """Lets the tasks of a `tag`, a `user` (`*`: each) or a `group` have at most so much at once of `slots`, `gpus`,
        `memory_bytes` and resources, in the whole cluster; None: no quota. Errors: Rejected.
        """
        await self._run(order_verbs.set_quota(kind, name, most))

    async def set_share(self, user: str, weight: float) -> None:
        """Gives a user another weight. Errors: Rejected."""
        await self._run(order_verbs.set_share(user, weight))

    async def dry_run(
        self, argv: Sequence[str], *, array: int | str | None = None, **options: Unpack[JobOptions]
    ) -> TrialView:
        """Returns where and when such a command would run; nothing is submitted. Errors: Rejected."""
        return await self._run(order_verbs.trial(specs.command_work(argv, indices=array, options=options).spec))
