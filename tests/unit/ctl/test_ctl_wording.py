"""Values as people read them."""

from __future__ import annotations

import pytest

from depalma.ctl.wait import ending
from depalma.ctl.wording import ago, clean, count, duration, listed, size


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "-"), (-3, "0.0s"), (0, "0.0s"), (0.44, "0.4s"), (9.94, "9.9s"), (9.96, "10s"), (59.4, "59s"),
        (59.6, "1m00s"), (200, "3m20s"), (3600, "1h00m"), (7500, "2h05m"), (86400, "1d00h"), (1e6, "11d13h"),
    ],
)  # fmt: skip
def test_duration(seconds: float | None, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (200 << 20, "200 MiB"),
        (3 << 40, "3.0 TiB"),
    ],
)
def test_size(amount: int | None, expected: str) -> None:
    assert size(amount) == expected


def test_ago() -> None:
    assert ago(100.0, now=300.0) == "3m20s ago"
    assert ago(None) == "-"


def test_count_and_listed() -> None:
    assert [count(n, "task") for n in (0, 1, 2000)] == ["0 tasks", "1 task", "2,000 tasks"]
    assert count(2, "process") == "2 processes"
    assert listed(["a", "b", "c"]) == "a, b, c"
    assert listed(["a", "b", "c"], limit=2) == "a, b and 1 more"


def test_clean_leaves_nothing_that_moves_a_cursor() -> None:
    hostile = "a\x1b[2J\x1b]0;title\x07b\nc\td\re\u202ef\x9b5m"
    cleaned = clean(hostile)
    assert cleaned.isprintable()
    assert cleaned.startswith("a\\x1b[2J")
    assert clean("Grüße 東京 {}") == "Grüße 東京 {}"


def test_how_a_job_ended_is_said_once():
    tasks = {"total": 1, **dict.fromkeys(("succeeded", "failed", "cancelled", "lost"), 0)}
    view = {
        "id": 3, "state": "cancelled", "tasks": tasks, "submitted_at": 1.0, "finished_at": 3.0,
        "reason": "cancelled: it had not started 1 s after its submission",
    }  # fmt: skip
    assert ending(view) == "job 3 cancelled after 2.0s: it had not started 1 s after its submission"
    assert ending({**view, "reason": "cancelled by ann"}) == "job 3 cancelled after 2.0s: cancelled by ann"
