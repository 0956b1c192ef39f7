"""Workers forked from a process that has imported what their tasks need."""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any

import cloudpickle
import psutil
import pytest

from depalma.model import JobSpec, Payload, Report
from depalma.protocol import Assignment
from depalma.testing.fake_leader import AgentProcess, FakeLeader, wait_until

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def function(target: Callable[..., Any], **fields: Any) -> JobSpec:
    data = cloudpickle.dumps(target, 5)
    return JobSpec(kind="function", function_pickle=Payload(inline=data, size_bytes=len(data)), grace_s=0.2, **fields)


def value(report: Report) -> Any:
    assert report.result is not None, report
    return pickle.loads(report.result.inline)


def slow_module(agent: AgentProcess, seconds: float = 1.0) -> None:
    """A module of the code tree that takes so long to import."""
    (agent.root / "code/trees/0/slow_to_import.py").write_text(f"import time\ntime.sleep({seconds})\nVALUE = 7\n")


def uses(then: str = "") -> tuple[bool, int, int]:
    """Imports it; returns whether it was there before, and who it was. How long it took would tell of the machine."""
    was_there = "slow_to_import" in sys.modules
    import slow_to_import  # type: ignore[import-not-found]

    assert slow_to_import.VALUE == 7
    if then == "crash":
        os._exit(1)
    if then == "rest":
        time.sleep(0.3)
    return was_there, os.getpid(), os.getppid()


def forkserver(agent: AgentProcess) -> psutil.Process | None:
    for process in psutil.Process(agent.pid).children(recursive=True):
        try:
            if any(word.endswith("forkserver.py") for word in process.cmdline()) and _is_first(process):
                return process
        except psutil.Error:
            continue
    return None


def _is_first(process: psutil.Process) -> bool:
    """Workers that were forked from it have its command line, and are older siblings' children no more."""
    others = [other for other in process.parent().children() if other.cmdline() == process.cmdline()]
    return min(others, key=lambda other: (other.create_time(), other.pid)) == process


async def run(leader: FakeLeader, index: int, then: str = "") -> Report:
    await leader.assign(Assignment(1, index, 1, 1, cloudpickle.dumps((None, (then,), {}), 5)))
    return await leader.report((1, index, 1))


async def ready(leader: FakeLeader, agent: AgentProcess) -> None:
    """Waits until the fork server has imported the module: its workers say so."""
    slow_module(agent)
    leader.job(1, function(uses))
    assert not value(await run(leader, 0))[0]
    for index in range(1, 60):
        await run(leader, 1000 + index, "crash")
        if value(await run(leader, index))[0]:
            return
    raise AssertionError("no worker ever had the module")


async def test_a_new_worker_has_what_an_earlier_one_had_to_import(leader: FakeLeader, agent: AgentProcess) -> None:
    await ready(leader, agent)

    were_there = []
    for index in range(100, 106):
        crashed = await run(leader, 1000 + index, "crash")
        assert crashed.error == "worker process died: exit code 1"
        were_there.append(value(await run(leader, index))[0])

    # It was not imported again, most of the time (a machine that does other things may be late to fork).
    assert sum(were_there) >= len(were_there) / 2, were_there
    _, pid, parent = value(await run(leader, 200))
    assert parent == agent.monitor_pid()  # it is supervised as any other
    assert psutil.Process(pid).children() == []


async def test_a_worker_that_was_idle_meanwhile_does_not_import_it_again(
    leader: FakeLeader, agent: AgentProcess
) -> None:
    """Of what takes long to import only the first task pays, not the first one on each worker that was there before."""
    burns = "import time\nwhile time.process_time() < 0.5: pass\nVALUE = 7\n"  # a process has used little before
    (agent.root / "code/trees/0/slow_to_import.py").write_text(burns)

    def rests() -> int:
        time.sleep(0.3)
        return os.getpid()

    leader.job(1, function(uses))
    leader.job(2, function(rests))
    await leader.assign(Assignment(2, 0, 1, 1), Assignment(2, 1, 1, 1))
    workers = {value(await leader.report((2, index, 1))) for index in (0, 1)}
    assert len(workers) == 2

    was_there, first, _ = value(await run(leader, 0))
    assert not was_there
    (idle,) = workers - {first}
    await wait_until(lambda: not psutil.pid_exists(idle), "end of the worker that has not imported it")

    argument = cloudpickle.dumps((None, ("rest",), {}), 5)
    await leader.assign(*[Assignment(1, index, 1, 1, argument) for index in (1, 2)])
    both = [value(await leader.report((1, index, 1))) for index in (1, 2)]
    assert all(was_there for was_there, _, _ in both)
    assert {pid for _, pid, _ in both} > {first}  # what has imported it stays


async def test_forked_workers_are_supervised_as_all_are(leader: FakeLeader, agent: AgentProcess) -> None:
    """A time limit and a crash end them; what they print is theirs; nothing is left of them."""
    await ready(leader, agent)

    def talks(x: int) -> int:
        sys.stdout.write(f"number {x}")
        os.system("(setsid sleep 1105 &)")
        return os.getpid()

    def sleeps() -> None:
        time.sleep(60)

    leader.job(2, function(talks))
    leader.job(3, function(sleeps, timeout_s=0.3))
    await run(leader, 500, "crash")
    await run(leader, 501, "crash")
    await leader.assign(Assignment(2, 0, 1, 1, cloudpickle.dumps((None, (5,), {}), 5)), Assignment(3, 0, 1, 1))
    pid = value(await leader.report((2, 0, 1)))

    assert (await leader.ask_output((2, 0, 1))).data == b"number 5"
    assert (await leader.report((3, 0, 1))).outcome == "timed_out"
    os.kill(pid, 9)
    await wait_until(lambda: "sleep 1105" not in agent.below(), "end of what it left behind")
    assert (await run(leader, 502)).outcome == "succeeded"


async def test_random_numbers_of_forked_workers_differ(leader: FakeLeader, agent: AgentProcess) -> None:
    def draws(then: str) -> float:
        import random

        number = random.random()
        if then == "crash":
            sys.stdout.write(repr(number))
            sys.stdout.flush()
            os._exit(1)
        return number

    leader.job(1, function(draws))
    seen = set()
    for index in range(8):
        await run(leader, index, "crash")
        seen.add((await leader.ask_output((1, index, 1))).data)
    assert len(seen) == 8


@pytest.mark.long
async def test_a_fork_server_that_dies_or_hangs_is_done_without(leader: FakeLeader, agent: AgentProcess) -> None:
    await ready(leader, agent)
    server = await wait_until(lambda: forkserver(agent), "the fork server")
    server.suspend()
    await leader.assign(Assignment(1, 2000, 1, 1, cloudpickle.dumps((None, ("crash",), {}), 5)))
    await leader.report((1, 2000, 1), for_s=60.0)  # a server that imports gets 20 s before it counts as hanging

    # Both slots' workers are needed: at least one of these waits for a new one.
    tasks = [Assignment(1, 2001 + n, 1, 1, cloudpickle.dumps((None, ("crash",), {}), 5)) for n in range(2)]
    await leader.assign(*tasks)
    for task in tasks:
        assert (await leader.report((1, task.task, 1), for_s=60.0)).error == "worker process died: exit code 1"
    await wait_until(lambda: not server.is_running(), "end of what hung")

    await run(leader, 2009, "crash")
    second = await wait_until(lambda: forkserver(agent), "another one")
    second.kill()
    for index in range(2010, 2014):
        await run(leader, 100 + index, "crash")
        assert (await run(leader, index)).outcome == "succeeded"


async def test_modules_that_cannot_be_imported_ahead_change_nothing(leader: FakeLeader, agent: AgentProcess) -> None:
    def makes_modules(then: str) -> int:
        import types
        from importlib.machinery import ModuleSpec

        module = types.ModuleType("made_up")
        module.__spec__ = ModuleSpec("made_up", None)
        sys.modules["made_up"] = module
        if then == "crash":
            os._exit(1)
        return 1

    leader.job(1, function(makes_modules))
    for index in range(5):
        assert value(await run(leader, index)) == 1
        await run(leader, 100 + index, "crash")
