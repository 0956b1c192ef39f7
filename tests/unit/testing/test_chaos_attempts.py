"""What a made-up witness file and made-up records are found guilty of: the check of F28 can fail."""

from __future__ import annotations

from pathlib import Path

from depalma.model import AttemptView, TaskView
from depalma.testing.chaos import attempts

#: attempt 1 of 7.0 is killed, attempt 2 runs to its end; 7.1 leaves a child behind, which is killed
GOOD = """\
start 7.0 1 100 10.00
alive 7.0 1 100 10.10
start 7.1 1 101 10.00
born 7.1 1 102 10.01
alive 7.1 1 102 10.11
stop 7.1 1 101 10.02
start 7.0 2 200 11.00
stop 7.0 2 200 11.30
"""
BOOT_AT = 1000.0


def task(
    index: int, *, state: str = "succeeded", attempt: int = 1, ends: tuple[float, ...] = (), job: int = 7
) -> TaskView:
    past = [
        AttemptView(number=n, host="h1", state="lost", started_at=None, finished_at=at) for n, at in enumerate(ends, 1)
    ]
    last = AttemptView(number=attempt, host="h2", state=state, started_at=None, finished_at=BOOT_AT + 11.3)
    return TaskView(
        id=f"{job}.{index}", job=job, index=index, state=state, attempt=attempt, host="h2", exit_code=0, signal=None,
        started_at=None, finished_at=BOOT_AT + 11.3, code_index=0, code_digest="", attempts=(*past, last),
    )  # type: ignore[arg-type] # fmt: skip


TASKS = [task(0, attempt=2, ends=(BOOT_AT + 10.9,)), task(1)]


def witness(tmp_path: Path, text: str) -> list[attempts.Sign]:
    file = tmp_path / "witness"
    file.write_text(text)
    return attempts.signs(file)


def test_what_is_as_it_should_be_is_not_broken(tmp_path: Path) -> None:
    found = witness(tmp_path, GOOD + "alive 7.0 2")  # the last line was cut by a kill

    assert len(attempts.lives(found)) == 3
    assert attempts.overlapping(found) == []
    assert attempts.misrecorded(found, TASKS, set()) == []
    assert attempts.outlived_s(found, TASKS, BOOT_AT) == {}


def test_two_attempts_that_live_at_the_same_time(tmp_path: Path) -> None:
    """Also if it is a child of the first that still lives, and if only the lock of the task tells."""
    one = witness(tmp_path, GOOD + "alive 7.0 1 100 11.05\n")
    child = witness(tmp_path, GOOD + "alive 7.0 1 199 11.20\n")
    locked = witness(tmp_path, GOOD + "held 7.0 2 200 11.00\n")

    assert len(attempts.overlapping(one)) == len(attempts.overlapping(child)) == 1
    assert attempts.overlapping(locked) == ["I3: attempt 2 of 7.0 began while an earlier one lived"]


def test_an_attempt_that_began_twice(tmp_path: Path) -> None:
    found = witness(tmp_path, GOOD + "start 7.1 1 300 20.0\n")

    assert attempts.overlapping(found) == ["I3: attempt 1 of 7.1 began 2 times"]


def test_records_that_do_not_fit_what_ran(tmp_path: Path) -> None:
    found = witness(tmp_path, GOOD)

    def broken(*tasks: TaskView, once: set[int] | None = None) -> list[str]:
        return attempts.misrecorded(found, tasks, once or set())

    assert "7.1 is failed" in broken(TASKS[0], task(1, state="failed"))[0]
    assert "attempt 1, which did not run to its end" in broken(task(0), TASKS[1])[0]
    assert "attempt 3, which did not run to its end" in broken(task(0, attempt=3), TASKS[1])[0]
    assert broken(TASKS[0]) == ["I1: 7.1 ran, but there is no such task"]
    twice = task(1)
    twice = TaskView(
        **{name: getattr(twice, name) for name in twice.__struct_fields__} | {"attempts": twice.attempts * 2}
    )
    assert "successes: [1, 1]" in broken(TASKS[0], twice)[0]
    assert broken(*TASKS, once={7}) == ["I3: 7.0 may run once and ran 2 times"]
    assert broken(TASKS[0], task(1, state="lost"), once={7}) == ["I3: 7.0 may run once and ran 2 times"]


def test_an_attempt_that_ran_after_the_one_that_is_recorded(tmp_path: Path) -> None:
    found = witness(tmp_path, GOOD + "start 7.1 2 300 20.0\nstop 7.1 2 300 20.1\n")

    assert attempts.misrecorded(found, TASKS, set()) == ["I4: 7.1 succeeded with attempt 1, but attempt 2 ran"]


def test_what_outlives_its_end(tmp_path: Path) -> None:
    found = witness(tmp_path, GOOD + "alive 7.1 1 102 12.30\nalive 7.0 1 100 10.95\n")

    late = attempts.outlived_s(found, TASKS, BOOT_AT)

    assert {what: round(seconds, 2) for what, seconds in late.items()} == {
        "attempt 1 of 7.0": 0.05,
        "attempt 1 of 7.1": 1.0,
    }
