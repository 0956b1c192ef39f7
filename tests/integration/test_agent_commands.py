"""Commands through a real agent, its monitor and a fake leader."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from depalma.agent.execution import ANNOUNCE_AFTER_S
from depalma.agent.store import empty_folder
from depalma.alternatives import Alternative
from depalma.model import JobSpec
from depalma.protocol import Assignment
from depalma.testing.fake_leader import AgentProcess, FakeLeader, wait_until

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


def command(*argv: str, **fields: object) -> JobSpec:
    return JobSpec(kind="command", argv=argv, **{"grace_s": 0.2, **fields})  # type: ignore[arg-type]


async def text(leader: FakeLeader, job: int = 1, stream: str = "stdout") -> str:
    return (await leader.ask_output((job, 0, 1), stream)).data.decode()


async def test_a_command_succeeds_and_its_output_is_served(leader: FakeLeader, agent: AgentProcess) -> None:
    report = await leader.run(command("sh", "-c", "echo out; echo err >&2"))

    assert (report.outcome, report.exit_code, report.signal) == ("succeeded", 0, None)
    assert report.started_at is not None
    assert report.finished_at is not None
    assert report.started_at <= report.finished_at
    assert await text(leader) == "out\n"
    assert await text(leader, stream="stderr") == "err\n"
    assert (await leader.ask_output((1, 0, 1), offset=2)).data == b"t\n"
    assert (await leader.ask_output((1, 0, 1))).ended


async def test_a_command_that_writes_nothing_leaves_no_file(leader: FakeLeader, agent: AgentProcess) -> None:
    await leader.run(command("true"))

    assert not list((agent.root / "output").glob("1/0.1.*"))
    assert await text(leader) == ""


@pytest.mark.parametrize(
    ("argv", "code", "number", "words"),
    [
        (["sh", "-c", "exit 3"], 3, None, "exit code 3"),
        (["sh", "-c", "kill -9 $$"], None, 9, "SIGKILL"),
        (["no-such-program-anywhere"], 127, None, "no-such-program-anywhere: command not found"),
        (["/no/such/file"], 127, None, "not found"),
        (["/etc/passwd"], 126, None, "Permission denied"),
        (["true", "a\0b"], 126, None, "cannot be started"),
    ],
)
async def test_failures_say_what_happened(
    leader: FakeLeader, agent: AgentProcess, argv: list[str], code: int | None, number: int | None, words: str
) -> None:
    report = await leader.run(command(*argv))

    assert (report.outcome, report.exit_code, report.signal) == ("failed", code, number)
    assert words in report.error


@pytest.mark.parametrize(
    "fields",
    [
        {"argv": ()},
        {"argv": ("",)},
        {"env": {"A": "a\0b"}},
        {"env": {"": "x"}},
        {"env": {"A=B": "x"}},
        {"cwd": "a\0b"},
        {"stdout": "a\0b"},
        {"stdout": "/no/such/folder/file"},
        {"argv": ("echo", "x" * 200_000)},
        {"env": {"A": "x" * 3_000_000}},
    ],
)
async def test_a_poisonous_command_costs_itself_only(
    leader: FakeLeader, agent: AgentProcess, fields: dict[str, Any]
) -> None:
    spec = JobSpec(kind="command", **{"argv": ("true",), **fields})
    incarnation = leader.hellos[-1].incarnation
    leader.job(1, spec)
    leader.job(2, command("true"))
    await leader.assign(Assignment(1, 0, 1, 1), Assignment(2, 0, 1, 1))

    report = await leader.report((1, 0, 1))

    assert report.outcome == "failed"
    assert report.error
    assert leader.hellos[-1].incarnation == incarnation  # neither agent nor monitor began anew
    assert (await leader.report((2, 0, 1))).outcome == "succeeded"


async def test_names_that_are_not_unicode_are_shown_escaped(leader: FakeLeader, agent: AgentProcess) -> None:
    failed = await leader.run(command("{}"), argument=b"no-such-\xff")
    assert failed.error == r"no-such-\udcff: command not found"

    leader.job(2, command("sh", "-c", "sleep 1081; true", "{}"))
    await leader.assign(Assignment(2, 0, 1, 1, b"\xff"))
    await wait_until(lambda: sleeping("1081"), "task")
    commands = [view.command for view in (await leader.ask_processes()).processes]
    assert r"sh -c sleep 1081; true \udcff" in commands
    await leader.kill([(2, 0, 1)])


async def test_a_missing_working_folder_is_named(leader: FakeLeader, agent: AgentProcess) -> None:
    report = await leader.run(command("true", cwd="/no/such/folder"))

    assert report.outcome == "failed"
    assert "/no/such/folder" in report.error


async def test_arguments_are_filled_in_or_appended(leader: FakeLeader, agent: AgentProcess) -> None:
    await leader.run(command("echo", "a{}b", "{}"), job=1, argument="käse".encode())
    await leader.run(command("echo", "first"), job=2, argument=b"last")

    assert await text(leader, 1) == "akäseb käse\n"
    assert await text(leader, 2) == "first last\n"


async def test_the_environment_is_that_of_the_contract(leader: FakeLeader, agent: AgentProcess) -> None:
    others = dict.fromkeys(("DEPALMA_JOB_ID", "DEPALMA_CODE_DIR", "DEPALMA_ATTEMPT", "DEPALMA_CPUS"), "1")
    spec = command("sh", "-c", "env; pwd", env={"MINE": "yes", **others}, cpus=2)  # as of a task that submits it
    leader.job(7, spec)
    await leader.assign(Assignment(7, 3, 2, 99))
    await leader.report((7, 3, 2))

    lines = (await leader.ask_output((7, 3, 2))).data.decode().splitlines()
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    expected = {
        "DEPALMA_JOB_ID": "7", "DEPALMA_TASK_INDEX": "3", "DEPALMA_ATTEMPT": "2", "DEPALMA_FENCE": "99",
        "DEPALMA_HOST": "h1", "DEPALMA_CPUS": "2", "DEPALMA_CODE_INDEX": "0", "MINE": "yes",
        "PATH": os.environ["PATH"],
    }  # fmt: skip
    assert expected.items() <= values.items()
    assert lines[-1] == values["DEPALMA_SCRATCH"]
    assert Path(values["DEPALMA_CODE_DIR"]).is_dir()


async def test_the_scratch_folder_is_empty_for_every_task(leader: FakeLeader, agent: AgentProcess) -> None:
    spec = command("sh", "-c", "ls -A; mkdir -p deep/er; touch deep/er/file left")
    leader.job(1, spec)
    await leader.assign(*[Assignment(1, index, 1, 1) for index in range(6)])
    for index in range(6):
        await leader.report((1, index, 1))
        assert (await leader.ask_output((1, index, 1))).data == b""

    await wait_until(lambda: not list((agent.root / "trash").iterdir()), "empty trash")


async def test_output_files_of_the_users_choice(leader: FakeLeader, agent: AgentProcess, tmp_path: Path) -> None:
    spec = command("sh", "-c", "echo o; echo e >&2", stdout=str(tmp_path / "o.%j.%t"), stderr="e", cwd=str(tmp_path))
    await leader.run(spec)

    assert (tmp_path / "o.1.0").read_text() == "o\n"
    assert (tmp_path / "e").read_text() == "e\n"


async def test_endless_output_is_cut_and_the_task_goes_on(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    go_on = tmp_path / "go_on"
    leader.job(1, command("sh", "-c", f"yes & while ! test -e {go_on}; do sleep 0.05; done; kill $!; echo end >&2"))
    await leader.assign(Assignment(1, 0, 1, 1))
    spool = agent.root / "spool"

    before = agent.log.read_text().count("is cut at 100000 bytes")
    await wait_until(lambda: agent.log.read_text().count("is cut at 100000 bytes") > before, "cut")
    go_on.touch()
    report = await leader.report((1, 0, 1))
    assert report.outcome == "succeeded"
    assert await text(leader, stream="stderr") == "end\n"
    assert all(path.stat().st_size == 0 for path in spool.iterdir())


async def test_a_time_limit_ends_the_whole_tree(leader: FakeLeader, agent: AgentProcess) -> None:
    report = await leader.run(command("sh", "-c", "sleep 987 & setsid sleep 986 & wait", timeout_s=0.3))

    assert report.outcome == "timed_out"
    assert "0.3 s" in report.error
    assert not sleeping("987", "986")


_here: list[str] = []  #: where the tasks of these tests run, which tells them from those of other runs


@pytest.fixture(autouse=True)
def here(agent: AgentProcess) -> None:
    _here[:] = [str(agent.folder)]


def sleeping(*arguments: str) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        line = process.info["cmdline"] or []
        ours = (process.info["cwd"] or "").startswith(_here[0])
        if ours and len(line) == 2 and line[0] == "sleep" and line[1] in arguments:
            found.append(process.pid)
    return found


HIDES = """
trap '' TERM
sleep 1001 &
setsid sleep 1002 &
(setsid sh -c 'trap "" TERM HUP; (env -i sleep 1003 &); (sleep 1004 &)' &)
echo ready
wait
"""


async def test_cancelling_reaches_whatever_hides(leader: FakeLeader, agent: AgentProcess) -> None:
    leader.job(1, command("sh", "-c", HIDES))
    await leader.assign(Assignment(1, 0, 1, 1))
    numbers = ("1001", "1002", "1003", "1004")
    await wait_until(lambda: len(sleeping(*numbers)) == 4, "tree of four")

    await leader.kill([(1, 0, 1)], reason="enough")
    report = await leader.report((1, 0, 1))

    assert (report.outcome, report.error) == ("cancelled", "enough")
    assert report.signal == signal.SIGKILL  # it ignored SIGTERM
    assert not sleeping(*numbers)


async def test_what_a_task_leaves_behind_dies_with_it(leader: FakeLeader, agent: AgentProcess) -> None:
    report = await leader.run(command("sh", "-c", "sleep 1011 & setsid sleep 1012 & (setsid sleep 1013 &) ; true"))

    assert report.outcome == "succeeded"
    assert not sleeping("1011", "1012", "1013")


async def test_an_orphan_of_one_task_does_not_end_with_another(leader: FakeLeader, agent: AgentProcess) -> None:
    leader.job(1, command("sh", "-c", "(setsid sleep 1021 &); sleep 1022"))
    await leader.assign(Assignment(1, 0, 1, 1))
    await wait_until(lambda: len(sleeping("1021", "1022")) == 2, "both")
    for number in range(2, 6):
        await leader.run(command("true"), job=number)

    assert len(sleeping("1021", "1022")) == 2
    await leader.kill([(1, 0, 1)])
    await leader.report((1, 0, 1))
    assert not sleeping("1021", "1022")


async def test_forgotten_attempts_die_without_a_report(leader: FakeLeader, agent: AgentProcess) -> None:
    leader.job(1, command("sleep", "1031"))
    await leader.assign(Assignment(1, 0, 1, 1))
    await wait_until(lambda: sleeping("1031"), "task")

    await leader.forget([(1, 0, 1)])
    await wait_until(lambda: not sleeping("1031"), "end of the task")
    await leader.run(command("true"), job=2)

    assert (1, 0, 1) not in leader.reports


async def test_processes_are_shown_as_the_system_sees_them(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    waits = tmp_path / "waits"  # what stands between the shell and its grandchild has ended then
    leader.job(1, command("sh", "-c", f"sleep 1041 & (setsid sleep 1042 &); : >{waits}; wait"))
    leader.job(2, command("sleep", "1043"))
    await leader.assign(Assignment(1, 0, 1, 1), Assignment(2, 0, 1, 1))
    await wait_until(lambda: waits.exists() and len(sleeping("1041", "1042", "1043")) == 3, "three")

    views = (await leader.ask_processes()).processes
    of_one = (await leader.ask_processes(1)).processes

    assert {(view.task, view.command) for view in views if "sleep 1" in view.command} >= {
        ("1.0", "sleep 1041"), ("1.0", "sleep 1042"), ("2.0", "sleep 1043"),
    }  # fmt: skip
    assert {view.task for view in of_one} == {"1.0"}
    assert len(of_one) == 3
    await leader.kill([(1, 0, 1), (2, 0, 1)])


async def test_long_tasks_are_announced(leader: FakeLeader, agent: AgentProcess) -> None:
    """With when they started. That others are not is for the core's own tests: here any may take long."""
    before = time.time()
    leader.job(1, command("sleep", "1051"))
    await leader.assign(Assignment(1, 0, 1, 1))
    at = await wait_until(lambda: leader.started.get((1, 0, 1)), "announcement")

    assert before - 0.05 < at < time.time() - ANNOUNCE_AFTER_S + 0.05  # of two clocks, read one after the other
    await wait_until(lambda: sleeping("1051"), "what was announced")
    await leader.kill([(1, 0, 1)])


async def test_waiting_attempts_go_back_after_a_while(leader: FakeLeader, agent: AgentProcess) -> None:
    leader.gives_again = False
    leader.job(1, command("sleep", "1061"))
    await leader.assign(*[Assignment(1, index, 1, 1) for index in range(3)])

    report = await leader.report((1, 2, 1))

    assert report.outcome == "returned"
    assert report.started_at is None
    await leader.kill([(1, 0, 1), (1, 1, 1)])


async def test_what_waits_behind_a_long_command_goes_elsewhere(leader: FakeLeader, agent: AgentProcess) -> None:
    """Short commands are given to a slot several at a time; one that turns out to be long must not hold up the rest."""
    script = "test -z {} || sleep {}"
    leader.job(1, command("sh", "-c", script))
    await leader.assign(*[Assignment(1, index, 1, 1, b"") for index in range(40)])
    await leader.report((1, 39, 1))
    await leader.assign(*[Assignment(1, 100 + index, 1, 1, b"" if index else b"1071") for index in range(40)])

    for index in range(1, 40):
        assert (await leader.report((1, 100 + index, 1))).outcome == "succeeded"
    await wait_until(lambda: len(sleeping("1071")) == 1, "the long one")
    await leader.kill([(1, 100, 1)])
    assert (await leader.report((1, 100, 1))).outcome == "cancelled"


async def test_cancelling_many_at_once_ends_each_once(leader: FakeLeader, agent: AgentProcess) -> None:
    leader.job(1, command("sh", "-c", "sleep 0.01"))
    leader.job(3, command("sleep", "1091"))
    refs, long = [(1, index, 1) for index in range(100)], [(3, index, 1) for index in range(100)]
    await leader.assign(*[Assignment(*ref, 1) for ref in refs])
    await leader.report((1, 20, 1))
    refs += long
    await asyncio.gather(leader.assign(*[Assignment(*ref, 1) for ref in long]), leader.kill(refs))

    outcomes = [(await leader.report(ref)).outcome for ref in refs]

    assert set(outcomes) == {"succeeded", "cancelled"}
    assert len([report for frame in leader.report_frames for report in frame.reports]) == 200
    assert (await leader.run(command("true"), job=2)).outcome == "succeeded"


async def test_a_task_sees_the_gpus_that_it_has_to_itself(leader: FakeLeader, agent: AgentProcess) -> None:
    """And one that asked for none finds what the agent itself has."""
    names = "${CUDA_VISIBLE_DEVICES-unset} ${DEPALMA_GPUS-unset} ${CUDA_DEVICE_ORDER-unset} ${DEPALMA_GPU_SHARE-whole}"
    show = f'echo "{names}"'
    leader.job(1, command("sh", "-c", show, gpus=2))
    await leader.assign(Assignment(1, 0, 1, 1, gpus=(1, 3)), Assignment(1, 1, 1, 1))
    await leader.report((1, 0, 1))
    await leader.report((1, 1, 1))

    assert await text(leader) == "1,3 1,3 PCI_BUS_ID whole\n"
    outside, order = (os.environ.get(name, "unset") for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"))
    assert (await leader.ask_output((1, 1, 1), "stdout")).data.decode() == f"{outside} unset {order} whole\n"
    leader.job(2, command("sh", "-c", show, gpus=0.25))
    await leader.assign(Assignment(2, 0, 1, 2, gpus=(3,)))
    await leader.report((2, 0, 1))
    assert (await leader.ask_output((2, 0, 1), "stdout")).data.decode() == "3 3 PCI_BUS_ID 0.25\n"


async def test_a_task_runs_as_the_alternative_that_it_was_given(leader: FakeLeader, agent: AgentProcess) -> None:
    """It is told so, has the CPUs and the limits of that one, and shares nothing of it with others of its job."""
    show = 'echo "${DEPALMA_ALTERNATIVE-none} $DEPALMA_CPUS ${CUDA_VISIBLE_DEVICES-none}"'
    ways = (Alternative(cpus=2), Alternative(cpus=0.5, gpus=0.5))
    leader.job(1, command("sh", "-c", show, gpus=1, cpus=1, alternatives=ways))
    leader.job(2, command("sh", "-c", show))
    await leader.assign(
        Assignment(1, 0, 1, 1, gpus=(1,)), Assignment(1, 1, 1, 1, alternative=1),
        Assignment(1, 2, 1, 1, gpus=(0,), alternative=2), Assignment(2, 0, 1, 1),
    )  # fmt: skip
    seen = {}
    for ref in ((1, 0, 1), (1, 1, 1), (1, 2, 1), (2, 0, 1)):
        assert (await leader.report(ref)).outcome == "succeeded"
        seen[ref[:2]] = (await leader.ask_output(ref, "stdout")).data.decode().split()[:3]
    outside = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
    assert seen == {
        (1, 0): ["0", "1", "1"], (1, 1): ["1", "2", outside], (1, 2): ["2", "0.5", "0"], (2, 0): ["none", "1", outside],
    }  # fmt: skip


async def test_tasks_that_need_half_a_cpu_run_two_on_a_slot(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    """All at once, each in a scratch folder of its own; a fifth one waits until there is room."""
    script = 'pwd >"$0/$DEPALMA_TASK_INDEX"; while ! test -e "$0/release"; do sleep 0.02; done'
    leader.job(1, command("sh", "-c", script, str(tmp_path), cpus=0.5))
    await leader.assign(*[Assignment(1, task, 1, 1) for task in range(5)])
    await wait_until(lambda: sum(bool(file.read_text()) for file in tmp_path.iterdir()) == 4, "four tasks at once")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0", "1", "2", "3"]
    assert len({file.read_text() for file in tmp_path.iterdir()}) == 4
    (tmp_path / "release").touch()
    for task in range(5):
        assert (await leader.report((1, task, 1))).outcome == "succeeded"
