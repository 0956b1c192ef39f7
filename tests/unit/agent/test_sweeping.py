"""What attempts wrote is removed by age, by size, by tag, and it is remembered that it is gone."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from depalma.agent.store import OutputFiles
from depalma.agent.sweeping import Sweeper

DAY_S = 86_400.0


def wrote(output: OutputFiles, job: int, task: int = 0, *, days_ago: float, size_bytes: int = 10) -> Path:
    path = output.final(job, task, 1, "stdout")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * size_bytes)
    at = time.time() - days_ago * DAY_S
    os.utime(path, (at, at))
    return path


def started(job: int, *tags: str) -> Any:
    return SimpleNamespace(job=SimpleNamespace(id=job, spec=SimpleNamespace(tags=tags)))


def sweeper(output: OutputFiles, *, keep_bytes: int = 1 << 30, **days_of_tag: float) -> Sweeper:
    return Sweeper(output, 7.0, keep_bytes, days_of_tag)


def test_what_is_too_old_goes_and_that_is_remembered(tmp_path: Path) -> None:
    """Attempt by attempt: an open job goes on for long. Also by the next agent of the folder."""
    output = OutputFiles(tmp_path)
    old, new = wrote(output, 1, 0, days_ago=8), wrote(output, 1, 1, days_ago=6)
    wrote(output, 2, days_ago=1)

    assert sweeper(output).sweep() == 1

    assert (old.exists(), new.exists()) == (False, True)
    assert output.gone == {1: "older than 7 days"}
    again = OutputFiles(tmp_path)
    assert sweeper(again).sweep() == 0
    assert again.gone == {1: "older than 7 days"}


def test_a_tag_has_its_own_time(tmp_path: Path) -> None:
    """The longest of a job's tags, whatever the others have; without one of these, the usual one."""
    output = OutputFiles(tmp_path)
    times = {"audit": 90.0, "scratch": 0.5}
    first = sweeper(output, **times)
    attempts = (started(1, "audit", "scratch", "x"), started(2, "scratch"), started(3, "x"), started(4, "audit"))
    assert first.noted(attempts) == attempts
    paths = [wrote(output, job, days_ago=days) for job, days in ((1, 80), (2, 1), (3, 1), (4, 91))]

    sweeper(OutputFiles(tmp_path), **times).sweep()

    assert [path.exists() for path in paths] == [True, False, True, False]
    again = OutputFiles(tmp_path)
    sweeper(again, **times)
    assert again.gone == {
        2: "older than 0.5 days (its job has the tag scratch)", 4: "older than 90 days (its job has the tag audit)",
    }  # fmt: skip


def test_no_more_is_kept_than_there_is_room_for(tmp_path: Path) -> None:
    """The jobs whose time would end first give theirs, oldest first, and no more than is needed."""
    output = OutputFiles(tmp_path)
    mine = sweeper(output, keep_bytes=250, audit=90.0)
    mine.noted((started(1, "audit"),))
    kept = wrote(output, 1, days_ago=20, size_bytes=100)
    oldest, newer = (wrote(output, 2, task, days_ago=5 - task, size_bytes=100) for task in (0, 1))
    newest = wrote(output, 3, days_ago=0, size_bytes=40)

    assert mine.sweep() == 1

    assert [path.exists() for path in (kept, oldest, newer, newest)] == [True, False, True, True]
    assert output.gone == {2: "the host keeps 250 bytes of output"}


def test_folders_without_output_go_when_nobody_can_be_about_to_write(tmp_path: Path) -> None:
    output = OutputFiles(tmp_path)
    mine = sweeper(output, audit=90.0)
    mine.noted((started(1, "audit"), started(2, "audit")))
    at = time.time() - 2 * 3600
    os.utime(output.root / "1", (at, at))

    mine.sweep()

    assert sorted(path.name for path in output.root.iterdir()) == ["2"]
    assert output.gone == {}


def test_damaged_notes_are_no_reason_to_stop(tmp_path: Path) -> None:
    output = OutputFiles(tmp_path)
    (output.root / "gone").write_bytes(b"{{")
    path = wrote(output, 1, days_ago=80)
    (path.parent / "tags").write_bytes(b"?")

    assert sweeper(output, audit=90.0).sweep() == 1
