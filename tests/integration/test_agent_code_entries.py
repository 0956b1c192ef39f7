"""What the code log may hold beside modules and folders, on a real agent; and what happens to it there."""

from __future__ import annotations

import hashlib
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from depalma.archive import pack
from depalma.codetree import CodeEntry, command_digest, sign, tree_at, tree_digest
from depalma.model import JobSpec, Report
from depalma.protocol import Assignment, CodeAcknowledged
from depalma.testing.fake_leader import TOKEN, AgentProcess, FakeLeader, wait_until


@pytest.fixture(scope="module")
def agent_settings() -> dict[str, Any]:
    return {"environments_kept": 1}


def entry(leader: FakeLeader, index: int, path: Path, requirements: str = "") -> CodeEntry:
    name, kind, data = pack(path)
    needs = leader.put(requirements.encode()) if requirements else ""
    return CodeEntry(
        index=index, name=name, kind=kind, digest=leader.put(data), size_bytes=len(data), added_at=0.0,
        added_by="test", requirements=needs,
    )  # fmt: skip


def command(index: int, *argv: str, timeout_s: float = 0.0) -> CodeEntry:
    return CodeEntry(
        index=index, name="command", kind="command", digest=command_digest(argv, timeout_s), size_bytes=0,
        added_at=0.0, added_by="test", argv=argv, timeout_s=timeout_s,
    )  # fmt: skip


def module(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text(text)
    return path


def wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    """Makes a wheel that pip takes."""
    info = f"{name}-{version}.dist-info"
    everything = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    everything[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*everything, f"{info}/RECORD"])
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in everything.items():
            archive.writestr(member, text)
    return path


def text_of(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:  # it is being put in place
        return ""


async def value_of(leader: FakeLeader, job: int, target: str, index: int) -> Any:
    leader.job(job, JobSpec(kind="function", function=target, grace_s=0.2), code_index=index)
    await leader.assign(Assignment(job, 0, 1, 1))
    report: Report = await leader.report((job, 0, 1), for_s=60.0)
    assert report.outcome == "succeeded", report
    assert report.result is not None
    return pickle.loads(report.result.inline)


async def reached(leader: FakeLeader, index: int, *, for_s: float = 60.0) -> CodeAcknowledged:
    def look() -> CodeAcknowledged | None:
        return next((said for said in reversed(leader.acknowledged) if said.index == index), None)

    said: CodeAcknowledged = await wait_until(look, f"acknowledgement of {index}", for_s=for_s)
    return said


async def test_every_entry_is_acknowledged_and_signed(leader: FakeLeader, agent: AgentProcess, tmp_path: Path) -> None:
    """Also when several come at once, and once more when the leader sends them once more."""
    entries = [entry(leader, n, module(tmp_path, f"m{n}", f"N = {n}\n")) for n in range(1, 6)]
    await leader.code(*entries)
    await reached(leader, 5)

    assert [said.index for said in leader.acknowledged] == [1, 2, 3, 4, 5]
    for said in leader.acknowledged:
        tree = tree_digest(tree_at(entries, said.index))
        assert (said.tree_digest, said.signature) == (tree, sign(TOKEN, "h1", said.index, tree))
    leader.acknowledged.clear()
    await leader.code(*entries[2:])
    await reached(leader, 5)
    assert [said.index for said in leader.acknowledged] == [3, 4, 5]


@pytest.mark.long
async def test_an_entry_that_cannot_be_had_holds_up_only_what_comes_after(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    """And is named, although it came together with the others."""
    entries = [entry(leader, n, module(tmp_path, f"m{n}", f"N = {n}\n")) for n in range(1, 6)]
    data = leader.blobs.pop(entries[3].digest)
    await leader.code(*entries)
    await wait_until(lambda: leader.problems, "the problem", for_s=60.0)

    assert (leader.problems[0].index, leader.problems[0].exit_code) == (4, None)
    assert "cannot be fetched" in leader.problems[0].reason
    assert [said.index for said in leader.acknowledged] == [1, 2, 3]
    leader.put(data)
    await reached(leader, 5)
    assert [said.index for said in leader.acknowledged] == [1, 2, 3, 4, 5]


async def test_a_command_runs_once_in_its_place(leader: FakeLeader, agent: AgentProcess, tmp_path: Path) -> None:
    """What comes after it waits; its exit code and its last lines go with the acknowledgement."""
    runs, gate = tmp_path / "runs", tmp_path / "gate"
    script = f"import helper; echo=open({str(runs)!r}, 'a').write('x'); print('said', helper.N, 'on', end=' ')"
    shell = f'{sys.executable} -c "{script}"; while [ ! -e {gate} ]; do sleep 0.05; done; echo $DEPALMA_HOST'
    await leader.code(
        entry(leader, 1, module(tmp_path, "helper", "N = 7\n")),
        command(2, "sh", "-c", shell),
        entry(leader, 3, module(tmp_path, "later", "def f(): return 3\n")),
    )
    await wait_until(lambda: runs.exists() and runs.read_text() == "x", "the command's trace")
    assert await value_of(leader, 1, "helper:N.__int__", 1) == 7  # tasks go on meanwhile
    assert [said.index for said in leader.acknowledged] == [1]
    gate.touch()
    said = await reached(leader, 2)
    assert (said.exit_code, said.output) == (0, "said 7 on h1\n")
    await reached(leader, 3)

    agent.signal(9)
    await agent.exit_code()
    agent.start()
    await wait_until(lambda: len(leader.hellos) >= 2 and leader.connected, "the agent again")
    assert leader.hellos[-1].code_index == 3
    assert runs.read_text() == "x"


async def test_a_command_that_fails_holds_the_host_there(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    """It is said once, and tried again only when somebody asks."""
    runs, good = tmp_path / "runs", tmp_path / "good"
    failing = command(1, "sh", "-c", f"echo x >> {runs}; echo it broke >&2; test -e {good}")
    await leader.code(failing, entry(leader, 2, module(tmp_path, "m", "N = 1\n")))
    await wait_until(lambda: leader.problems, "the problem")
    said = leader.problems[0]
    assert (said.index, said.exit_code, said.output) == (1, 1, "it broke\n")
    assert "exit code 1" in said.reason
    await leader.code(entry(leader, 3, module(tmp_path, "n", "N = 1\n")))  # no reason to run it again
    beats = len(leader.beats)
    await wait_until(lambda: len(leader.beats) > beats + 5, "heartbeats")
    assert (runs.read_text(), leader.acknowledged, len(leader.problems)) == ("x\n", [], 1)

    good.touch()
    await leader.code(failing, again=True)
    await reached(leader, 3)
    assert runs.read_text() == "x\nx\n"


async def test_a_command_that_takes_too_long_is_killed(leader: FakeLeader, agent: AgentProcess, tmp_path: Path) -> None:
    """With all that it started."""
    await leader.code(command(1, "sh", "-c", "trap '' TERM; setsid sleep 600 & wait", timeout_s=0.5))
    await wait_until(lambda: leader.problems, "the problem")

    assert (leader.problems[0].exit_code, leader.problems[0].reason) == (124, "command 1: timed out after 0.5 s")
    await wait_until(lambda: not any("sleep 600" in line for line in agent.below()), "end of the sleeper")


async def test_a_command_that_was_interrupted_runs_again(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    """Its host died in the middle: nobody knows how far it came."""
    runs, gate = tmp_path / "runs", tmp_path / "gate"
    wanted = command(1, "sh", "-c", f"echo x >> {runs}; while [ ! -e {gate} ]; do sleep 0.05; done")
    await leader.code(wanted)
    await wait_until(lambda: runs.exists() and runs.read_text() == "x\n", "the command's trace")
    agent.signal(9)
    await agent.exit_code()
    agent.start()
    await wait_until(lambda: len(leader.hellos) >= 2 and leader.connected, "the agent again")
    gate.touch()
    await leader.code(wanted)

    assert (await reached(leader, 1)).exit_code == 0
    assert runs.read_text() == "x\nx\n"


async def test_a_command_is_not_failed_by_an_orderly_stop(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    """It is ended with the agent, and runs again with the next one."""
    trace = tmp_path / "trace"
    await leader.code(command(1, "sh", "-c", f"echo $$ >> {trace}; [ $(wc -l < {trace}) = 2 ] || sleep 600"))
    await wait_until(lambda: trace.exists() and trace.read_text(), "the command's trace")
    await agent.stop()
    assert not Path(f"/proc/{trace.read_text().strip()}").exists()
    assert leader.problems == []

    agent.start()
    await wait_until(lambda: len(leader.hellos) >= 2 and leader.connected, "the agent again")
    await leader.code(command(1, "sh", "-c", f"echo $$ >> {trace}; [ $(wc -l < {trace}) = 2 ] || sleep 600"))
    await reached(leader, 1)


async def test_wheels_are_imported_beside_each_other(leader: FakeLeader, agent: AgentProcess, tmp_path: Path) -> None:
    """Two may share a namespace; data files come along."""
    first = wheel(tmp_path, "one", "1.0", {"space/one.py": "X = 1\n", "plain.py": "def f(): return 'plain'\n"})
    second = wheel(tmp_path, "two", "1.0", {"space/two.py": "from space.one import X\ndef f(): return X + 1\n"})
    entries = [entry(leader, 1, first), entry(leader, 2, second)]
    await leader.code(*entries)
    await reached(leader, 2)

    assert (entries[0].name, entries[0].kind) == ("one", "wheel")
    assert await value_of(leader, 1, "space.two:f", 2) == 2
    assert await value_of(leader, 2, "plain:f", 2) == "plain"


async def test_a_rollback_brings_the_old_tree(leader: FakeLeader, agent: AgentProcess, tmp_path: Path) -> None:
    entries = [entry(leader, n, module(tmp_path, "m", f"def f(): return {n}\n")) for n in (1, 2)]
    entries.append(msgspec.structs.replace(entries[0], index=3, rollback_of=1))
    await leader.code(*entries)

    assert (await reached(leader, 3)).tree_digest == tree_digest(tree_at(entries, 1))
    assert await value_of(leader, 1, "m:f", 3) == 1


# ---------------------------------------------------------------- requirements


@pytest.mark.long
async def test_requirements_make_an_environment(leader: FakeLeader, agent: AgentProcess, tmp_path: Path) -> None:
    """For functions and commands of that index, and not for others; the newest few are kept."""
    for version in ("1.0", "2.0"):
        wheel(tmp_path, "tinydep", version, {"tinydep.py": f"VERSION = '{version}'\n"})
    mine = module(tmp_path, "mine", "def f():\n    import tinydep, sys\n    return tinydep.VERSION, sys.prefix\n")
    needs = f"--no-index\n--find-links {tmp_path}\ntinydep=={{}}\n"
    await leader.code(entry(leader, 1, mine, needs.format("1.0")))
    await reached(leader, 1, for_s=120.0)
    version, prefix = await value_of(leader, 1, "mine:f", 1)
    assert (version, Path(prefix).parent) == ("1.0", agent.root / "code/envs")
    spec = JobSpec(kind="command", argv=("python", "-c", "import tinydep; print(tinydep.VERSION)"))
    leader.job(2, spec, code_index=1)
    await leader.assign(Assignment(2, 0, 1, 1))
    assert (await leader.report((2, 0, 1))).outcome == "succeeded"
    assert (await leader.ask_output((2, 0, 1))).data == b"1.0\n"

    await leader.code(command(2, "python", "-c", "import tinydep; print(tinydep.VERSION)"))
    assert (await reached(leader, 2)).output == "1.0\n"
    await leader.code(entry(leader, 3, mine, needs.format("2.0")))
    await reached(leader, 3, for_s=120.0)
    assert (await value_of(leader, 3, "mine:f", 3))[0] == "2.0"
    assert (await value_of(leader, 4, "mine:f", 1))[0] == "1.0"


@pytest.mark.long
async def test_requirements_that_cannot_be_had_are_a_problem_of_the_host(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    """It says what the installer said, goes on with what it has, and comes on once it can."""
    good = entry(leader, 1, module(tmp_path, "m", "def f(): return 1\n"))
    needs = f"--no-index\n--find-links {tmp_path}\nnosuchdep==1.0\n"
    bad = entry(leader, 2, module(tmp_path, "m", "def f(): return 2\n"), needs)
    await leader.code(good, bad)
    await wait_until(lambda: leader.problems, "the problem", for_s=120.0)

    assert leader.problems[0].index == 2
    assert "cannot be installed: exit code 1" in leader.problems[0].reason
    assert "nosuchdep" in leader.problems[0].reason  # the installer's own words
    assert [said.index for said in leader.acknowledged] == [1]
    assert await value_of(leader, 1, "m:f", 1) == 1
    wheel(tmp_path, "nosuchdep", "1.0", {"nosuchdep.py": ""})
    await leader.code(bad, again=True)
    await reached(leader, 2, for_s=120.0)


# ---------------------------------------------------------------- damage


async def test_files_that_somebody_changed_are_put_right(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    """One byte, a file too many, a link that leads elsewhere: in the tree that tasks use."""
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("def f(): return 1\n")
    added = entry(leader, 1, package)
    await leader.code(added)
    await reached(leader, 1)
    assert await value_of(leader, 1, "pkg:f", 1) == 1
    stored = agent.root / "code/store" / added.digest / "__init__.py"
    linked = agent.root / "code/trees/1/pkg"

    stored.write_text("def f(): return 9\n")
    await wait_until(lambda: text_of(stored) == "def f(): return 1\n", "the right file")
    (stored.parent / "more.py").write_text("")
    await wait_until(lambda: not (stored.parent / "more.py").exists(), "the right folder")
    (linked.parent / "evil.py").write_text("")
    await wait_until(lambda: not (linked.parent / "evil.py").exists(), "the right tree")
    (tmp_path / "astray").symlink_to("/tmp")
    (tmp_path / "astray").rename(linked)  # at once: a link that is missing is put right, too
    await wait_until(lambda: (linked / "__init__.py").exists(), "the right link")

    assert await value_of(leader, 2, "pkg:f", 1) == 1
    stored.parent.rename(tmp_path / "gone")
    await wait_until(stored.exists, "the folder")  # a worker that starts before that has nothing to import
    assert await value_of(leader, 3, "pkg:f", 1) == 1


async def test_the_folder_of_another_log_is_thrown_away(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    """The leader sends its whole log when a tree is not its own; the agent sees where they part."""
    await leader.code(*(entry(leader, n, module(tmp_path, f"other{n}", "N = 1\n")) for n in (1, 2)))
    await reached(leader, 2)
    leader.acknowledged.clear()
    ours = [entry(leader, n, module(tmp_path, f"ours{n}", "def f(): return 5\n")) for n in (1, 2, 3)]
    await leader.code(*ours)
    await wait_until(lambda: len(leader.hellos) >= 2 and leader.connected, "a new connection")
    assert leader.hellos[-1].code_index == 0
    await leader.code(*ours)

    assert (await reached(leader, 3)).tree_digest == tree_digest(tree_at(ours, 3))
    assert await value_of(leader, 1, "ours1:f", 3) == 5


async def test_a_transfer_goes_on_after_the_agent_was_killed(
    leader: FakeLeader, agent: AgentProcess, tmp_path: Path
) -> None:
    """It has what came; only the rest is sent."""
    package = tmp_path / "big"
    package.mkdir()
    blob = hashlib.sha256(b"seed").digest()
    noise = bytearray()
    while len(noise) < 2_000_000:
        blob = hashlib.sha256(blob).digest()
        noise += blob
    (package / "data").write_bytes(noise)
    added = entry(leader, 1, package)
    leader.cut_after_bytes = 600_000  # however often it asks, it gets no further
    await leader.code(added)
    part = agent.root / "code" / f"archive-{added.digest}.part"
    await wait_until(lambda: part.exists() and part.stat().st_size >= 400_000, "a part of it")
    agent.signal(9)
    await agent.exit_code()
    leader.cut_after_bytes = 0
    leader.ranges.clear()
    agent.start()
    await wait_until(lambda: len(leader.hellos) >= 2 and leader.connected, "the agent again")
    await leader.code(added)
    await reached(leader, 1)

    assert int(leader.ranges[0].rstrip("-")) >= 400_000
    assert (agent.root / "code/trees/1/big/data").read_bytes() == noise
    assert not part.exists()
