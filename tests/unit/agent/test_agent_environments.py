"""Which environments stay, and how they are named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from depalma.agent.codefolder import CodeFolder
from depalma.agent.environments import Environments


@pytest.fixture
def folder(tmp_path: Path) -> CodeFolder:
    return CodeFolder(tmp_path)


def made(folder: CodeFolder, *needs: str, used_s: float) -> str:
    name = Environments.lock_of(needs)
    mark = folder.root / "envs" / name / ".complete"
    mark.parent.mkdir(parents=True)
    mark.touch()
    os.utime(mark, (used_s, used_s))
    return name


def environments(folder: CodeFolder, keep: int) -> Environments:
    return Environments(folder, None, None, keep)  # type: ignore[arg-type]  # nothing is installed


def test_the_latest_used_stay_and_those_in_use(folder: CodeFolder) -> None:
    names = [made(folder, f"needs {n}", used_s=float(n)) for n in range(6)]
    kept = environments(folder, 2)

    assert sorted(kept.evict({names[1]})) == sorted([names[0], names[2], names[3]])
    assert sorted(path.name for path in (folder.root / "envs").iterdir()) == sorted([names[1], names[4], names[5]])
    assert kept.evict(()) == [names[1]]
    assert kept.evict(()) == []


def test_what_was_not_finished_is_removed_at_the_start(folder: CodeFolder) -> None:
    good = made(folder, "a", used_s=1.0)
    (folder.root / "envs" / "half" / "bin").mkdir(parents=True)

    environments(folder, 1)

    assert [path.name for path in (folder.root / "envs").iterdir()] == [good]


def test_equal_requirements_are_one_environment() -> None:
    assert Environments.lock_of(("a", "b")) == Environments.lock_of(("a", "b"))
    assert len({Environments.lock_of(needs) for needs in ((), ("a",), ("b",), ("a", "b"))}) == 4
