"""Only a conflict voids an entry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depalma.consensus.append_filter import Accepted, Refused, filter_append
from depalma.consensus.errors import InvariantBroken
from depalma.consensus.log import Log


def log_of(terms: list[int], base: int = 1, base_term: int = 0) -> Log:
    log = Log()
    log.reset(base, base_term)
    for index, term in enumerate(terms, base + 1):
        log.append((b"%d" % index, index, term))
    return log


def entries_of(first: int, terms: list[int]) -> list[tuple[int, bytes]]:
    return [(term, b"%d" % index) for index, term in enumerate(terms, first)]


def test_entries_that_match_are_not_touched() -> None:
    log = log_of([1, 1, 1, 1])

    found = filter_append(log, 5, 2, 1, entries_of(3, [1, 1]))

    assert found == Accepted(prev_index=5, prev_term=1, entries=[], matched=4)


def test_a_heartbeat_below_the_end_matches_only_up_to_itself() -> None:
    assert filter_append(log_of([1, 1, 1]), 1, 2, 1, []) == Accepted(4, 1, [], 2)


def test_new_entries_go_to_the_end() -> None:
    found = filter_append(log_of([1, 1]), 1, 3, 1, entries_of(4, [2, 2]))

    assert found == Accepted(3, 1, [(b"4", 4, 2), (b"5", 5, 2)], 5)


def test_the_part_that_is_known_is_skipped() -> None:
    found = filter_append(log_of([1, 1]), 3, 1, 0, entries_of(2, [1, 1, 1]))

    assert found == Accepted(3, 1, [(b"4", 4, 1)], 4)


def test_a_conflict_voids_from_there_on() -> None:
    found = filter_append(log_of([1, 1, 1, 1]), 3, 2, 1, entries_of(3, [1, 2]))

    assert found == Accepted(3, 1, [(b"4", 4, 2)], 4)


def test_a_gap_is_refused_with_what_is_missing() -> None:
    assert filter_append(log_of([1, 1]), 1, 7, 1, []) == Refused(7, 4)


def test_another_term_is_refused_with_its_beginning_but_never_below_what_is_committed() -> None:
    log = log_of([1, 2, 2, 2])

    assert filter_append(log, 1, 5, 3, []) == Refused(5, 3)
    assert filter_append(log, 4, 5, 3, []) == Refused(5, 5)


def test_what_a_snapshot_holds_counts_as_matching() -> None:
    log = log_of([3, 3], base=10, base_term=2)

    assert filter_append(log, 10, 5, 1, entries_of(6, [1, 1, 2])) == Accepted(12, 3, [], 10)
    assert filter_append(log, 10, 8, 1, entries_of(9, [1, 2, 3, 3, 3])) == Accepted(12, 3, [(b"13", 13, 3)], 13)


def test_a_leader_that_contradicts_what_is_committed_stops_the_replica() -> None:
    log = log_of([1, 1, 1])
    with pytest.raises(InvariantBroken, match="entry 3"):
        filter_append(log, 4, 2, 1, entries_of(3, [2]))
    with pytest.raises(InvariantBroken, match="entry 4"):
        filter_append(log, 4, 4, 2, [])


terms = st.lists(st.integers(1, 4), max_size=12).map(sorted)


@given(mine=terms, theirs=terms, first=st.integers(0, 11), count=st.integers(0, 12))
def test_the_result_is_raft_s_own_rule(mine: list[int], theirs: list[int], first: int, count: int) -> None:
    """Compared with a plain transcription: void from the first conflict on, append what is new, keep the rest."""
    log = log_of(mine)
    first = min(first, len(theirs))
    sent = theirs[first : first + count]
    leader = [0, *theirs]
    found = filter_append(log, 1, first + 1, leader[first], entries_of(first + 2, sent))
    whole = [0, *mine]
    if first >= len(whole) or whole[first] != leader[first]:
        assert isinstance(found, Refused)
        return
    assert isinstance(found, Accepted)

    expected = list(whole)
    for position, term in enumerate(sent, first + 1):
        if position < len(expected) and expected[position] != term:
            del expected[position:]
        if position >= len(expected):
            expected.append(term)
    result = whole[: found.prev_index] + [term for _, _, term in found.entries]
    if not found.entries:
        assert found.prev_index == log.last_index
    assert result == expected
    assert found.matched == first + 1 + len(sent)
