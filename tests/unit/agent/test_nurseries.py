"""Workers that are forked: what was asked of one before the monitor knew it holds from the moment when it does."""

from __future__ import annotations

import marshal
import socket
from typing import Any

from depalma.agent.nurseries import Nurseries, Nursery
from depalma.agent.workers import WorkerHandle
from depalma.testing.fake_leader import wait_until


class Link:
    """Takes down what the monitor is told."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def send(self, message: tuple[Any, ...], fd: int = -1) -> None:
        self.said.append(message)

    def flush(self) -> None:
        pass


async def test_a_worker_that_is_adopted_late_stands_still_and_ends_as_it_was_asked_to() -> None:
    link, ends = Link(), list[socket.socket]()
    nurseries = Nurseries(
        link,  # type: ignore[arg-type]
        start=lambda nursery: ends.append(socket.socket(fileno=nursery.far.detach())),
        spawn=lambda handle: None,
        on_heavy=lambda index, names: None,
    )
    first, second = WorkerHandle(1, 0, ""), WorkerHandle(2, 0, "")
    try:
        nurseries.fork(first)  # opens it
        (end,) = ends
        nursery: Nursery = nurseries._by_index[0]
        end.send(marshal.dumps(("ready",)))
        await wait_until(lambda: nursery.ready, "its word")
        second.key = 7
        nurseries.fork(second)
        assert 2 in nursery.asked
        second.still.add("job")
        second.stopped = True
        end.send(marshal.dumps(("forked", 2, 4711, 99)))
        await wait_until(lambda: 2 not in nursery.asked, "the worker")
        assert link.said == [("adopt", 7, 4711, 99), ("suspend", 7, "job"), ("kill", 7, 0.0)]
    finally:
        nurseries.forget_all()
        for handle in (first, second):
            handle.close()
        for end in ends:
            end.close()
