"""Python functions through a real agent and its warm workers."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import pytest_asyncio

from depalma.agent.store import empty_folder
from depalma.alternatives import Alternative
from depalma.items import pack as pack_items
from depalma.model import JobSpec, Payload, Report
from depalma.protocol import Assignment
from depalma.testing.fake_leader import AgentProcess, FakeLeader, wait_until

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


async def test_a_function_returns_its_value(leader: FakeLeader, agent: AgentProcess) -> None:
    report = await leader.run(function(lambda a, b=0: {"sum": a + b}), argument=call(2, b=3))

    assert (report.outcome, report.error) == ("succeeded", "")
    assert value(report) == {"sum": 5}


async def test_no_argument_means_no_arguments(leader: FakeLeader, agent: AgentProcess) -> None:
    assert value(await leader.run(function(lambda: "called"))) == "called"


async def test_an_argument_may_bring_its_own_function(leader: FakeLeader, agent: AgentProcess) -> None:
    spec = JobSpec(kind="function")
    own = cloudpickle.dumps((lambda x: x * 2, (21,), {}), 5)

    assert value(await leader.run(spec, job=1, argument=own)) == 42
    assert value(await leader.run(spec, job=2, argument=pickle.dumps(("os.path:basename", ("/a/b",), {})))) == "b"


async def test_a_failure_brings_exception_and_traceback(leader: FakeLeader, agent: AgentProcess) -> None:
    def fails(x: int) -> None:
        raise ValueError(f"no {x} please")

    report = await leader.run(function(fails), argument=call(7))

    assert (report.outcome, report.exit_code) == ("failed", None)
    assert report.error.rstrip().splitlines()[-1] == "ValueError: no 7 please"
    assert "in fails" in report.error
    assert "worker.py" not in report.error
    error = value(report)
    assert isinstance(error, ValueError)
    assert str(error) == "no 7 please"


async def test_errors_that_are_not_unicode_or_too_long_are_shown(leader: FakeLeader, agent: AgentProcess) -> None:
    def fails(text: str) -> None:
        raise ValueError(text)

    odd = await leader.run(function(fails), job=1, argument=call("\ud800"))
    assert odd.error.endswith("ValueError: \\ud800\n")
    long = await leader.run(function(fails), job=2, argument=call("ä" * 200_000))
    assert long.error.startswith("…ä")
    assert len(long.error.encode()) <= 65_536


async def test_an_exception_that_cannot_travel_is_replaced(leader: FakeLeader, agent: AgentProcess) -> None:
    def fails() -> None:
        error = RuntimeError("has a generator")
        error.part = (x for x in ())  # type: ignore[attr-defined]
        raise error

    error = value(await leader.run(function(fails)))

    assert type(error) is RuntimeError
    assert "has a generator" in str(error)


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
    ("target", "words"),
    [
        (exits, "worker process died: exit code 3"),
        (crashes, "worker process died: signal 11 (SIGSEGV)"),
        (kills_itself, "worker process died: signal 9 (SIGKILL)"),
        (recurses, "RecursionError"),
        (leaves, "SystemExit: so long"),
        (cannot_be_pickled, "the result, of type generator, cannot be pickled"),
    ],
)
async def test_a_bad_function_costs_itself_only(
    leader: FakeLeader, agent: AgentProcess, target: Callable[[], Any], words: str
) -> None:
    leader.job(1, function(lambda x: x))
    leader.job(2, function(target))
    good = [Assignment(1, index, 1, 1, call(index)) for index in range(200)]
    bad = [Assignment(2, index, 1, 1) for index in range(3)]

    await leader.assign(*good[:100], *bad, *good[100:])
    reports = [await leader.report((1, index, 1)) for index in range(200)]

    assert [value(report) for report in reports] == list(range(200))
    for index in range(3):
        report = await leader.report((2, index, 1))
        assert report.outcome == "failed"
        assert words in report.error


async def test_a_result_that_is_too_large_is_refused(tmp_path: Path) -> None:
    async with FakeLeader() as other:
        process = AgentProcess(tmp_path / "own", [other.url], slots=2, max_blob_bytes=1_000_000)
        process.start()
        try:
            await wait_until(lambda: other.connected, "connection")
            large = await other.run(function("builtins:bytes"), job=1, argument=call(2_000_000))
            small = await other.run(function("builtins:bytes"), job=2, argument=call(100))
        finally:
            await process.stop()

    assert large.outcome == "failed"
    assert "the result has 2000" in large.error
    assert "allowed: 1000000" in large.error
    assert small.outcome == "succeeded"


async def test_endless_output_of_a_function_is_cut(leader: FakeLeader, agent: AgentProcess) -> None:
    def talks(seconds: float) -> None:
        import time

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sys.stdout.write("x" * 10_000)

    report = await leader.run(function(talks), argument=call(1.5))

    assert report.outcome == "succeeded"
    assert (await leader.ask_output((1, 0, 1))).size_bytes == 100_000


async def test_what_a_function_prints_is_its_own(leader: FakeLeader, agent: AgentProcess) -> None:
    def talks(x: int) -> None:
        print("number", x)  # noqa: T201
        os.system("echo from a child")
        if x % 2:
            sys.stderr.write("odd\n")

    leader.job(1, function(talks))
    await leader.assign(*[Assignment(1, index, 1, 1, call(index)) for index in range(20)])
    for index in range(20):
        await leader.report((1, index, 1))

        output = await leader.ask_output((1, index, 1))
        assert output.data.decode() == f"number {index}\nfrom a child\n"
        assert (await leader.ask_output((1, index, 1), "stderr")).data == (b"odd\n" if index % 2 else b"")


async def test_output_is_there_while_it_runs_and_after_a_crash(leader: FakeLeader, tmp_path: Path) -> None:
    def talks_and_dies(flag: str) -> None:
        import time

        print("before")  # noqa: T201
        while not os.path.exists(flag):
            time.sleep(0.01)
        os._exit(1)

    flag = tmp_path / "flag"
    leader.job(1, function(talks_and_dies))
    await leader.assign(Assignment(1, 0, 1, 1, call(str(flag))))
    await wait_until(lambda: (1, 0, 1) in leader.started, "start")
    while not (live := await leader.ask_output((1, 0, 1))).data:
        pass  # it has started, and is about to print
    flag.touch()
    await leader.report((1, 0, 1))

    assert (live.data, live.ended) == (b"before\n", False)
    after = await leader.ask_output((1, 0, 1))
    assert (after.data, after.ended) == (b"before\n", True)


async def test_surroundings_are_those_of_the_task(leader: FakeLeader, agent: AgentProcess, tmp_path: Path) -> None:
    def looks() -> dict[str, str]:
        names = ("DEPALMA_JOB_ID", "DEPALMA_TASK_INDEX", "DEPALMA_ATTEMPT", "DEPALMA_FENCE", "MINE", "DEPALMA_SCRATCH")
        seen = {name: os.environ.get(name, "") for name in names}
        open("left", "w").close()
        return {**seen, "cwd": os.getcwd(), "scratch": ",".join(os.listdir(os.environ["DEPALMA_SCRATCH"]))}

    leader.job(1, function(looks, env={"MINE": "1"}))
    leader.job(2, function(looks, cwd=str(tmp_path)))
    await leader.assign(Assignment(1, 5, 2, 9), Assignment(1, 6, 1, 10), Assignment(2, 0, 1, 11))

    first = value(await leader.report((1, 5, 2)))
    assert (first["DEPALMA_JOB_ID"], first["DEPALMA_TASK_INDEX"], first["DEPALMA_ATTEMPT"]) == ("1", "5", "2")
    assert (first["DEPALMA_FENCE"], first["MINE"]) == ("9", "1")
    assert first["cwd"] == first["DEPALMA_SCRATCH"]
    assert first["scratch"] == "left"
    assert value(await leader.report((1, 6, 1)))["scratch"] == "left"
    other = value(await leader.report((2, 0, 1)))
    assert (other["MINE"], other["cwd"]) == ("", str(tmp_path))


async def test_workers_stay_warm(leader: FakeLeader, agent: AgentProcess) -> None:
    leader.job(1, function(os.getpid))
    pids = set()
    for index in range(30):
        await leader.assign(Assignment(1, index, 1, 1))
        pids.add(value(await leader.report((1, index, 1))))

    assert len(pids) <= 2


async def test_cancel_and_time_limit_end_their_worker_only(leader: FakeLeader, agent: AgentProcess) -> None:
    def sleeps() -> None:
        import subprocess

        subprocess.run(["sleep", "1101"])

    leader.job(1, function(sleeps))
    leader.job(2, function(sleeps, timeout_s=0.4))
    await leader.assign(Assignment(1, 0, 1, 1), Assignment(2, 0, 1, 1))
    await wait_until(lambda: (1, 0, 1) in leader.started, "start")
    await leader.kill([(1, 0, 1)], reason="enough")

    assert (await leader.report((1, 0, 1))).outcome == "cancelled"
    assert (await leader.report((2, 0, 1))).outcome == "timed_out"
    assert "sleep 1101" not in agent.below()


async def test_what_waits_behind_a_long_task_goes_elsewhere(leader: FakeLeader, tmp_path: Path) -> None:
    def maybe_waits(flag: str) -> str:
        import time

        while flag and not os.path.exists(flag):
            time.sleep(0.01)
        return flag

    flag = tmp_path / "flag"
    leader.job(1, function(maybe_waits))
    await leader.assign(*[Assignment(1, index, 1, 1, call("")) for index in range(50)])
    await leader.report((1, 49, 1))
    tasks = [Assignment(1, 100 + index, 1, 1, call(str(flag) if index == 0 else "")) for index in range(60)]
    await leader.assign(*tasks)

    for index in range(1, 60):
        assert (await leader.report((1, 100 + index, 1))).outcome == "succeeded"
    assert (1, 100, 1) not in leader.reports
    flag.touch()
    assert value(await leader.report((1, 100, 1))) == str(flag)


async def test_large_values_go_beside_the_log(leader: FakeLeader, agent: AgentProcess) -> None:
    function_data = cloudpickle.dumps(lambda data: data + b"!", 5)
    digest = leader.put(function_data)
    spec = JobSpec(kind="function", function_pickle=Payload(digest=digest, size_bytes=len(function_data)))
    arguments = leader.put(pack_items([call(b"a" * 10), call(b"b" * 1_000_000)]))
    alone = leader.put(call(b"c" * 300_000))
    leader.job(1, spec)
    await leader.assign(
        Assignment(1, 0, 1, 1, None, arguments, 0),
        Assignment(1, 1, 1, 1, None, arguments, 1),
        Assignment(1, 2, 1, 1, None, alone, -1),
        Assignment(1, 3, 1, 1, call(b"d" * 60_000)),
    )

    assert value(await leader.report((1, 0, 1))) == b"a" * 10 + b"!"
    for index, length in ((1, 1_000_000), (2, 300_000), (3, 60_000)):
        result = (await leader.report((1, index, 1))).result
        assert result is not None
        assert len(pickle.loads(leader.blobs[result.digest])) == length + 1
    await wait_until(lambda: not list((agent.root / "blobs/out").iterdir()), "empty folder of results")


@pytest.mark.parametrize(
    ("fields", "argument"),
    [
        ({"function": "no.such.module:f"}, None),
        ({"function": "os:no_such_name"}, None),
        ({"function": "not a reference"}, None),
        ({"function": ""}, None),
        ({"function": "os:getpid"}, b"this is no pickle"),
        ({"function": "os:getpid"}, pickle.dumps(("only", "two"))),
        ({"function": "os:getpid", "env": {"A": "a\0b"}}, None),
        ({"function": "os:getpid", "env": {"A=B": "x"}}, None),
        ({"function": "os:getpid", "cwd": "/no/such/folder"}, None),
        ({"function": "os:getpid", "cwd": "a\0b"}, None),
        ({"function_pickle": Payload(inline=b"garbage", size_bytes=7)}, None),
    ],
)
async def test_a_poisonous_job_costs_itself_only(
    leader: FakeLeader, agent: AgentProcess, fields: dict[str, Any], argument: bytes | None
) -> None:
    incarnation = leader.hellos[-1].incarnation
    leader.job(1, JobSpec(kind="function", **fields))
    leader.job(2, function("os:getpid"))
    await leader.assign(Assignment(1, 0, 1, 1, argument), Assignment(2, 0, 1, 1))

    report = await leader.report((1, 0, 1))

    assert report.outcome == "failed"
    assert report.error
    assert (await leader.report((2, 0, 1))).outcome == "succeeded"
    assert leader.hellos[-1].incarnation == incarnation


async def test_a_job_may_have_much_to_say(leader: FakeLeader, agent: AgentProcess) -> None:
    def looks() -> int:
        return len(os.environ["MUCH"])

    leader.job(1, function(looks, env={"MUCH": "x" * 100_000}))
    leader.job(2, function(looks, env={"MUCH": "x"}))
    await leader.assign(Assignment(1, 0, 1, 1), Assignment(1, 1, 1, 1), Assignment(2, 0, 1, 1))

    assert value(await leader.report((1, 0, 1))) == value(await leader.report((1, 1, 1))) == 100_000
    assert value(await leader.report((2, 0, 1))) == 1


async def test_a_wrong_interpreter_is_refused(leader: FakeLeader, agent: AgentProcess) -> None:
    report = await leader.run(function(lambda: 1, python="2.7"))

    assert report.outcome == "failed"
    assert "made by Python 2.7" in report.error


async def test_a_function_that_forks_does_not_double_its_worker(leader: FakeLeader, agent: AgentProcess) -> None:
    def forks() -> str:
        return "child" if os.fork() == 0 else "parent"

    leader.job(1, function(forks))
    await leader.assign(*[Assignment(1, index, 1, 1) for index in range(10)])

    for index in range(10):
        assert value(await leader.report((1, index, 1))) == "parent"


async def test_equal_large_results_are_one_blob(leader: FakeLeader, agent: AgentProcess) -> None:
    leader.job(1, function("builtins:bytes"))
    await leader.assign(*[Assignment(1, index, 1, 1, call(50_000)) for index in range(40)])

    digests = set()
    for index in range(40):
        report = await leader.report((1, index, 1))
        assert report.outcome == "succeeded", report.error
        assert report.result is not None
        digests.add(report.result.digest)
    assert len(digests) == 1
    assert digests <= leader.blobs.keys()


def seen_gpus() -> tuple[str | None, int, str | None]:
    return os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid(), os.environ.get("DEPALMA_GPU_SHARE")


def seen_way() -> tuple[str | None, str | None, str | None]:
    names = ("DEPALMA_ALTERNATIVE", "DEPALMA_CPUS", "DEPALMA_GPU_SHARE")
    return tuple(map(os.environ.get, names))  # type: ignore[return-value]


async def test_functions_of_one_job_run_as_different_alternatives(leader: FakeLeader, agent: AgentProcess) -> None:
    """Also one after the other in the same worker, which is told of each way by itself."""
    ways = (Alternative(cpus=0.5), Alternative(gpus=0.5))
    leader.job(1, function(seen_way, cpus=1, alternatives=ways))
    for task, way in enumerate((0, 1, 2, 1, 0)):
        await leader.assign(Assignment(1, task, 1, 1, call(), gpus=(0,) if way == 2 else (), alternative=way))
        seen = value(await leader.report((1, task, 1)))
        assert seen == (str(way), ("1", "0.5", "1")[way], "0.5" if way == 2 else None)
    assert value(await leader.run(function(seen_way), job=2, argument=call()))[0] is None


async def test_functions_with_gpus_have_processes_of_their_own(leader: FakeLeader, agent: AgentProcess) -> None:
    """A library holds on to the GPUs that it saw first, so no process sees those of another task."""
    leader.job(1, function(seen_gpus, gpus=1))
    await leader.assign(Assignment(1, 0, 1, 1, call(), gpus=(0,)), Assignment(1, 1, 1, 1, call(), gpus=(1,)))
    first, second = value(await leader.report((1, 0, 1))), value(await leader.report((1, 1, 1)))
    leader.job(3, function(seen_gpus, gpus=0.5))
    await leader.assign(Assignment(3, 0, 1, 1, call(), gpus=(1,)))
    part = value(await leader.report((3, 0, 1)))
    plain = value(await leader.run(function(seen_gpus), job=2, argument=call()))

    assert (first[0], second[0]) == ("0", "1")
    assert first[1] != second[1]
    assert (part[0], part[2]) == ("1", "0.5")
    assert (plain[0], plain[2]) == (os.environ.get("CUDA_VISIBLE_DEVICES"), None)
