"""Functions in a process of their own, forked from a warm worker."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest
import pytest_asyncio

from depalma.agent.store import empty_folder
from depalma.model import JobSpec, Payload, Report
from depalma.protocol import Assignment
from depalma.testing.fake_leader import AgentProcess, FakeLeader

# What these functions refer to must travel with them: no worker can import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def agent_settings() -> dict[str, Any]:
    return {"output_limit_bytes": 100_000}


@pytest_asyncio.fixture(loop_scope="module")
async def leader(pair: tuple[FakeLeader, AgentProcess]) -> FakeLeader:
    await pair[0].renew()
    empty_folder(pair[1].root / "output")  # the same task numbers come again in every test
    return pair[0]


@pytest.fixture
def agent(pair: tuple[FakeLeader, AgentProcess]) -> AgentProcess:
    return pair[1]


def function(target: Callable[..., Any] | str, **fields: Any) -> JobSpec:
    if isinstance(target, str):
        return JobSpec(kind="function", function=target, grace_s=0.2, **fields)
    data = cloudpickle.dumps(target, 5)
    return JobSpec(kind="function", function_pickle=Payload(inline=data, size_bytes=len(data)), grace_s=0.2, **fields)


def call(*args: Any, **kwargs: Any) -> bytes:
    data: bytes = cloudpickle.dumps((None, args, kwargs), 5)
    return data


def value(report: Report) -> Any:
    assert report.result is not None
    return pickle.loads(report.result.inline)


def exits() -> None:
    os._exit(3)


def crashes() -> None:
    import ctypes

    ctypes.string_at(0)


def kills_itself() -> None:
    os.kill(os.getpid(), 9)


def recurses() -> None:
    recurses()


def leaves() -> None:
    sys.exit("so long")


def cannot_be_pickled() -> Any:
    return (x for x in ())


@pytest.mark.parametrize(
    ("target", "words", "exit_code", "number"),
    [
        (exits, "the task's process died: exit code 3", 3, None),
        (crashes, "the task's process died: signal 11 (SIGSEGV)", None, 11),
        (kills_itself, "the task's process died: signal 9 (SIGKILL)", None, 9),
        (recurses, "RecursionError", None, None),
        (leaves, "SystemExit: so long", None, None),
        (cannot_be_pickled, "the result, of type generator, cannot be pickled", None, None),
    ],
)
async def test_a_bad_function_in_its_own_process_costs_not_even_the_worker(
    leader: FakeLeader,
    agent: AgentProcess,
    target: Callable[[], Any],
    words: str,
    exit_code: int | None,
    number: int | None,
) -> None:
    leader.job(1, function(os.getppid, isolate=True))
    leader.job(2, function(target, isolate=True))
    good = [Assignment(1, index, 1, 1) for index in range(20)]
    bad = [Assignment(2, index, 1, 1) for index in range(3)]

    await leader.assign(*good[:10], *bad, *good[10:])
    reports = [await leader.report((1, index, 1)) for index in range(20)]

    assert len({value(report) for report in reports}) <= 2  # their parents are the workers of the two slots
    for index in range(3):
        report = await leader.report((2, index, 1))
        assert report.outcome == "failed"
        assert words in report.error
        assert (report.exit_code, report.signal) == (exit_code, number)


async def test_one_task_is_one_process_when_asked(leader: FakeLeader, agent: AgentProcess) -> None:
    """Nothing of one is seen by the next, and what it leaves behind dies with it."""

    def pollutes(x: int) -> tuple[int, list[str], str]:
        import subprocess

        seen = [name for name in vars(sys) if name.startswith("left_by_")]
        setattr(sys, f"left_by_{x}", True)
        os.environ["LEFT"] = str(x)
        sys.stdout.write(f"number {x}")
        subprocess.Popen(["setsid", "sleep", "1103"], env={"PATH": os.environ["PATH"]})
        if not os.fork():
            os.setsid()
            if not os.fork():
                os.execvp("sleep", ["sleep", "1103"])
            os._exit(0)
        return os.getpid(), seen, os.environ["DEPALMA_TASK_INDEX"]

    leader.job(1, function(pollutes, isolate=True))
    await leader.assign(*[Assignment(1, index, 1, 1, call(index)) for index in range(8)])
    values = [value(await leader.report((1, index, 1))) for index in range(8)]

    assert len({pid for pid, _, _ in values}) == 8
    assert [(seen, index) for _, seen, index in values] == [([], str(index)) for index in range(8)]
    assert (await leader.ask_output((1, 5, 1))).data == b"number 5"
    assert "sleep 1103" not in agent.below()


async def test_a_slow_import_is_paid_once_also_by_isolated_tasks(leader: FakeLeader, agent: AgentProcess) -> None:
    """What a task's process had to import, the worker imports too, before the next is forked."""
    (agent.root / "code/trees/0/slow_to_import.py").write_text("import time\ntime.sleep(0.5)\nVALUE = 7\n")

    def uses() -> tuple[bool, int]:
        was_there = "slow_to_import" in sys.modules
        import slow_to_import  # type: ignore[import-not-found]

        return was_there, slow_to_import.VALUE

    leader.job(1, function(uses, isolate=True))
    values = []
    for start in range(0, 20, 2):
        await leader.assign(*[Assignment(1, index, 1, 1) for index in (start, start + 1)])
        values += [value(await leader.report((1, index, 1))) for index in (start, start + 1)]

    assert [seven for _, seven in values] == [7] * 20
    # Each of the two workers forks one process that knows nothing yet.
    assert sum(not was_there for was_there, _ in values) <= 2
