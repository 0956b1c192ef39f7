"""When the leader last heard each host, and who has been silent for too long. [pure, the clock comes in]

The order that makes promise 3 hold: an agent stops its work `lease_s` after it *sent* the last heartbeat that was
answered; the leader counts from when it *received* that heartbeat, and waits `lease_s * (1 + lease_margin)`. A new
leader has heard nobody, so it counts from the start of its reign: whoever the old leader answered last was answered
before that (heartbeats are answered only after a read barrier, see sessions.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from depalma.lease import LeaseTimes
from depalma.model import HostFacts


class Leases:
    """Soft state of one reign; times are of one monotonic clock that counts suspend (CLOCK_BOOTTIME)."""

    def __init__(self, times: LeaseTimes) -> None:
        disorder = times.problem()
        assert not disorder, disorder  # the cluster file was checked; nothing else may come here
        self._times = times
        self.suspect_after_s = times.suspect_s
        self._heard: dict[str, float] = {}
        self._begun = 0.0

    def begin(self, now: float) -> None:
        """Starts a reign: everybody counts as heard now."""
        self._heard.clear()
        self._begun = now

    def heard(self, host: str, now: float) -> None:
        """Notes a heartbeat that was received at `now`."""
        self._heard[host] = now

    def forget(self, host: str) -> None:
        """Drops a host that is lost or removed."""
        self._heard.pop(host, None)

    def last_seen_s(self, host: str, now: float) -> float | None:
        """Returns for how long the host has been silent; None if this leader has not heard it yet."""
        heard = self._heard.get(host)
        return None if heard is None else max(0.0, now - heard)

    def silent_s(self, host: str, now: float) -> float:
        """Returns the silence that counts: since the last heartbeat, or since the reign began."""
        return now - self._heard.get(host, self._begun)

    def lease_of(self, facts: HostFacts | None) -> float:
        """Returns the lease that an incarnation was given, in seconds: the log says so, whoever leads now."""
        return (facts.lease_s if facts is not None else 0.0) or self._times.stop_s

    def left_s(self, host: str, facts: HostFacts | None, now: float) -> float:
        """Returns for how long the host may yet run something if it stays silent, by the lease that it was given."""
        longer = self._times.move_s / self._times.stop_s
        return self.lease_of(facts) * longer - self.silent_s(host, now)

    def over(self, hosts: Mapping[str, HostFacts | None], now: float) -> list[str]:
        """Returns those of `hosts` whose work may run elsewhere now."""
        return [host for host, facts in hosts.items() if self.left_s(host, facts, now) < 0]

    def suspects(self, hosts: Iterable[str], now: float) -> list[str]:
        """Returns those of `hosts` that were silent for long enough to get no new work."""
        return [host for host in hosts if self.silent_s(host, now) > self.suspect_after_s]
