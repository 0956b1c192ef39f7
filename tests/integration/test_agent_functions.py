"""Python functions through a real agent and its warm workers."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import cloudpickle
import psutil
import pytest

from depalma.archive import pack
from depalma.codetree import CodeEntry, tree_at, tree_digest
from depalma.items import pack as pack_items
from depalma.model import JobSpec, Payload, Report
from depalma.protocol import Assignment
from depalma.testing.fake_leader import TOKEN, AgentProcess, FakeLeader, wait_until

# What these functions refer to must travel with them: no worker can import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
async def leader() -> AsyncIterator[FakeLeader]:
    async with FakeLeader() as fake:
        yield fake


@pytest.fixture
async def agent(leader: FakeLeader, tmp_path: Path) -> AsyncIterator[AgentProcess]:
    process = AgentProcess(tmp_path, [leader.url], slots=2)
    process.start()
    try:
        await wait_until(lambda: leader.connected, "connection")
        yield process
    finally:
        await process.stop()


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


async def test_output_is_there_while_it_runs_and_after_a_crash(leader: FakeLeader, agent: AgentProcess) -> None:
    def talks_and_dies(flag: str) -> None:
        import time

        print("before")  # noqa: T201
        while not os.path.exists(flag):
            time.sleep(0.01)
        os._exit(1)

    flag = agent.folder / "flag"
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
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "1101"]]


async def test_what_waits_behind_a_long_task_goes_elsewhere(leader: FakeLeader, agent: AgentProcess) -> None:
    def maybe_waits(flag: str) -> str:
        import time

        while flag and not os.path.exists(flag):
            time.sleep(0.01)
        return flag

    flag = agent.folder / "flag"
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


# ---------------------------------------------------------------- code


def entry(leader: FakeLeader, index: int, path: Path) -> CodeEntry:
    name, kind, data = pack(path)
    digest = leader.put(data)
    return CodeEntry(
        index=index, name=name, kind=kind, digest=digest, size_bytes=len(data), added_at=0.0, added_by="test"
    )


async def test_tasks_run_on_exactly_their_tree(leader: FakeLeader, agent: AgentProcess, tmp_path: Path) -> None:
    entries = []
    for version in range(1, 5):
        package = tmp_path / "mypkg"
        (package / "inner").mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text("")
        (package / "inner/code.py").write_text(f"VERSION = {version}\ndef version(): return VERSION\n")
        entries.append(entry(leader, version, package))
        await leader.code(entries[-1])
    module = tmp_path / "single.py"
    module.write_text("import mypkg.inner.code as c\ndef both(): return 'single', c.VERSION\n")
    entries.append(entry(leader, 5, module))
    await leader.code(entries[-1])

    await wait_until(lambda: leader.acknowledged and leader.acknowledged[-1].index == 5, "acknowledgement")
    acknowledged = leader.acknowledged[-1]
    digests = {index: tree_digest(tree_at(entries, index)) for index in range(6)}
    assert acknowledged.tree_digest == digests[5]
    import hmac

    said = f"h1\x005\x00{digests[5]}".encode()
    assert acknowledged.signature == hmac.new(TOKEN.encode(), said, hashlib.sha256).hexdigest()

    for version in (3, 1, 4, 2):
        leader.job(version, function("mypkg.inner.code:version"), code_index=version, tree_digest=digests[version])
        await leader.assign(Assignment(version, 0, 1, 1))
        report = await leader.report((version, 0, 1))
        assert (value(report), report.code_index, report.code_digest) == (version, version, digests[version])
    leader.job(9, function("single:both"), code_index=5, tree_digest=digests[5])
    await leader.assign(Assignment(9, 0, 1, 1))
    assert value(await leader.report((9, 0, 1))) == ("single", 4)


async def test_commands_see_their_tree(leader: FakeLeader, agent: AgentProcess, tmp_path: Path) -> None:
    module = tmp_path / "tool.py"
    module.write_text("import os; print('tool', os.environ['DEPALMA_CODE_INDEX'])\n")
    first = entry(leader, 1, module)
    await leader.code(first)
    leader.job(1, JobSpec(kind="command", argv=(sys.executable, "-m", "tool")), code_index=1)
    await leader.assign(Assignment(1, 0, 1, 1))

    assert (await leader.report((1, 0, 1))).outcome == "succeeded"
    assert (await leader.ask_output((1, 0, 1))).data == b"tool 1\n"


async def test_code_survives_a_restart(leader: FakeLeader, agent: AgentProcess, tmp_path: Path) -> None:
    module = tmp_path / "kept.py"
    module.write_text("def answer(): return 42\n")
    first = entry(leader, 1, module)
    await leader.code(first)
    await wait_until(lambda: leader.acknowledged, "acknowledgement")
    await agent.stop()
    leader.blobs.clear()

    agent.start()
    await wait_until(lambda: len(leader.hellos) == 2 and leader.connected, "second hello")

    assert leader.hellos[-1].code_index == 1
    leader.job(1, function("kept:answer"), code_index=1)
    await leader.assign(Assignment(1, 0, 1, 1))
    assert value(await leader.report((1, 0, 1))) == 42


async def test_a_gap_or_a_bad_archive_changes_nothing(leader: FakeLeader, agent: AgentProcess, tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    module.write_text("def answer(): return 1\n")
    good = entry(leader, 1, module)
    bad_digest = leader.put(b"this is no archive")
    bad = CodeEntry(index=1, name="m.py", kind="module", digest=bad_digest, size_bytes=1, added_at=0.0, added_by="test")
    outside = CodeEntry(
        index=1, name="../m.py", kind="module", digest=good.digest, size_bytes=1, added_at=0.0, added_by="test"
    )
    gap = CodeEntry(
        index=3, name="m.py", kind="module", digest=good.digest, size_bytes=1, added_at=0.0, added_by="test"
    )

    await leader.code(bad)
    await wait_until(lambda: "not a sound archive" in agent.log.read_text(), "complaint about the archive")
    await leader.code(outside)
    await wait_until(lambda: "is not a plain file name" in agent.log.read_text(), "complaint about the name")
    assert not leader.acknowledged
    await leader.code(good)
    await wait_until(lambda: leader.acknowledged, "acknowledgement")
    await leader.code(gap)
    await wait_until(lambda: "the code log has a gap after 1" in agent.log.read_text(), "complaint about the gap")

    assert [acknowledged.index for acknowledged in leader.acknowledged] == [1]


async def test_code_comes_when_its_blob_does(leader: FakeLeader, agent: AgentProcess, tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    module.write_text("def answer(): return 1\n")
    late = entry(leader, 1, module)
    data = leader.blobs.pop(late.digest)
    await leader.code(late)
    await wait_until(lambda: leader.refused_blobs, "request for the blob")

    leader.put(data)

    await wait_until(lambda: leader.acknowledged, "acknowledgement")


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
