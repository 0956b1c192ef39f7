"""Leases: a host's work moves only after the host itself must have stopped it."""

from __future__ import annotations

import pytest

from depalma.leader.leases import Leases
from depalma.lease import lease_times
from depalma.model import HostFacts


@pytest.fixture
def leases() -> Leases:
    leases = Leases(lease_times(10, 0.25, 1.0))
    leases.begin(now=100.0)
    return leases


def test_nobody_is_called_lost_before_a_full_lease_of_a_new_reign(leases: Leases) -> None:
    """A new leader has heard nobody; the old one may have answered a heartbeat a moment before it died."""
    assert leases.over(dict.fromkeys(["a"]), now=100.0 + 12.49) == []
    assert leases.over(dict.fromkeys(["a"]), now=100.0 + 12.51) == ["a"]


def test_silence_is_counted_from_the_last_heartbeat(leases: Leases) -> None:
    leases.heard("a", now=105.0)
    assert leases.over(dict.fromkeys(["a", "b"]), now=113.0) == ["b"]
    assert leases.over(dict.fromkeys(["a", "b"]), now=117.6) == ["a", "b"]


def test_a_silent_host_is_suspected_long_before_it_is_lost(leases: Leases) -> None:
    leases.heard("a", now=105.0)
    assert leases.suspects(["a"], now=108.3) == []
    assert leases.suspects(["a"], now=108.4) == ["a"]


def test_a_new_reign_counts_everybody_as_heard_at_its_begin(leases: Leases) -> None:
    leases.heard("a", now=105.0)
    leases.begin(now=200.0)
    assert leases.silent_s("a", now=201.0) == pytest.approx(1.0)


def test_last_seen_is_unknown_until_this_leader_heard_the_host(leases: Leases) -> None:
    assert leases.last_seen_s("a", now=101.0) is None
    leases.heard("a", now=101.0)
    assert leases.last_seen_s("a", now=101.5) == pytest.approx(0.5)


@pytest.mark.parametrize("drift", [0.95, 1.0, 1.05])
def test_the_agent_stops_before_the_master_moves_even_with_drifting_clocks(drift: float) -> None:
    """Both clocks may be 5 % off: the agent's lease ends (in real time) before the leader's wait does."""
    leases = Leases(lease_times(3, 0.25))
    leases.begin(now=0.0)
    sent_real_s = 0.0
    leases.heard("a", now=0.0)  # received no earlier than it was sent
    agent_stops_real_s = sent_real_s + 3 / drift
    leader_rate = 2.0 - drift  # the other way round: the worst case
    moved_real_s = next(t / 100 for t in range(1000) if leases.over(dict.fromkeys(["a"]), now=t / 100 * leader_rate))
    assert agent_stops_real_s < moved_real_s


def test_the_lease_that_was_given_counts_whatever_the_settings_are_now(leases: Leases) -> None:
    """The old leader's cluster file said 30 s, that of the new one says 10: the agent knows only what it was told."""
    facts = HostFacts(1, 1, 1, 0, "", "", "", lease_s=30.0)
    assert leases.over({"a": facts, "b": None}, now=100.0 + 13) == ["b"]
    assert leases.over({"a": facts}, now=100.0 + 37.4) == []
    assert leases.over({"a": facts}, now=100.0 + 37.6) == ["a"]
    assert (leases.lease_of(facts), leases.lease_of(None)) == (30.0, 10)
