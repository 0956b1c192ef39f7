"""Wakes those who wait for a change of the state: blocking queries, result streams, the dispatch loop.

A waiter names keys; after each batch of applied commands the keys that changed wake theirs. Waking is a hint: the
woken one looks at the state itself, so a spurious wake-up is harmless and a missed one cannot happen (waiters
register before they look).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable

#: ("job", id), ("hosts",), ("code",), ("leader",), or ("any",) for every change.
Key = tuple[str] | tuple[str, int]

ANY: Key = ("any",)
HOSTS: Key = ("hosts",)
CODE: Key = ("code",)
LEADER: Key = ("leader",)


class Hub:
    """Callbacks by key; all on the loop's thread."""

    def __init__(self) -> None:
        self._callbacks: dict[Key, dict[int, Callable[[], None]]] = {}
        self._watchers: list[Callable[[Collection[Key]], None]] = []
        self._next = 0

    def watch(self, callback: Callable[[Collection[Key]], None]) -> None:
        """Calls `callback` with all keys that changed, each time, for ever."""
        self._watchers.append(callback)

    def subscribe(self, key: Key, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls `callback` after each change of `key` until the returned function is called."""
        self._next += 1
        number = self._next
        self._callbacks.setdefault(key, {})[number] = callback

        def unsubscribe() -> None:
            waiting = self._callbacks.get(key)
            if waiting is not None and waiting.pop(number, None) is not None and not waiting:
                del self._callbacks[key]

        return unsubscribe

    def publish(self, keys: Iterable[Key]) -> None:
        """Wakes the waiters of `keys`, and those of ANY."""
        keys = tuple(keys)
        for watcher in self._watchers:
            watcher(keys)
        for key in (*keys, ANY):
            for callback in tuple(self._callbacks.get(key, {}).values()):
                callback()

    async def wait(self, keys: Collection[Key], timeout_s: float) -> bool:
        """Returns True at the next change of one of `keys`, False when the time is over."""
        woken = asyncio.Event()
        unsubscribers = [self.subscribe(key, woken.set) for key in keys]
        try:
            async with asyncio.timeout(timeout_s):
                await woken.wait()
            return True
        except TimeoutError:
            return False
        finally:
            for unsubscribe in unsubscribers:
                unsubscribe()

    async def wait_until(self, ready: Callable[[], bool], keys: Collection[Key], timeout_s: float) -> bool:
        """Returns True once `ready()`, checked at every change of `keys`; False when the time is over."""
        changed = asyncio.Event()
        unsubscribers = [self.subscribe(key, changed.set) for key in keys]
        try:
            async with asyncio.timeout(timeout_s):
                while not ready():
                    changed.clear()
                    await changed.wait()
            return True
        except TimeoutError:
            return False
        finally:
            for unsubscribe in unsubscribers:
                unsubscribe()
