"""How one job that is there goes on, for asyncio: see the methods of `JobHandle`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from depalma.client import specs, verbs

if TYPE_CHECKING:
    from depalma.client.aio import AsyncClient
    from depalma.client.record import Record


class AsyncJobSteering:
    """What `AsyncJobHandle` can do with its job."""

    id: int
    _client: AsyncClient
    _record: Record | None

    async def cancel(self) -> bool:
        """Cancels the job. Returns False if it was over already."""
        return self.id in await self._client.cancel(self.id)

    async def add(self, items: Iterable[Any]) -> int:
        """Adds a task for each item to an open job; returns the index of the first. Errors: Rejected (job_closed)."""
        view = await self._client._run(verbs.job(self.id))
        packed = specs.packed_items(view.kind, items)
        return await self._client._run(verbs.add_tasks(self.id, packed))

    async def close(self) -> None:
        """Says that an open job gets no more tasks: it ends when those that it has are over."""
        await self._client._run(verbs.close_job(self.id))

    async def hold(self) -> bool:
        """Starts no further task of it. Returns False if it was held or over already."""
        return self.id in await self._client.hold(self.id)

    async def release(self) -> bool:
        """Ends `hold`. Returns False if it was not held."""
        return self.id in await self._client.release(self.id)

    async def suspend(self, reason: str = "") -> bool:
        """Has all of it stand still, see `Client.suspend`. Returns False if it was suspended or over already."""
        return self.id in await self._client.suspend(self.id, reason=reason)

    async def resume(self) -> bool:
        """Ends `suspend`. Returns False if it was not suspended."""
        return self.id in await self._client.resume(self.id)

    async def retry(self) -> bool:
        """Runs the tasks again that failed, timed out or were lost; then this handle waits for them anew.

        Returns False if there were none. Errors: Rejected (job_cancelled).
        """
        if self.id not in await self._client.retry(self.id):
            return False
        self._record = None
        return True
