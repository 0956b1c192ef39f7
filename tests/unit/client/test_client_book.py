"""Results reach those who wait for them once each, however streams break."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depalma.client.book import Book, Gap
from depalma.client.record import Record
from depalma.client.wire import ResultBatch, TaskResult
from depalma.errors import DepalmaError


def results(*tasks: int) -> tuple[TaskResult, ...]:
    return tuple(TaskResult(task, "succeeded") for task in tasks)


def batch(cursor: int, *tasks: int, final: bool = False, job: int = 1) -> ResultBatch:
    return ResultBatch(job, cursor, results(*tasks), "succeeded" if final else "running", final)


def tasks_of(record: Record) -> list[int]:
    return [result.task for result in record.order]


def test_results_and_the_end_are_delivered_and_the_job_is_forgotten() -> None:
    book, record = Book(), Record(1)
    book.claim(1, record)
    book.accept(batch(2, 5, 3))
    assert book.cursors() == {1: 2}
    book.accept(batch(3, 4, final=True))
    assert tasks_of(record) == [5, 3, 4]
    assert record.state == "succeeded"
    assert len(book) == 0


def test_a_batch_that_repeats_known_results_gives_only_the_new_ones() -> None:
    book, record = Book(), Record(1)
    book.claim(1, record)
    book.accept(batch(2, 0, 1))
    book.accept(batch(3, 0, 1, 2))
    book.accept(batch(2, 0, 1))
    assert tasks_of(record) == [0, 1, 2]
    assert book.cursor(1) == 3


def test_a_gap_is_refused_and_changes_nothing() -> None:
    book, record = Book(), Record(1)
    book.claim(1, record)
    with pytest.raises(Gap):
        book.accept(batch(3, 2))
    assert tasks_of(record) == []
    assert book.cursors() == {1: 0}


def test_results_that_overtake_the_submission_wait_for_their_claim() -> None:
    book, record = Book(), Record(1)
    book.accept(batch(1, 0))
    assert book.cursors() == {1: 1}
    book.accept(batch(2, 1, final=True))
    assert book.cursors() == {}
    book.claim(1, record)
    assert tasks_of(record) == [0, 1]
    assert record.state == "succeeded"
    assert len(book) == 0


def test_an_unknown_job_is_an_error_for_those_who_wait_and_nothing_otherwise() -> None:
    book, record = Book(), Record(1)
    book.claim(1, record)
    book.accept(ResultBatch(1, 0, (), "unknown", True))
    book.accept(ResultBatch(2, 0, (), "unknown", True))
    with pytest.raises(DepalmaError, match="there is no job 1"):
        record.at_index(0)
    assert len(book) == 0


def test_a_second_reader_gets_everything_and_the_first_nothing_twice() -> None:
    book, one, two = Book(), Record(1), Record(1)
    assert book.claim(1, one)
    book.accept(batch(2, 0, 1))
    assert not book.claim(1, two)
    assert book.cursors() == {1: 0}
    with pytest.raises(Gap):
        book.accept(batch(3, 2))
    book.accept(batch(3, 0, 1, 2))
    book.accept(batch(4, 3, final=True))
    assert tasks_of(one) == tasks_of(two) == [0, 1, 2, 3]
    assert (one.state, two.state) == ("succeeded", "succeeded")


def test_failing_tells_everybody() -> None:
    book, one, two = Book(), Record(1), Record(2)
    book.claim(1, one)
    book.claim(2, two)
    book.fail(DepalmaError("over"))
    assert one.over
    assert two.over
    assert len(book) == 0


def test_a_sink_may_start_and_claim_another_job() -> None:
    book, other = Book(), Record(2)

    class Chain(Record):
        def deliver(self, results: Sequence[TaskResult]) -> None:
            book.claim(2, other)

    book.accept(batch(1, 0, job=2))
    book.claim(1, Chain(1))
    book.accept(batch(1, 0))
    assert tasks_of(other) == [0]


@given(st.integers(0, 30), st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=40))
def test_any_mix_of_repeated_and_broken_streams_delivers_each_once_in_order(
    total: int, pieces: list[tuple[int, int]]
) -> None:
    book, record = Book(), Record(1)
    book.claim(1, record)
    for begin, length in pieces:
        end = min(total, begin + length)
        if begin >= end:
            continue
        try:
            book.accept(batch(end, *range(begin, end)))
        except Gap:
            assert begin > book.cursor(1)
    assert tasks_of(record) == list(range(book.cursor(1)))
    begin = book.cursor(1)
    book.accept(batch(total, *range(begin, total), final=True))
    assert tasks_of(record) == list(range(total))
    assert record.over
