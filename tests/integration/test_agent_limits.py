"""The limits of a task: what exceeds one ends with a reason, whether control groups hold it or it is measured."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import pytest_asyncio

from depalma.agent.store import empty_folder
from depalma.model import ERROR_CODES, JobSpec, Payload
from depalma.protocol import Assignment
from depalma.testing.fake_leader import AgentProcess, FakeLeader, wait_until

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1024 * 1024
PYTHON = sys.executable


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["groups", "measured"])
async def pair(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[FakeLeader, AgentProcess]]:
    """With control groups as far as this machine has them, and without any."""
    async with FakeLeader() as fake:
        process = AgentProcess(tmp_path_factory.mktemp("agent"), [fake.url], slots=2, output_limit_bytes=50_000_000)
        before = os.environ.get("DEPALMA_NO_CGROUPS")
        if request.param == "measured":
            os.environ["DEPALMA_NO_CGROUPS"] = "1"
        try:
            process.start()
        finally:
            os.environ.pop("DEPALMA_NO_CGROUPS", None)
            if before is not None:
                os.environ["DEPALMA_NO_CGROUPS"] = before
        try:
            await wait_until(lambda: fake.connected, "connection")
            limits = fake.hellos[-1].facts.limits
            assert ("cgroup" in limits) == (request.param == "groups" and has_groups()), limits
            yield fake, process
        finally:
            await process.stop()


def has_groups() -> bool:
    """Whether this machine lets us make control groups."""
    return os.geteuid() == 0 and Path("/sys/fs/cgroup").is_dir() and os.access("/sys/fs/cgroup", os.W_OK)


@pytest_asyncio.fixture(loop_scope="module")
async def leader(pair: tuple[FakeLeader, AgentProcess]) -> FakeLeader:
    await pair[0].renew()
    empty_folder(pair[1].root / "output")
    return pair[0]


def script(text: str, **fields: Any) -> JobSpec:
    return JobSpec(kind="command", argv=(PYTHON, "-S", "-c", text), grace_s=0.1, **fields)


def function(target: Callable[..., Any], **fields: Any) -> JobSpec:
    data = cloudpickle.dumps(target, 5)
    return JobSpec(kind="function", function_pickle=Payload(inline=data, size_bytes=len(data)), grace_s=0.1, **fields)


# Each goes on slowly enough to leave something of the machine if the monitor stands still for a moment.
GROWS = "import time\nx = []\nwhile True: x.append(bytearray(4 << 20)); time.sleep(0.01)"
CHILD_GROWS = (
    f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {GROWS!r}]); import time; time.sleep(60)"
)
SPINS = "while True: pass"
CHILDREN_SPIN = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"
FORKS = """
import os, time
while True:
    try:
        if not os.fork():
            time.sleep(60)
        time.sleep(0.005)
    except OSError:
        time.sleep(0.1)
"""
WRITES = "import sys, time\nwhile True: sys.stdout.write('x' * 100000); time.sleep(0.002)"
ERRS = "import sys\nfor _ in range(300): sys.stderr.write('x' * 10000)\nimport time; time.sleep(60)"
FILLS = "import time\nn = 0\nwhile True:\n open(f'f{n}', 'wb').write(bytes(1 << 20)); n += 1; time.sleep(0.005)"

LIMITS: list[tuple[str, dict[str, Any], str, str]] = [
    (GROWS, {"memory_bytes": 64 * MIB}, "memory_limit", "memory limit of 64 MiB exceeded"),
    (CHILD_GROWS, {"memory_bytes": 64 * MIB}, "memory_limit", "memory limit of 64 MiB exceeded"),
    (SPINS, {"cpu_time_s": 0.5}, "cpu_time_limit", "CPU time limit of 0.5 s exceeded"),
    (CHILDREN_SPIN, {"cpu_time_s": 1.0}, "cpu_time_limit", "CPU time limit of 1 s exceeded"),
    (FORKS, {"max_processes": 20}, "process_limit", "limit of 20 processes exceeded"),
    (WRITES, {"max_output_bytes": MIB}, "output_limit", "output limit of 1 MiB exceeded"),
    (ERRS, {"max_output_bytes": MIB}, "output_limit", "output limit of 1 MiB exceeded"),
    (FILLS, {"scratch_bytes": 20 * MIB}, "scratch_limit", "scratch limit of 20 MiB exceeded"),
    ("import time; time.sleep(60)", {"timeout_s": 0.3}, "time_limit", "ran longer than its limit of 0.3 s"),
]


@pytest.mark.parametrize(("text", "limit", "code", "words"), LIMITS)
async def test_a_command_that_exceeds_a_limit_says_which(
    leader: FakeLeader, text: str, limit: dict[str, Any], code: str, words: str
) -> None:
    report = await leader.run(script(text, **limit))

    assert (report.error_code, report.error) == (code, words)
    assert report.outcome == ("timed_out" if code == "time_limit" else "failed")
    assert code in ERROR_CODES
    roomy = {**limit, "timeout_s": 60.0} if code == "time_limit" else limit  # any machine may take 0.3 s to begin
    assert (await leader.run(script("print('fine')", **roomy), job=2)).outcome == "succeeded"


@pytest.mark.parametrize(("text", "limit", "code", "words"), LIMITS)
async def test_a_function_that_exceeds_a_limit_says_which(
    leader: FakeLeader, text: str, limit: dict[str, Any], code: str, words: str
) -> None:
    def runs(source: str) -> None:
        exec(source, {})

    leader.job(1, function(runs, **limit))
    leader.job(2, function(os.getpid))
    await leader.assign(Assignment(1, 0, 1, 1, cloudpickle.dumps((None, (text,), {}), 5)))
    await leader.assign(*[Assignment(2, index, 1, 1) for index in range(20)])
    report = await leader.report((1, 0, 1))

    assert (report.error_code, report.error) == (code, words)
    for index in range(20):
        assert (await leader.report((2, index, 1))).outcome == "succeeded"


async def test_what_stays_within_its_limits_is_not_touched(leader: FakeLeader) -> None:
    text = "import os; x = bytearray(20 << 20); os.fork() or os._exit(0); print('y' * 1000); open('f', 'w').write('z')"
    every = {
        "memory_bytes": 200 * MIB, "cpu_time_s": 20.0, "max_processes": 20, "max_files": 64,
        "max_output_bytes": MIB, "scratch_bytes": MIB,
    }  # fmt: skip

    report = await leader.run(script(text, **every))

    assert (report.outcome, report.error, report.error_code) == ("succeeded", "", "")
    assert (await leader.ask_output((1, 0, 1))).data == b"y" * 1000 + b"\n"


async def test_open_files_are_limited_by_the_kernel(leader: FakeLeader) -> None:
    text = "x = []\ntry:\n while True: x.append(open('/dev/null'))\nexcept OSError as e: print(e.errno, len(x))"
    report = await leader.run(script(text, max_files=32))

    assert report.outcome == "succeeded"
    number, count = (await leader.ask_output((1, 0, 1))).data.split()
    assert number == b"24"
    assert int(count) < 32

    def limit() -> tuple[int, int]:
        import resource

        return resource.getrlimit(resource.RLIMIT_NOFILE)

    isolated = await leader.run(function(limit, max_files=32), job=2)
    assert isolated.result is not None
    assert pickle.loads(isolated.result.inline) == (32, 32)


async def test_a_limited_command_behaves_as_any_other(leader: FakeLeader) -> None:
    """The shell before it is not to be seen: exit codes, signals, missing programs, arguments with anything in them."""
    odd = "a b'\"$(x)\n*"
    shown = await leader.run(
        JobSpec(kind="command", argv=(PYTHON, "-S", "-c", "import sys; print(sys.argv[1:])", odd), max_files=64)
    )
    assert shown.outcome == "succeeded"
    assert (await leader.ask_output((1, 0, 1))).data.decode() == f"{[odd]}\n"
    assert (await leader.run(script("raise SystemExit(7)", max_files=64), job=2)).error == "exit code 7"
    killed = await leader.run(script("import os; os.kill(os.getpid(), 15)", cpu_time_s=5), job=3)
    assert killed.error == "killed by SIGTERM"
    missing = await leader.run(JobSpec(kind="command", argv=("no-such-program",), max_files=64), job=4)
    assert missing.error == "no-such-program: command not found"


async def test_no_limit_leaves_a_process_or_a_group_behind(
    leader: FakeLeader, pair: tuple[FakeLeader, AgentProcess]
) -> None:
    leader.job(1, script(CHILDREN_SPIN, cpu_time_s=0.3, memory_bytes=100 * MIB, max_processes=50))
    await leader.assign(*[Assignment(1, index, 1, 1) for index in range(4)])
    for index in range(4):
        assert (await leader.report((1, index, 1))).error_code == "cpu_time_limit"

    assert not [line for line in pair[1].below() if "os.fork" in line]
    # The folders go with the next task that has limits: a dying process holds them for a moment.
    await leader.run(script("pass", memory_bytes=100 * MIB, max_processes=50, cpu_time_s=5), job=2)
    monitor = pair[1].monitor_pid()

    def groups() -> list[Path]:
        return [one for one in Path("/sys/fs/cgroup").glob(f"**/depalma-{monitor}/k*") if one.is_dir()]

    assert len(groups()) <= 3
