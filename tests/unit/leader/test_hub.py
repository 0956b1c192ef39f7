"""The hub wakes exactly those who wait for what changed."""

from __future__ import annotations

import asyncio

from depalma.leader.hub import ANY, HOSTS, Hub


def test_only_the_subscribers_of_a_changed_key_are_called() -> None:
    hub = Hub()
    calls: list[str] = []
    hub.subscribe(("job", 1), lambda: calls.append("one"))
    hub.subscribe(("job", 2), lambda: calls.append("two"))
    hub.subscribe(ANY, lambda: calls.append("any"))

    hub.publish([("job", 1)])

    assert calls == ["one", "any"]


def test_unsubscribing_twice_is_harmless_and_leaves_nothing_behind() -> None:
    hub = Hub()
    unsubscribe = hub.subscribe(HOSTS, lambda: None)
    unsubscribe()
    unsubscribe()
    assert hub._callbacks == {}


async def test_wait_returns_true_at_the_change_and_false_at_the_deadline() -> None:
    hub = Hub()
    asyncio.get_running_loop().call_soon(hub.publish, [HOSTS])
    assert await hub.wait([HOSTS], timeout_s=5)
    assert not await hub.wait([HOSTS], timeout_s=0.01)
    assert hub._callbacks == {}


async def test_wait_until_looks_again_at_each_change() -> None:
    hub = Hub()
    seen: list[int] = []

    def ready() -> bool:
        seen.append(1)
        return len(seen) == 3

    async def changes() -> None:
        for _ in range(2):
            await asyncio.sleep(0)
            hub.publish([("job", 7)])

    changing = asyncio.create_task(changes())
    assert await hub.wait_until(ready, [("job", 7)], timeout_s=5)
    await changing
    assert len(seen) == 3


async def test_wait_until_is_true_at_once_when_it_is_ready_already() -> None:
    assert await Hub().wait_until(lambda: True, [HOSTS], timeout_s=0.01)
