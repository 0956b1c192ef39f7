"""`bin/chaos`: what it refuses, and that it covers the list of faults."""

from __future__ import annotations

import pytest

from depalma.testing.chaos import requirements
from depalma.testing.chaos.runner import main
from depalma.testing.chaos.scenarios import SCENARIOS


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name scenarios"),
        (["F999"], "unknown: F999"),
        (["F1", "--size", "kicks=3"], "F1 has kills"),
        (["F1", "--size", "kills=many"], "invalid literal"),
        (["F1", "F2", "--size", "kills=3"], "for one scenario, 2 are named"),
    ],
)
def test_wrong_words_are_refused_before_anything_runs(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert says in capsys.readouterr().err


def test_the_list_is_in_order_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    numbers = [int(line.split()[0][1:]) for line in capsys.readouterr().out.splitlines()]

    assert numbers == sorted(numbers)
    assert {*range(1, 14), *range(17, 23), 24, 25} <= set(numbers)


def test_sizes_of_short_runs_are_sizes_of_whole_ones() -> None:
    for one in SCENARIOS.values():
        assert set(one.short) == set(one.whole), one.id


def test_what_only_a_checkout_has_is_told() -> None:
    assert requirements.missing("bin/simulate", cluster=False) == ""
