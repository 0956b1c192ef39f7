"""Everything that follows from the lease keeps its order, whatever the settings and the clocks."""

from __future__ import annotations

import pytest

from depalma.config import parse
from depalma.errors import ConfigError
from depalma.leader.leases import Leases
from depalma.lease import DRIFT, LeaseTimes, lease_times


@pytest.mark.parametrize("lease_s", [0.5, 3.0, 10.0, 3600.0])
@pytest.mark.parametrize("margin", [0.15, 0.25, 10.0])
def test_the_order_holds_for_all_that_the_cluster_file_allows(lease_s: float, margin: float) -> None:
    times = lease_times(lease_s, margin)

    assert not times.problem()
    assert times.renew_s < times.suspect_s < times.stop_s < times.move_s
    # The agent's clock runs slow, the master's fast: in true seconds, the agent still stops first.
    assert times.stop_s / (1 - DRIFT) < times.move_s / (1 + DRIFT)


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (LeaseTimes(1, 3, 10, 10), "work would move after 10 s"),
        (LeaseTimes(1, 3, 10, 9), "work would move after 9 s"),
        (LeaseTimes(1, 3, 10, 11.0), "work would move after 11 s"),
        (LeaseTimes(4, 3, 10, 13), "fewer than three tries"),
    ],
)
def test_an_order_that_does_not_hold_is_refused_at_the_start(times: LeaseTimes, words: str) -> None:
    assert words in times.problem()
    with pytest.raises(AssertionError, match=words):
        Leases(times)


def test_the_heartbeat_follows_the_lease() -> None:
    """A shorter lease alone is a valid cluster file."""
    text = "masters: [{id: m1, host: a, dir: /d}]\nsettings: {lease_s: 1}"
    assert parse(text).settings.lease_times == LeaseTimes(0.1, 1 / 3, 1.0, 1.25)
    with pytest.raises(ConfigError, match=r"heartbeat_s: 0\.5 given; allowed: 0 .a tenth of lease_s., or 0\.05 to"):
        parse(text.replace("lease_s: 1", "lease_s: 1, heartbeat_s: 0.5"))
