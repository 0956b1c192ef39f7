"""Which connected hosts do not come on along the code log, and for how long: by the leader's own clock. [pure]

A host that moves is not late, however far behind it is; one that stays where it is is marked after `lag_s` and kicked
out after `kick_s`. A new leader begins to count anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from depalma.state.hosts import Host


class Laggards:
    """Since when each connected host has been standing behind the newest entry."""

    def __init__(self, lag_s: float, kick_s: float) -> None:
        self._lag_s = lag_s
        self._kick_s = kick_s
        self._standing: dict[str, tuple[int, float]] = {}  #: host → its code index, since when

    def late(self, hosts: Mapping[str, Host], newest: int, now: float) -> Iterator[tuple[str, str, bool]]:
        """Yields (host, reason, to be kicked out) of those for whom that is not recorded yet."""
        behind = {name: host for name, host in hosts.items() if host.code_index < newest}
        for name in self._standing.keys() - behind.keys():
            del self._standing[name]
        for name, host in behind.items():
            index, since = self._standing.get(name, (-1, now))
            if index != host.code_index:
                self._standing[name] = (host.code_index, now)
                continue
            stood_s = now - since
            lag = host.lag
            why = lag.reason if lag is not None else f"has not acknowledged entry {host.code_index + 1}"
            if stood_s >= self._kick_s and (lag is None or not lag.kicked):
                yield name, why, True
            elif stood_s >= self._lag_s and lag is None:
                yield name, why, False
