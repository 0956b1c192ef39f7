"""The log in memory."""

from __future__ import annotations

import pytest

from depalma.consensus.log import Log


def filled(count: int, term: int = 1) -> Log:
    log = Log()
    for index in range(2, count + 2):
        log.append((b"x", index, term))
    return log


def test_a_new_log_has_a_base_and_nothing_else() -> None:
    log = Log()

    assert (log.base_index, log.last_index, log.last_term, len(log)) == (1, 1, 0, 0)
    assert log.term_at(1) == 0


def test_entries_follow_each_other_without_a_gap() -> None:
    log = filled(3)
    with pytest.raises(ValueError, match="does not follow"):
        log.append((b"x", 9, 1))


def test_dropping_at_both_ends_keeps_the_middle() -> None:
    log = filled(100)
    log.drop_to(40)
    log.truncate_from(81)

    assert (log.base_index, log.last_index, len(log), log.size_bytes) == (40, 80, 40, 40)
    assert [index for _, index, _ in log.entries(41, 1000)] == list(range(41, 81))
    for outside in (39, 81):
        with pytest.raises(IndexError):
            log.term_at(outside)
    with pytest.raises(ValueError, match="cannot drop"):
        log.truncate_from(40)


def test_entries_stop_before_the_limit_but_give_at_least_one() -> None:
    log = Log()
    for index in range(2, 12):
        log.append((b"x" * 10, index, 1))

    assert len(log.entries(2, 10, 35)) == 3
    assert len(log.entries(2, 10, 1)) == 1
    assert len(log.entries(2, 4)) == 4
    assert log.entries(12, 4) == []


def test_the_first_entry_of_a_term_is_found() -> None:
    log = filled(5, term=1)
    for index in range(7, 10):
        log.append((b"y", index, 3))

    assert log.first_index_of_term(9) == 7
    assert log.first_index_of_term(5) == 2


def test_what_is_kept_behind_a_snapshot_is_limited_by_count_and_size() -> None:
    log = Log()
    for index in range(2, 102):
        log.append((b"x" * 10, index, 1))

    assert log.keep_behind(80, 20, 10_000) == 60
    assert log.keep_behind(80, 1_000, 95) == 70
    assert log.keep_behind(80, 1_000, 100_000) == 1


def test_what_is_dropped_takes_no_room_for_long() -> None:
    """The list behind the log is moved only when half of it is dropped: a constant for each entry, amortised."""
    log = filled(1000)
    moves, room = 0, len(log._entries)
    for index in range(2, 1000):
        log.drop_to(index)
        moves += len(log._entries) != room
        room = len(log._entries)
        assert room <= 2 * len(log) + 1

    assert moves < 12
