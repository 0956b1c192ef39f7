"""Who stands still behind the code log, by the leader's clock."""

from __future__ import annotations

from depalma.leader.laggards import Laggards
from depalma.state.hosts import CodeLag, Host


def host(index: int) -> Host:
    made = Host("h1", (), {}, 0, 2, 0, 0.0)
    made.state, made.code_index = "up", index
    return made


def test_a_host_that_stands_still_is_late_and_then_kicked_out() -> None:
    laggards, one = Laggards(5.0, 60.0), host(3)
    look = lambda now: list(laggards.late({"h1": one}, 4, now))  # noqa: E731

    assert look(100.0) == look(104.9) == []
    assert look(105.0) == [("h1", "has not acknowledged entry 4", False)]
    one.lag = CodeLag(1.0, "no space", 4)
    assert look(159.0) == []
    assert look(160.0) == [("h1", "no space", True)]
    one.lag = CodeLag(1.0, "no space", 4, kicked=True)
    assert look(1000.0) == []


def test_a_host_that_comes_on_is_not_late() -> None:
    """However far behind it is: a long log takes its time."""
    laggards, one = Laggards(5.0, 60.0), host(0)
    for second in range(100):
        one.code_index = second
        assert list(laggards.late({"h1": one}, 1000, float(second * 4))) == []


def test_a_host_that_was_there_begins_anew() -> None:
    laggards, one = Laggards(5.0, 60.0), host(4)
    assert list(laggards.late({"h1": one}, 5, 0.0)) == []
    one.code_index = 5
    assert list(laggards.late({"h1": one}, 5, 4.0)) == []
    assert list(laggards.late({"h1": one}, 6, 8.0)) == []
    assert list(laggards.late({"h1": one}, 6, 12.9)) == []
    assert list(laggards.late({}, 6, 13.0)) == []
    assert list(laggards.late({"h1": one}, 6, 30.0)) == []
