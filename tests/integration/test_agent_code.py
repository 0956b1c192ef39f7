"""The code log on a real agent: trees, their proof, and what may not become one."""

from __future__ import annotations

import hashlib
import hmac
import pickle
import sys
from pathlib import Path
from typing import Any

from depalma.archive import pack
from depalma.codetree import CodeEntry, tree_at, tree_digest
from depalma.model import JobSpec, Report
from depalma.protocol import Assignment
from depalma.testing.fake_leader import TOKEN, AgentProcess, FakeLeader, wait_until


def function(target: str) -> JobSpec:
    return JobSpec(kind="function", function=target, grace_s=0.2)


def value(report: Report) -> Any:
    assert report.result is not None
    return pickle.loads(report.result.inline)


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
    await wait_until(lambda: len(leader.hellos) >= 2 and leader.connected, "second hello")

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
