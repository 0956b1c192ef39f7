"""Output files of a task that means harm to its agent: what it leaves is refused, and soon."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from depalma import staging
from depalma.agent.stage import Stage
from depalma.archive import ArchiveError


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """The scratch folder of attempt 1.0.1, which has ended."""
    (tmp_path / "blobs/out").mkdir(parents=True)
    Stage(tmp_path, 1 << 20)
    folder = tmp_path / "staged/1.0.1.done"
    folder.mkdir()
    return folder


def collect(done: Path, *globs: str) -> None:
    stage = Stage.__new__(Stage)
    stage._root, stage._out, stage._limit_bytes = done.parent, done.parent.parent / "blobs/out", 1 << 20
    stage.collect((1, 0, 1), globs)


def test_a_folder_in_a_folder_a_thousand_times_is_refused(done: Path) -> None:
    """It ended the agent, and then the next one that the task was given to."""
    here = os.open(done, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("a", dir_fd=here)
        below = os.open("a", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)

    with pytest.raises(ArchiveError, match="deeper than 40 folders"):
        collect(done, "a")

    assert not done.exists()


def test_a_file_of_holes_is_refused_before_it_is_read(done: Path) -> None:
    with open(done / "holes", "wb") as file:
        os.ftruncate(file.fileno(), 1 << 42)
    begin_s = time.thread_time()

    with pytest.raises(ArchiveError, match=r"'holes': .* more than 4294967296 bytes"):
        collect(done, "holes")

    assert time.thread_time() - begin_s < 2.0


def test_more_files_than_are_kept_are_not_even_looked_at(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "LIMITS", staging.Limits(members=10))
    (done / "many").mkdir()
    for number in range(11):
        (done / "many" / str(number)).touch()

    with pytest.raises(ArchiveError, match="more than 10 files"):
        staging.output_members(done, ["many"])


def test_a_pattern_that_can_match_in_many_ways_is_no_work(done: Path) -> None:
    path = done
    for _ in range(30):
        path /= "a"
    path.mkdir(parents=True)
    begin_s = time.thread_time()

    assert staging.output_members(done, ["**/a/" * 12 + "b"]) == []

    assert time.thread_time() - begin_s < 2.0
