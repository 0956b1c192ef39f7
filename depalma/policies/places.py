"""On which host a task goes: what fits, and what is chosen of that. [pure]

The choice, in this order: for how many of the job's wishes (`prefer`) the host is right, its priority level, whether
it has the job's data (`policies/near.py`), how full it is (least full first; fullest first for jobs that `pack`), its
measured load, its name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from msgspec import Struct

from depalma.model import AttemptRef, Load
from depalma.policies.busy import allowed, least
from depalma.policies.reserve import Reservation
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import AssignTasks
from depalma.state.constraints import holds, rule_of
from depalma.state.hosts import Host
from depalma.state.placement import misfit
from depalma.state.shapes import GPUS, Shape


class HostRoom(Struct, frozen=True, gc=False):
    """What the leader knows of a connected host beyond the state."""

    incarnation: str
    slots: int
    ahead: int = 0  #: most slots' worth of tasks that may wait there beyond the slots; 0 = none
    load: Load = Load()
    foreign: float = 0.0  #: share of its CPUs that something else uses, 0 to 1
    holds: Collection[str] = ()  #: digests of large files that are there
    busy_gpus: tuple[int, ...] = ()  #: those that something else uses


class Place:
    """A host in this round, with what is placed there."""

    __slots__ = (
        "ahead",
        "ahead_refs",
        "avoid",
        "closed",
        "cpu",
        "free_refs",
        "gang_refs",
        "holds",
        "host",
        "incarnation",
        "limit",
        "reserved",
        "short_slots",
        "slots",
        "taken",
        "used",
        "was",
        "wished_refs",
    )

    def __init__(self, host: Host, room: HostRoom, least_busy: float) -> None:
        self.host = host
        self.incarnation = room.incarnation
        self.slots = room.slots
        self.limit = allowed(room.slots, room.foreign, least_busy)  #: slots that may be used now
        self.ahead = room.ahead
        self.holds = room.holds
        self.cpu = room.load.cpu_percent
        self.used: float = host.used
        self.was = host.used
        self.taken = host.taken  #: replaced when something is placed, never changed
        self.avoid: tuple[int, ...] = ()
        if room.busy_gpus:
            self.avoid = tuple(gpu for gpu in room.busy_gpus if gpu not in host.gpus_taken)
            self.taken = {**host.taken, GPUS: host.taken.get(GPUS, 0) + len(self.avoid)}
        self.reserved: Reservation | None = None  #: for a task that needs much
        self.closed = False  #: nothing more is queued ahead here
        self.short_slots: float = -1  #: slots that short tasks hold; -1 = not counted yet
        self.free_refs: list[AttemptRef] = []
        self.gang_refs: list[AttemptRef] = []  #: in free slots, with the rest of their gangs
        self.ahead_refs: list[AttemptRef] = []
        self.wished_refs: dict[str, list[AttemptRef]] = {}  #: in free slots, with the reason that was special

    def take(self, shape: Shape) -> None:
        """Notes what a task takes besides slots."""
        taken = dict(self.taken)
        for name, number in shape.needs:
            taken[name] = taken.get(name, 0) + number
        self.taken = taken

    def refs(self, shape: Shape, *, ahead: bool, near: bool = False) -> list[AttemptRef]:
        """Returns the list to which a task of the shape is to be added. `near`: it was chosen for its data."""
        if ahead:
            return self.ahead_refs
        if near:
            return self.wished_refs.setdefault("its data is there already", [])
        if not shape.prefer and not shape.pack:
            return self.free_refs
        wishes = [text for text in shape.prefer if holds(rule_of(text), self.host.labels)]
        parts = [f"as preferred: {', '.join(wishes)}"] * bool(wishes) + ["packed: fullest"] * shape.pack
        return self.wished_refs.setdefault("; ".join(parts) or "nothing of what was preferred", [])

    def commands(self, hosts: int, now: float, term: int) -> Iterator[AssignTasks]:
        """Yields what was placed here, with the reason."""
        name, level = self.host.name, self.host.priority
        full = f"least full of {hosts} host{'s' * (hosts > 1)} with room, priority level {level}"
        free = max(0, self.limit - self.was)
        if self.limit < self.slots:
            full += f"; {self.slots - self.limit} slots left to what else runs there"
        for refs, reason in (
            (self.free_refs, f"{free:g} of {self.slots} slots were free; {full}"),
            *(
                (refs, f"{free:g} of {self.slots} slots were free; {why}; priority level {level}")
                for why, refs in self.wished_refs.items()
            ),
            (self.ahead_refs, f"queued ahead: short tasks, all {self.slots} slots taken; {full}"),
        ):
            if refs:
                yield AssignTasks(term, name, self.incarnation, tuple(refs), now, reason, self.avoid)

    def placed(self) -> Iterator[AttemptRef]:
        """Yields what was placed here in free slots."""
        yield from self.free_refs
        yield from self.gang_refs
        for refs in self.wished_refs.values():
            yield from refs

    def live(self, now: float) -> Iterator[tuple[AttemptRef, float]]:
        """Yields what runs or was placed here, and since when."""
        for ref, attempt in self.host.attempts.items():
            yield ref, attempt.assigned_at if attempt.started_at is None else attempt.started_at
        for ref in self.placed():
            yield ref, now


def places_of(state: ClusterState, hosts: Mapping[str, HostRoom], *, ahead: bool) -> list[Place]:
    """Returns the hosts that may take anything at all now; `ahead`: those with taken slots, too."""
    places = []
    least_busy = least(room.foreign for room in hosts.values())
    for name, room in hosts.items():
        host = state.hosts.get(name)
        if host is None or host.used >= room.slots + (room.ahead if ahead else 0):
            continue
        if host.takes_work and host.incarnation == room.incarnation and room.slots > 0:
            places.append(Place(host, room, least_busy))
    places.sort(key=lambda place: place.host.name)
    return places


def all_places(state: ClusterState, hosts: Mapping[str, HostRoom], places: list[Place]) -> list[Place]:
    """Returns these places, and behind them those hosts that take work but have no room."""
    known = {place.host.name for place in places}
    least_busy = least(room.foreign for room in hosts.values())
    full = []
    for name, room in sorted(hosts.items()):
        host = state.hosts.get(name) if name not in known else None
        if host is not None and host.takes_work and host.incarnation == room.incarnation and room.slots > 0:
            full.append(Place(host, room, least_busy))
    return [*places, *full]


class Pool:
    """Places to choose from, found by what a shape names before they are looked at one by one."""

    def __init__(self, places: list[Place]) -> None:
        self.places = places
        self.open = len(places)
        self._by_name = {place.host.name: [place] for place in places}
        self._by_group: dict[str, list[Place]] = {}
        for place in places:
            for group in place.host.groups:
                self._by_group.setdefault(group, []).append(place)

    def fitting(self, shape: Shape) -> list[Place]:
        """Returns the open places that tasks of the shape may use."""
        places = self.places
        if shape.on_host:
            places = self._by_name.get(shape.on_host, [])
        elif shape.group:
            places = self._by_group.get(shape.group, [])
        return [place for place in places if not place.closed and not misfit(shape, place.host, place.slots)]

    def close(self, shape: Shape) -> None:
        """Closes the places that tasks of the shape may use."""
        for place in self.fitting(shape):
            place.closed = True
            self.open -= 1


#: Order of choice: wishes, priority level, how full, measured load, name.
Choice = tuple[int, int, float, float, str, Place]


def choice(place: Place, shape: Shape) -> Choice:
    """Returns the place with what it is chosen by; the smallest is the best."""
    host = place.host
    wishes = sum(holds(rule_of(text), host.labels) for text in shape.prefer) if shape.prefer else 0
    full = place.used / place.limit
    return -wishes, -host.priority, -full if shape.pack else full, place.cpu, host.name, place
