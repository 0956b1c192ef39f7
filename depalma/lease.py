"""How long everybody waits, all of it from one lease: who renews, who stops, who moves the work, in this order. [pure]

An agent asks every `renew_s`. It stops its work `stop_s` after it *sent* the last question that was answered. A master
counts from when it *received* that question, which is no earlier, and moves the work `move_s` after it. Each measures
with its own clock, and these may differ in rate: the order must hold when one is slow and the other is fast.
"""

from __future__ import annotations

from msgspec import Struct

#: How much the rate of a clock may be off. A clock that NTP steers is off by at most 0.05 %.
DRIFT = 0.05
#: `heartbeat_s` that is not given is this part of the lease.
RENEWALS = 10


class LeaseTimes(Struct, frozen=True):
    """Seconds, each by the clock of the one who waits."""

    renew_s: float
    suspect_s: float
    stop_s: float
    move_s: float

    def problem(self, drift: float = DRIFT) -> str:
        """Returns which order does not hold for clocks that are off by `drift`, or nothing."""
        slow, fast = 1 - drift, 1 + drift
        if self.renew_s * 3 > self.stop_s:  # both by the agent's clock
            return f"an agent that asks every {self.renew_s:g} s has fewer than three tries in {self.stop_s:g} s"
        if self.stop_s / slow >= self.move_s / fast:
            return (
                f"work would move after {self.move_s:g} s, while an agent whose clock is slow by {drift:.0%} "
                f"may run it for {self.stop_s:g} s of its own"
            )
        return ""


def lease_times(lease_s: float, margin: float, heartbeat_s: float = 0.0) -> LeaseTimes:
    """Returns the times that follow from the settings; `heartbeat_s` 0 is a tenth of the lease."""
    renew_s = heartbeat_s or lease_s / RENEWALS
    return LeaseTimes(renew_s, max(3 * renew_s, lease_s / 3), lease_s, lease_s * (1 + margin))
