"""What a chaos run says of histories and diaries that are made up, with known faults in them."""

from __future__ import annotations

from pathlib import Path

from depalma.model import JobView, TaskCounts
from depalma.testing.chaos import checks, work
from depalma.testing.chaos.report import Figure, Report, percentile, table
from depalma.testing.chaos.work import Life
from depalma.testing.history import Operation


def job(name: str, *, tasks: int = 1, state: str = "held", is_open: bool = True, id_: int = 1) -> JobView:
    return JobView(
        id=id_, name=name, user="", kind="command", state=state, priority=0, tags=(), group="", submitted_at=0.0,
        started_at=None, finished_at=None, code_index=0, tasks=TaskCounts(total=tasks), open=is_open,
    )  # type: ignore[arg-type] # fmt: skip


def submit(key: str, *, work: bool = False) -> Operation:
    return Operation("c", "submit", key, (1, work), 0, 1, True)


def test_an_acknowledged_write_that_the_end_does_not_show_is_lost() -> None:
    history = [
        submit("gone"),
        submit("short"),
        Operation("c", "add", "short", 3, 1, 2, 1),
        submit("open"),
        Operation("c", "close", "open", None, 1, 2, True),
        submit("alive"),
        Operation("c", "cancel", "alive", None, 1, 2, True),
        Operation("c", "submit", "nobody-knows", (1, False), 0),
        Operation("c", "add", "closed", 3, 1, 2, ("refused", "job_closed")),
    ]
    jobs = [job("short", tasks=3), job("open"), job("alive")]

    found = checks.lost(history, jobs)

    assert len(found) == 4
    assert [word for word in ("gone", "short", "open", "alive") if not any(word in line for line in found)] == []
    assert checks.lost(history, [job("gone"), job("short", tasks=4), job("open", is_open=False),
                                 job("alive", state="cancelled", is_open=False)]) == []  # fmt: skip


def test_two_jobs_of_one_key_and_work_that_never_ends() -> None:
    jobs = [job("a"), job("a", id_=2), job("b", state="running")]

    assert checks.doubled(jobs) == ["I10: 2 jobs for the key a"]
    assert len(checks.unfinished([submit("a"), submit("b", work=True)], jobs)) == 1


def test_attempts_and_indexes_that_go_back() -> None:
    def read(client: str, at: float, attempt: int, index: int) -> Operation:
        return Operation(client, "task", "a", None, at, at + 1, ("running", attempt), index=index)

    forward = [read("c1", 0, 1, 5), read("c1", 2, 2, 6), read("c2", 2.5, 1, 3), read("c2", 4, 2, 9)]

    assert checks.attempts_go_back(forward) == []
    assert checks.index_goes_back(forward) == []
    assert len(checks.attempts_go_back([*forward, read("c2", 6, 1, 9)])) == 2
    assert len(checks.index_goes_back([*forward, read("c1", 6, 2, 4)])) == 1


def test_two_results_of_one_job_contradict_each_other() -> None:
    history = [
        submit("a", work=True),
        Operation("c", "cancel", "a", None, 2, 3, True),
        Operation("c", "read", "a", None, 4, 5, (1, False, "cancelled")),
        Operation("c", "read", "a", None, 6, 7, (1, False, "succeeded")),
    ]

    assert checks.contradictions(history[:3]) == []
    assert len(checks.contradictions(history)) == 1


def test_lives_that_overlap(tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    diary.write_text(
        "start 1.0 1 100 10.00\nalive 1.0 1 100 10.05\nstop 1.0 1 100 10.20\n"
        "start 1.0 2 200 10.21\nalive 1.0 2 200 10.30\n"
        "start 2.0 1 300 10.00\nstop 2.0 1 300 11.00\n"
        "start 2.0 2 400 10.50\nstop 2.0 2 400 10.60\nstar"
    )

    found = work.lives(diary)

    assert Life("1.0", 1, 100, 10.0, 10.2) in found
    assert [(one.pid, other.pid) for one, other in work.overlaps(found)] == [(300, 400)]
    assert work.lives(tmp_path / "none") == []


def test_percentiles_are_values_that_were_seen() -> None:
    assert percentile([5.0], 99) == 5.0
    assert percentile([float(i) for i in range(1, 101)], 99) == 99.0
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0


def test_the_table_sums_runs_and_shows_the_worst_verdict() -> None:
    good = Report("F1", "kill", 1, acknowledged=10)
    slow = Report("F1", "kill", 2, acknowledged=1500, misses=["late"])
    for report, value, count in ((good, 0.3, 50), (slow, 2.0, 40)):
        report.figures["p99"] = Figure("p99", value, 0.8)
        report.figures["kills"] = Figure("kills", count, 50, "", at_least=True)
    broken = Report("F2", "all", 3, acknowledged=7, lost=1, violations=["I1"])
    skipped = Report("F3", "cut", 4, skipped="needs root")

    lines = [line.split() for line in table([good, slow, broken, skipped]).splitlines()]

    assert lines[0][:6] == ["fault", "runs", "verdict", "seed", "acknowledged", "measured,"]
    assert lines[1] == ["F1", "kill", "2", "slow", "2", "1,510", "lost", "0,", "overlapping", "lives", "0", "(0)"]
    assert lines[2] == ["p99", "2", "s", "(≤", "0.80)"]
    assert lines[3] == ["kills", "40", "(≥", "50)"]
    assert lines[4] == ["F2", "all", "1", "BROKEN", "3", "7", "lost", "1,", "overlapping", "lives", "0", "(0)"]
    assert lines[5] == ["F3", "cut", "1", "skipped", "4", "0", "needs", "root"]
