"""Input files before a task, output files after it, through a real agent; hostile ones too."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import sys
import tarfile
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import pytest_asyncio

from depalma import staging
from depalma.agent.store import empty_folder
from depalma.model import JobSpec, Payload, Report
from depalma.protocol import Assignment
from depalma.testing.fake_leader import AgentProcess, FakeLeader, wait_until

cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def agent_settings() -> dict[str, Any]:
    return {"max_blob_bytes": 2_000_000}


@pytest_asyncio.fixture(loop_scope="module")
async def leader(pair: tuple[FakeLeader, AgentProcess]) -> FakeLeader:
    await pair[0].renew()
    empty_folder(pair[1].root / "output")
    return pair[0]


@pytest.fixture
def agent(pair: tuple[FakeLeader, AgentProcess]) -> AgentProcess:
    return pair[1]


def inputs(leader: FakeLeader, folder: Path, **files: str) -> Payload:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    target = io.BytesIO()
    _, size_bytes = staging.pack(staging.input_members([folder / name for name in files]), target, 1 << 30)
    return Payload(digest=leader.put(target.getvalue()), size_bytes=size_bytes)


def outputs(leader: FakeLeader, report: Report, folder: Path) -> dict[str, str]:
    """Returns what a task left, by name."""
    assert report.outputs is not None, report
    staging.unpack(leader.blobs[report.outputs.digest], folder)
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def sh(text: str, **fields: object) -> JobSpec:
    return JobSpec(kind="command", argv=("sh", "-c", text), grace_s=0.1, **fields)  # type: ignore[arg-type]


async def test_inputs_are_there_and_outputs_come_back(leader: FakeLeader, agent: AgentProcess, tmp_path: Path) -> None:
    given = inputs(leader, tmp_path / "in", a="alpha", b="beta")
    text = 'cd "$DEPALMA_SCRATCH" && cat a b >joined; mkdir -p sub/deep; echo x >sub/deep/one.csv; echo no >other'
    spec = sh(text, inputs=given, outputs=("joined", "**/*.csv"))

    report = await leader.run(spec)

    assert (report.outcome, report.error) == ("succeeded", "")
    assert outputs(leader, report, tmp_path / "out") == {"joined": "alphabeta", "sub/deep/one.csv": "x\n"}
    await wait_until(lambda: not list((agent.root / "staged").iterdir()), "empty folder of staged files")


async def test_functions_have_them_too(leader: FakeLeader, tmp_path: Path) -> None:
    def doubles() -> str:
        with open("a") as file:
            text = file.read()
        with open("b", "w") as file:
            file.write(text * 2)
        return os.environ["DEPALMA_SCRATCH"]

    data = cloudpickle.dumps(doubles, 5)
    given = inputs(leader, tmp_path / "in", a="alpha")
    for job, more in ((1, {}), (2, {"isolate": True})):
        pickled = Payload(inline=data, size_bytes=len(data))
        spec = JobSpec(kind="function", function_pickle=pickled, inputs=given, outputs=("b",), **more)  # type: ignore[arg-type]
        leader.job(job, spec)
        await leader.assign(*[Assignment(job, index, 1, 1) for index in range(6)])
        for index in range(6):
            report = await leader.report((job, index, 1))
            assert report.outcome == "succeeded", report.error
            assert report.result is not None
            assert os.path.isabs(pickle.loads(report.result.inline))
            assert outputs(leader, report, tmp_path / f"{job}-{index}") == {"b": "alphaalpha"}


async def test_each_attempt_has_a_fresh_folder_and_nothing_of_a_failed_one(leader: FakeLeader, tmp_path: Path) -> None:
    given = inputs(leader, tmp_path / "in", a="alpha")
    text = 'n=$DEPALMA_ATTEMPT; cat a; echo "$n" >>a; echo "$n" >"made$n"; [ "$n" -gt 1 ]'
    leader.job(1, sh(text, inputs=given, outputs=("*",)))
    await leader.assign(Assignment(1, 0, 1, 1))
    first = await leader.report((1, 0, 1))
    await leader.assign(Assignment(1, 0, 2, 2))
    second = await leader.report((1, 0, 2))

    assert (first.outcome, first.outputs) == ("failed", None)
    assert (await leader.ask_output((1, 0, 2))).data == b"alpha"
    assert outputs(leader, second, tmp_path / "out") == {"a": "alpha2\n", "made2": "2\n"}


async def test_the_next_task_of_a_slot_sees_none_of_them(leader: FakeLeader, tmp_path: Path) -> None:
    given = inputs(leader, tmp_path / "in", a="alpha")
    leader.job(1, JobSpec(kind="command", argv=("no-such-program",), inputs=given))
    leader.job(2, sh("ls -A"))
    await leader.assign(*[Assignment(1, index, 1, 1) for index in range(2)])
    for index in range(2):
        assert "not found" in (await leader.report((1, index, 1))).error
    await leader.assign(*[Assignment(2, index, 1, 1) for index in range(4)])
    for index in range(4):
        await leader.report((2, index, 1))
        assert (await leader.ask_output((2, index, 1))).data == b""


@pytest.mark.parametrize(
    ("text", "globs", "words"),
    [
        ("true", ("result.txt",), "there is no 'result.txt' in the scratch folder"),
        ("ln -s /etc/passwd stolen", ("stolen",), "'stolen': neither a file nor a folder"),
        ("ln -s /etc folder", ("*",), "'folder': neither a file nor a folder"),
        ("mkdir d; ln -s /etc/passwd d/x", ("d",), "'d/x': neither a file nor a folder"),
        ("mkfifo pipe", ("*",), "'pipe': neither a file nor a folder"),
        ("head -c 3000000 /dev/urandom >large", ("large",), "packed, the files have more than 2000000 bytes"),
        ("touch \"$(printf 'a\\nb')\"", ("*",), "a name with a control sign"),
        ("touch \"$(printf 'a\\377')\"", ("*",), "bytes that are not UTF-8"),
    ],
)
async def test_outputs_that_cannot_be_kept_fail_the_task(
    leader: FakeLeader, text: str, globs: tuple[str, ...], words: str
) -> None:
    report = await leader.run(sh(text, outputs=globs))

    assert (report.outcome, report.error_code) == ("failed", "bad_outputs")
    assert "the output files cannot be kept: " in report.error
    assert words in report.error
    assert report.outputs is None


async def test_a_pattern_that_nothing_matches_is_no_error(leader: FakeLeader) -> None:
    report = await leader.run(sh("touch a.txt", outputs=("*.csv",)))

    assert (report.outcome, report.outputs) == ("succeeded", None)


def hostile(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        tar.addfile(info)
    return gzip.compress(plain.getvalue(), mtime=0)


@pytest.mark.parametrize(
    "data",
    [
        hostile("../outside"),
        hostile("/etc/absolute"),
        hostile("link", tarfile.SYMTYPE, "/etc/passwd"),
        hostile("hard", tarfile.LNKTYPE, "/etc/passwd"),
        hostile("device", tarfile.CHRTYPE),
        b"this is no archive",
        gzip.compress(b"neither is this" * 1000, mtime=0),
    ],
    # Not the bytes themselves: every process that collects the tests must find the same names.
    ids=["outside", "absolute", "symbolic link", "hard link", "device", "no archive", "no tar"],
)
async def test_hostile_inputs_end_the_task_and_write_nothing(
    leader: FakeLeader, agent: AgentProcess, data: bytes
) -> None:
    before = sorted(path.name for path in agent.root.iterdir())
    spec = sh("ls -A", inputs=Payload(digest=leader.put(data), size_bytes=len(data)))

    report = await leader.run(spec)

    assert (report.outcome, report.error_code) == ("failed", "bad_inputs")
    assert report.error.startswith("the input files cannot be used: ")
    assert sorted(path.name for path in agent.root.iterdir()) == before
    assert not [path for path in (agent.root / "staged").rglob("*") if path.is_file()]


async def test_inputs_that_no_master_has_send_the_task_back(leader: FakeLeader) -> None:
    leader.job(1, sh("true", inputs=Payload(digest="0" * 64, size_bytes=1)))
    await leader.assign(Assignment(1, 0, 1, 1))
    await wait_until(lambda: leader.refused_blobs > 2, "requests for it")

    await leader.kill([(1, 0, 1)])

    assert (await leader.report((1, 0, 1))).outcome == "cancelled"
