"""A host that is busy with something else gets less. [pure]

Agents measure which part of their CPUs something else than their tasks uses. Only how much busier a host is than the
least busy one counts, so when all are busy none gets less; and every host keeps one slot, so nothing waits for ever
for a host that is never idle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from depalma.model import Load

if TYPE_CHECKING:
    from depalma.policies.places import HostRoom

#: Differences up to this share of the CPUs are noise.
NOISE = 0.15


def foreign_share(load: Load, neighbours_percent: float = 0.0) -> float:
    """Returns the share of a host's CPUs that something else than tasks uses, 0 to 1. `neighbours_percent`: what tasks
    of other agents use on the same machine."""
    return min(1.0, max(0.0, load.foreign_cpu_percent - neighbours_percent) / 100)


def least(shares: Iterable[float]) -> float:
    """Returns the share of the least busy host."""
    return min(shares, default=0.0)


def allowed(slots: int, share: float, least_share: float) -> int:
    """Returns how many of the slots may be used while something else has `share` of the CPUs."""
    excess = share - least_share
    if excess <= NOISE or slots <= 1:
        return slots
    return max(1, slots - int(slots * excess))


def busy_lines(hosts: Mapping[str, HostRoom]) -> Iterator[str]:
    """Yields in words which hosts get less now, and why."""
    least_share = least(room.foreign for room in hosts.values())
    for name, room in sorted(hosts.items()):
        slots = allowed(room.slots, room.foreign, least_share)
        if slots < room.slots:
            yield f"{name}: something else uses {room.foreign:.0%} of its CPUs, so {slots} of {room.slots} slots"
