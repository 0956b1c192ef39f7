"""The folder of staged files: what a sweep takes, and what it must leave alone."""

from __future__ import annotations

import tarfile
import threading
from pathlib import Path

import pytest

from depalma import archive, staging
from depalma.agent.stage import Stage


def test_sweep_takes_what_belongs_to_no_attempt(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 1000)
    for name in ("1.0.1", "1.1.1", "1.1.1.done", "1.2.1.done", "of.somebody.else"):
        (tmp_path / "staged" / name).mkdir()

    stage.sweep({(1, 0, 1), (1, 2, 1)})

    assert sorted(path.name for path in (tmp_path / "staged").iterdir()) == ["1.0.1", "1.2.1.done", "of.somebody.else"]


def test_sweep_leaves_alone_what_is_being_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It happened: a sweep between the first file of an attempt's inputs and the last took their folder away."""
    stage = Stage(tmp_path, 1000)
    (tmp_path / "a").write_text("alpha")
    packed = tmp_path / "archive"
    with packed.open("wb") as file:
        staging.pack([("a", tmp_path / "a"), ("b", tmp_path / "a")], file, 1 << 20)
    reached, go_on = threading.Event(), threading.Event()
    write = archive._write

    def slow(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
        write(tar, member, path)
        reached.set()
        assert go_on.wait(30.0)

    monkeypatch.setattr(archive, "_write", slow)
    unpacking = threading.Thread(target=stage.place, args=(packed, (1, 0, 1)))
    unpacking.start()
    try:
        assert reached.wait(30.0)
        stage.sweep({(1, 0, 1)})
    finally:
        go_on.set()
        unpacking.join()

    assert sorted(path.name for path in (tmp_path / "staged" / "1.0.1").iterdir()) == ["a", "b"]
