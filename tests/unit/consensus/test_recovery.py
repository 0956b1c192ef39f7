"""A directory that is put in the place of another: whatever moment the power goes off in, one of the two is there."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from depalma.consensus import recovery
from depalma.consensus.identity import Identity
from depalma.consensus.snapshot_format import Header
from depalma.testing import PowerCut

OLD, NEW = Header(10, 1, 9), Header(recovery.INDEX_JUMP + 10, recovery.TERM_JUMP + 1, 9)


def found(directory: Path, header: Header) -> Path | None:
    directory.mkdir(exist_ok=True)
    return recovery.found(directory, Identity("m1", "lab"), header, [b"state"], aside="before")


def snapshots(directory: Path) -> list[str]:
    return sorted(name for name in os.listdir(directory) if name.endswith(".snap"))


def name_of(header: Header) -> str:
    return f"snapshot-{header.index:020d}.snap"


def test_what_was_there_is_moved_aside(tmp_path: Path) -> None:
    assert found(tmp_path / "raft", OLD) is None
    moved = found(tmp_path / "raft", NEW)

    assert moved == tmp_path / "raft.before"
    assert (snapshots(moved), snapshots(tmp_path / "raft")) == ([name_of(OLD)], [name_of(NEW)])
    assert sorted(os.listdir(tmp_path)) == ["raft", "raft.before"]


@pytest.mark.parametrize("steps", range(6))
def test_at_every_moment_there_is_a_state(tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A master that is started between two steps on no state would begin an empty cluster."""
    found(tmp_path / "raft", OLD)
    left = steps

    def step(act: Any) -> Any:
        def acting(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if not left:
                raise PowerCut
            left -= 1
            return act(*arguments, **options)

        return acting

    with monkeypatch.context() as patch:
        for module, name in ((os, "rename"), (recovery.shutil, "rmtree"), (recovery, "_exchange"), (recovery, "_sync")):
            patch.setattr(module, name, step(getattr(module, name)), raising=False)
        try:
            found(tmp_path / "raft", NEW)
        except PowerCut:
            pass
    assert recovery.has_state(tmp_path / "raft")

    found(tmp_path / "raft", NEW)  # it can be done again
    assert snapshots(tmp_path / "raft") == [name_of(NEW)]
    kept = [snapshots(folder) for folder in tmp_path.iterdir() if folder.name.startswith("raft.before")]
    assert [name_of(OLD)] in kept


def test_where_names_cannot_be_exchanged_they_are_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def renameat2(self, *_: object) -> int:
            return -1

    monkeypatch.setattr(recovery, "_libc", Old())
    monkeypatch.setattr("ctypes.get_errno", lambda: errno.EINVAL)
    found(tmp_path / "raft", OLD)
    moved = found(tmp_path / "raft", NEW)

    assert moved is not None
    assert (snapshots(moved), snapshots(tmp_path / "raft")) == ([name_of(OLD)], [name_of(NEW)])
    shutil.rmtree(moved)
    assert os.listdir(tmp_path) == ["raft"]
