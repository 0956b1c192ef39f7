"""The live view as a picture: at any size nothing overflows, and what matters is on it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from depalma.ctl.live import Snapshot, bar, fit, render, share_rows

SIZES = [(60, 15), (80, 24), (200, 60), (120, 30), (119, 10), (40, 8), (20, 5), (10, 3), (1, 1)]


def host(number: int, state: str = "up", **changes: Any) -> dict[str, Any]:
    load = {"load1": 1.0, "load5": 1.0, "load15": 1.0, "cpu_percent": 63.2, "memory_percent": 100.0}
    return {
        "name": f"h{number}", "state": state, "slots": 12, "running": 8, "code_index": 1234,
        "load": load, **changes,
    }  # fmt: skip


def job(number: int, state: str = "running", **changes: Any) -> dict[str, Any]:
    tasks = {
        "total": 1600, "queued": 600, "running": 10, "succeeded": 980, "failed": 7, "cancelled": 0, "lost": 3,
    }  # fmt: skip
    return {
        "id": number, "state": state, "name": "words", "tasks": tasks, "started_at": 1000.0, "finished_at": None,
        **changes,
    }  # fmt: skip


def overview(hosts: int = 40, masters: int = 5, events: int = 20) -> dict[str, Any]:
    roles = ["leader", "follower", "unreachable", "candidate", "follower"]
    return {
        "cluster": "lab", "leader": "m1", "term": 7, "index": 1234567,
        "masters": [
            {
                "id": f"m{n + 1}", "role": roles[n], "term": 7, "applied_index": 1234567, "commit_index": 1234567,
                "last_contact_s": None if n == 0 else 0.04,
            }
            for n in range(masters)
        ],
        "hosts": [host(n) for n in range(hosts)],
        "tasks": {"queued": 1234567, "running": 24, "assigned": 3, "succeeded": 99, "failed": 4, "lost": 1, "held": 2},
        "jobs": {"running": 2},
        "rates": {"finished_per_s": 1234.5, "submitted_per_s": 0.25},
        "events": [
            {
                "index": n, "at": 1000.0 + n, "kind": "task.finished", "job": 42, "task": n, "host": "h1",
                "detail": {"state": "succeeded", "reason": "x" * 300},
            }
            for n in range(events)
        ],
    }  # fmt: skip


NASTY = job(9, name="\x1b[31mred\nnext line 東京" * 20)
SNAPSHOTS = {
    "full": Snapshot(overview(), [job(n) for n in range(50, 0, -1)], 2000.0),
    "empty": Snapshot(overview(0, 1, 0), [], 2000.0),
    "waiting": Snapshot(None, [], 2000.0, trouble="no master answers: " + "x" * 500),
    "leaderless": Snapshot(overview(), [job(1)], 2000.0, without_leader_s=0.4, trouble="m2 refused " * 30),
    "nasty": Snapshot(overview(), [NASTY], 2000.0, paused=True),
    "help": Snapshot(overview(), [], 2000.0, help=True),
}


def test_a_host_with_gpus_shows_how_busy_they_are() -> None:
    gpus = [{"name": "A", "busy_percent": 90.0}, {"name": "A", "busy_percent": 30.0}]
    busy = host(1, load={"cpu_percent": 5.0, "memory_percent": 6.0, "gpus": gpus})
    picture = lines_of(Snapshot({**overview(0, 1, 0), "hosts": [busy, host(2)]}, [], 2000.0), 100, 20)
    assert "cpu   5% mem   6% gpu  60%" in next(line for line in picture if " h1 " in line)
    assert "gpu" not in next(line for line in picture if " h2 " in line)


def lines_of(snapshot: Snapshot, width: int, height: int) -> list[str]:
    """Returns the picture as a terminal of that width would show it."""
    console = Console(width=width, height=height, file=io.StringIO(), color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(render(snapshot, width, height))
    return captured.get().rstrip("\n").split("\n")


@pytest.mark.parametrize("name", SNAPSHOTS)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_nothing_overflows(name: str, width: int, height: int) -> None:
    lines = lines_of(SNAPSHOTS[name], width, height)
    assert len(lines) <= height
    assert max(cell_len(line) for line in lines) <= width
    assert all(line.isprintable() for line in lines)


def test_same_snapshot_same_picture() -> None:
    assert lines_of(SNAPSHOTS["full"], 100, 30) == lines_of(SNAPSHOTS["full"], 100, 30)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 60), (60, 15)])
def test_what_matters_is_on_it(width: int, height: int) -> None:
    text = "\n".join(lines_of(SNAPSHOTS["full"], width, height))
    for words in (
        "leader m1",
        "term 7",
        "QUEUE",
        "1,234,567 queued",
        "27 running",
        "MASTERS",
        "HOSTS",
        "JOBS",
        "EVENTS",
    ):
        assert words in text
    for words in ("m1", "h0", "words", "990/1,600", "task.finished 42.19"):
        assert words in text


def test_wide_terminals_show_machines_beside_jobs() -> None:
    line = next(line for line in lines_of(SNAPSHOTS["full"], 200, 60) if "MASTERS" in line)
    assert "JOBS" in line


def test_a_lost_leader_is_said_with_its_time_and_the_rest_stays() -> None:
    lines = lines_of(SNAPSHOTS["leaderless"], 80, 24)
    assert lines[0].startswith(" no leader since 0.4 s")
    assert "m2 refused" in lines[-1]
    assert any("words" in line for line in lines)


def test_a_host_in_trouble_comes_first() -> None:
    view = overview(hosts=0)
    view["hosts"] = [*[host(n) for n in range(30)], host(99, "lost", reason="silent")]
    lines = lines_of(Snapshot(view, [], 2000.0), 80, 24)
    heading = next(number for number, line in enumerate(lines) if line.startswith("HOSTS"))
    assert "30 of 31 up" in lines[heading]
    assert lines[heading + 1].startswith(" h99")


def test_before_the_first_answer_it_says_what_is_tried() -> None:
    lines = lines_of(Snapshot(None, [], 2000.0), 80, 24)
    assert "asking the masters" in "\n".join(lines)


def test_hidden_rows_are_counted() -> None:
    assert any(line.startswith("HOSTS ") and " of 40" in line for line in lines_of(SNAPSHOTS["full"], 80, 24))


@pytest.mark.parametrize(
    ("wanted", "room", "shares"),
    [
        ([3, 40, 40, 20], 8, [2, 2, 2, 2]),
        ([3, 40, 2, 20], 20, [3, 8, 2, 7]),
        ([1, 1], 10, [1, 1]),
        ([5, 5], 0, [0, 0]),
        ([], 5, []),
    ],
)
def test_rows_are_shared_in_turn(wanted: list[int], room: int, shares: list[int]) -> None:
    assert share_rows(wanted, room) == shares


@pytest.mark.parametrize("width", [0, 1, 2, 5, 9, 20])
def test_fit_is_exact_in_cells(width: int) -> None:
    for text in ("", "abc", "東京東京東京", "a\x1b[0mb", "x" * 50):
        assert cell_len(fit(text, width)) == width


@pytest.mark.parametrize(
    ("done", "total", "expected"),
    [
        (0, 10, "········"),
        (10, 10, "████████"),
        (5, 10, "████····"),
        (1, 100000, "▏·······"),
        (0, 0, "········"),
        (20, 10, "████████"),
    ],
)
def test_bar(done: int, total: int, expected: str) -> None:
    assert bar(done, total, 8, "green").plain == expected
