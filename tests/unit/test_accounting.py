"""Sums of what jobs used."""

from __future__ import annotations

from depalma.accounting import HostUse, JobUse, grouped


def row(job: int, **changes: object) -> JobUse:
    values: dict[str, object] = {
        "job": job, "name": "n", "user": "ann", "tags": (), "group": "", "state": "succeeded", "submitted_at": 0.0,
        "started_at": 1.0, "finished_at": 86_399.0, "wait_s": 1.0, "run_s": 10.0, "tasks": 2, "succeeded": 2,
        "failed": 0, "timed_out": 0, "cancelled": 0, "lost": 0, "attempts": 3, "attempt_s": 30.0, "slot_s": 60.0,
        "memory_byte_s": 3000.0, "gpu_s": 0.0,
        "hosts": (HostUse("h1", 2, 20.0, 1), HostUse("h2", 1, 10.0, 1)),
    }  # fmt: skip
    return JobUse(**(values | changes))  # type: ignore[arg-type]


def test_by_user_tag_and_day() -> None:
    rows = [row(1, tags=("a", "b")), row(2, user="bob", finished_at=86_400.0), row(3, finished_at=None)]
    users = grouped(rows, "user")
    assert [(group.key, group.jobs, group.slot_s, group.attempts) for group in users] == [
        ("ann", 2, 120.0, 6), ("bob", 1, 60.0, 3),
    ]  # fmt: skip
    assert [(group.key, group.jobs) for group in grouped(rows, "tag")] == [("", 2), ("a", 1), ("b", 1)]
    assert [(group.key, group.jobs) for group in grouped(rows, "day")] == [
        ("", 1), ("1970-01-01", 1), ("1970-01-02", 1),
    ]  # fmt: skip


def test_by_host_what_was_used_is_shared_out_by_time() -> None:
    waiting = row(2, tasks=5, cancelled=5, succeeded=0, attempts=0, attempt_s=0.0, slot_s=0.0, memory_byte_s=0.0,
                  hosts=(HostUse("", cancelled=5),))  # fmt: skip
    never, first, second = grouped([row(1), waiting], "host")
    assert (never.key, never.tasks, never.cancelled, never.slot_s) == ("", 5, 5, 0.0)
    assert (first.key, first.tasks, first.attempts, first.slot_s, first.memory_byte_s) == ("h1", 1, 2, 40.0, 2000.0)
    assert (second.key, second.slot_s, second.run_s) == ("h2", 20.0, 0.0)
