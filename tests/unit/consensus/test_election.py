"""Who may be elected, and who is asked when."""

from __future__ import annotations

from random import Random

import pytest

from depalma.consensus.election import Ballot, Standing, Timing


@pytest.mark.parametrize(
    ("candidate", "accepted"),
    [((2, 10), True), ((2, 11), True), ((3, 1), True), ((2, 9), False), ((1, 99), False)],
)
def test_a_candidate_needs_a_log_as_complete_as_ours(candidate: tuple[int, int], accepted: bool) -> None:
    assert Standing(2, 10, True).accepts(Standing(*candidate, True)) is accepted


def test_a_replica_that_may_have_forgotten_neither_elects_nor_is_elected() -> None:
    old, new = Standing(0, 1, True), Standing(0, 1, False)

    assert not old.accepts(new)
    assert not new.accepts(old)
    assert new.accepts(new), "in a new cluster all may vote"


def test_only_answers_to_the_open_ballot_count_and_each_once() -> None:
    ballot = Ballot()
    first = ballot.start(5)
    assert ballot.answer("m2", first, True, 5) == 2
    assert ballot.answer("m2", first, True, 5) == 2
    assert ballot.answer("m3", first, False, 5) == 2
    second = ballot.start(5)
    assert ballot.answer("m2", first, True, 5) == 0
    assert ballot.answer("m3", second, True, 5) == 2
    ballot.close()
    assert ballot.answer("m2", second, True, 5) == 0


def test_a_ballot_ends_with_its_term() -> None:
    """Who has voted in a newer term would depose the one it voted for."""
    ballot = Ballot()
    number = ballot.start(5)

    assert ballot.answer("m2", number, True, 6) == 0
    assert ballot.answer("m2", number, True, 5) == 2


def test_waiting_times_stay_in_their_ranges() -> None:
    timing = Timing((0.3, 0.6), 0.09, 0.9, Random(1))
    for draw, lowest, highest in (
        (timing.election, 0.3, 0.6),
        (timing.retry, 0.1, 0.3),
        (timing.leader_gone, 0.02, 0.12),
        (timing.yield_to_other, 0.05, 0.1),
    ):
        drawn = [draw() for _ in range(200)]
        assert lowest <= min(drawn) < max(drawn) <= highest
