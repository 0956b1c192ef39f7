"""Workers that are forked: what was asked of one before the monitor knew it holds from the moment when it does."""

from __future__ import annotations

import array
import marshal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
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


def made(
    link: Link, ends: list[socket.socket], spawn: Callable[[WorkerHandle], None] = lambda handle: None
) -> Nurseries:
    """Returns some that keep what they would start a process with: the other ends of its socket."""
    return Nurseries(
        link,  # type: ignore[arg-type]
        start=lambda nursery: ends.append(socket.socket(fileno=nursery.far.detach())),
        spawn=spawn,
        on_heavy=lambda index, names: None,
    )


async def test_a_worker_that_is_adopted_late_stands_still_and_ends_as_it_was_asked_to() -> None:
    link, ends = Link(), list[socket.socket]()
    nurseries = made(link, ends)
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


async def test_a_worker_of_which_was_said_that_it_is_there_is_not_started_again() -> None:
    """The end of the process that forked it may be heard first: two workers would read from one socket."""
    link, ends, spawned = Link(), list[socket.socket](), list[WorkerHandle]()
    nurseries = made(link, ends, spawned.append)
    first, second, third = (WorkerHandle(number, 0, "") for number in (1, 2, 3))
    try:
        nurseries.fork(first)  # opens it
        (end,) = ends
        nursery: Nursery = nurseries._by_index[0]
        end.send(marshal.dumps(("ready",)))
        await wait_until(lambda: nursery.ready, "its word")
        for handle in (second, third):
            nurseries.fork(handle)
        end.send(marshal.dumps(("forked", 2, 4711, 99)))
        end.close()

        nurseries.ended(nursery)

        assert link.said == [("adopt", second.key, 4711, 99)]
        assert spawned == [first, third]
    finally:
        nurseries.forget_all()
        for handle in (first, second, third):
            handle.close()


async def test_what_is_no_answer_costs_the_process_and_not_the_agent() -> None:
    """It imports what tasks import, and that may write to any descriptor."""
    link, ends = Link(), list[socket.socket]()
    nurseries = made(link, ends)
    first = WorkerHandle(1, 0, "")
    try:
        nurseries.fork(first)  # opens it
        (end,) = ends
        nursery: Nursery = nurseries._by_index[0]
        nursery.key = 5
        garbage = (b"hello", *map(marshal.dumps, (7, {}, ("forked", 99, 1, 1), ("imported", 1.0), ("imported",))))
        for data in (*garbage, marshal.dumps(("ready",))):
            end.send(data)
        await wait_until(lambda: nursery.ready, "its word")
        assert link.said == [("kill", 5, 0.0)] * len(garbage)
    finally:
        nurseries.forget_all()
        first.close()
        for end in ends:
            end.close()


DIES = """
import os, socket, sys
from depalma.agent.forkserver import ForkServer

class Dies(ForkServer):
    def _say(self, *message):
        if message[0] == "forked":
            os._exit(0)
        super()._say(*message)

os.environ["DEPALMA_PROCESS"] = "1:1"
Dies(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], (1000, 1000)).serve()
"""


def test_a_worker_of_which_nobody_hears_reads_no_task(tmp_path: Path) -> None:
    """Its fork server was killed in the moment between: another worker gets the socket."""
    (tmp_path / "spool").mkdir()
    handle = WorkerHandle(1, 0, "")
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        program = [sys.executable, "-c", DIES, str(far.fileno()), str(tmp_path)]
        process = subprocess.Popen(program, pass_fds=(far.fileno(),))
        try:
            near.settimeout(20.0)
            assert marshal.loads(near.recv(1000)) == ("ready",)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [handle.far.fileno()]))]
            near.sendmsg([marshal.dumps(("fork", 1, 7))], rights)
            assert process.wait(20.0) == 0
            handle.far.close()
            handle.near.settimeout(20.0)
            assert handle.near.recv(1000) == b"", "it says that it is ready"
        finally:
            process.kill()
            process.wait()
            handle.close()
