"""Gangs: tasks that start all at once or none of them, on free slots only; and what is kept for the one that is
first. [pure]

A gang that does not fit now keeps nothing, unless no job before it wants its hosts. Then free slots there are kept for
it, as for any task that needs much (`policies/reserve.py`): others may use them if they have ended, by their time
limits, before the gang can start by those of what runs there now. So that time never moves back. Where time limits do
not tell, what is missing least is kept; that never gets more. What could not start even on empty hosts keeps nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from heapq import heappop, heappush
from math import inf
from typing import TYPE_CHECKING

from depalma.model import AttemptRef
from depalma.policies.reserve import Reservation, end_of
from depalma.state.order_commands import AssignGang
from depalma.state.placement import tasks_beside
from depalma.state.shapes import Shape

if TYPE_CHECKING:
    from depalma.policies.places import Place
    from depalma.state.cluster_state import ClusterState

#: Hosts that the reason of an assignment names.
_NAMED = 8


def room_at(shape: Shape, place: Place, now: float, most: int) -> int:
    """Returns how many tasks of the shape may be put there in this round, up to `most`."""
    if place.reserved is None:
        return min(most, tasks_beside(shape, place.host, place.limit, place.used, place.taken))
    used, taken, gpus, count = place.used, place.taken, place.gpus, 0
    place.gpus = {}
    while (
        count < most
        and tasks_beside(shape, place.host, place.limit, place.used, place.taken)
        and place.reserved.admits(shape, place, now)
    ):
        place.used += shape.weight
        place.take(shape, (0, count, 0))
        count += 1
    place.used, place.taken, place.gpus = used, taken, gpus
    return count


def gang_command(refs: list[AttemptRef], chosen: list[Place], now: float, term: int) -> AssignGang:
    """Returns the assignment of a gang to the places that were chosen, one a member. Neighbours in rank are on one
    host."""
    counts = Counter(chosen)
    parts, first = [], 0
    for place, count in counts.items():
        given = tuple(refs[first : first + count])
        place.gang_refs += given
        parts.append((place.host.name, place.incarnation, given))
        first += count
    named = ", ".join(f"{name} {len(given)}" for name, _, given in parts[:_NAMED])
    more = f" and {len(parts) - _NAMED} more hosts" if len(parts) > _NAMED else ""
    avoid = {place.host.name: place.avoid for place in counts if place.avoid}
    own = ((place.host.name, place.named_gpus(part[2])) for place, part in zip(counts, parts, strict=True))
    gpus = {name: named for name, named in own if named}
    return AssignGang(term, tuple(parts), now, f"gang of {len(refs)}, all at once: {named}{more}", avoid, gpus)


def could_start(shape: Shape, places: Iterable[Place]) -> bool:
    """Returns whether there is room for a gang when nothing else runs. `places`: all that it fits, full or not."""
    room = 0
    for place in places:
        room += tasks_beside(shape, place.host, place.slots, 0, {})
        if room >= shape.gang:
            return True
    return False


def hold(state: ClusterState, shape: Shape, own: list[Place], now: float) -> list[Place]:
    """Keeps free slots for a gang that does not fit now. `own`: the places that it fits, full or not, that are kept for
    nothing yet and that nothing wants which comes before it. Returns those that are kept."""
    if not could_start(shape, own):
        return []
    start_at, kept = starts(state, shape, own, now)
    for place, count in kept.items():
        place.reserved = Reservation(shape, start_at, 0, count)
    return list(kept)


def starts(state: ClusterState, shape: Shape, places: list[Place], now: float) -> tuple[float, dict[Place, int]]:
    """Returns when a gang can start there by the time limits of what runs, and with how many members at each place;
    inf if they do not say, with what is missing least."""
    counts = {place: tasks_beside(shape, place.host, place.slots, place.used, place.taken) for place in places}
    missing = shape.gang - sum(counts.values())
    jobs = state.jobs
    ends: list[tuple[float, str, int, Place, AttemptRef]] = []
    for place in places if missing > 0 else ():
        if any(jobs[job].spec.timeout_s for job in {*place.host.by_job, *(ref[0] for ref in place.placed())}):
            for ref, began_at in place.live(now):
                end = end_of(jobs[ref[0]], began_at)
                if end < inf:
                    heappush(ends, (end, place.host.name, len(ends), place, ref))
    at, used = now, {place: (place.used, dict(place.taken)) for place in places}
    while missing > 0 and ends:
        at, _, _, place, ref = heappop(ends)
        gone = place.shape_of(ref, jobs[ref[0]])
        slots, taken = used[place]
        for name, number in place.held(ref, gone):
            taken[name] -= number
        used[place] = slots - gone.weight, taken
        count = tasks_beside(shape, place.host, place.slots, *used[place])
        missing -= count - counts[place]
        counts[place] = count
        if missing < 0:
            counts[place] += missing
    if missing <= 0:
        return max(at, now), {place: count for place, count in counts.items() if count}
    return inf, _cheapest(shape, places)


def _cheapest(shape: Shape, places: list[Place]) -> dict[Place, int]:
    """Returns for how many members each place is best kept: where least has to get free for one more."""
    counts = dict.fromkeys(places, 0)
    most = {place: tasks_beside(shape, place.host, place.slots, 0, {}) for place in places}
    heap = [(_missing(shape, place, 1), place.host.name, place) for place in places if most[place]]
    heap.sort(key=lambda entry: entry[:2])
    for _ in range(shape.gang):
        _, name, place = heappop(heap)
        counts[place] += 1
        if counts[place] < most[place]:
            heappush(heap, (_missing(shape, place, counts[place] + 1), name, place))
    return {place: count for place, count in counts.items() if count}


def _missing(shape: Shape, place: Place, members: int) -> float:
    """Returns what must get free for the last of so many members, as a share of what it needs."""
    parts = [(place.slots - place.used, shape.weight)]
    parts += [(place.host.free(name, number, place.taken), number) for name, number in shape.needs]
    return sum(min(1.0, max(0.0, members - free / need)) for free, need in parts)
