"""A host that is busy with something else gets less. [pure]

Agents measure which part of their CPUs something else than their tasks uses. Only how much busier a host is than the
least busy one counts, so when all are busy none gets less; and every host keeps one slot, so nothing waits for ever
for a host that is never idle. A GPU that something else uses is given to nobody; one of which our own tasks have a part
is theirs, whatever is measured there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from depalma.model import GpuLoad, Load

if TYPE_CHECKING:
    from depalma.policies.places import HostRoom

#: A GPU that no task has is in use from this on: what a desktop draws is less.
GPU_PERCENT = 25.0
#: Differences up to this share of the CPUs are noise.
NOISE = 0.15


def foreign_share(load: Load, neighbours_percent: float = 0.0) -> float:
    """Returns the share of a host's CPUs that something else than tasks uses, 0 to 1. `neighbours_percent`: what tasks
    of other agents use on the same machine."""
    return min(1.0, max(0.0, load.foreign_cpu_percent - neighbours_percent) / 100)


def is_gpu_busy(load: GpuLoad) -> bool:
    """Returns whether something uses a GPU that no task has: its processors, or its memory."""
    memory = load.memory_used_bytes * 100 / load.memory_total_bytes if load.memory_total_bytes else 0.0
    return load.busy_percent >= GPU_PERCENT or memory >= GPU_PERCENT


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
        if room.busy_gpus:
            yield f"{name}: something else uses GPU {', '.join(map(str, room.busy_gpus))}"
