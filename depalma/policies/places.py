"""On which host a task goes: what fits, and what is chosen of that. [pure]

The choice, in this order: for how many of the job's wishes (`prefer`) the host is right, its priority level, whether
it has the job's data (`policies/near.py`), how full it is (least full first; fullest first for jobs that `pack`), its
measured load, its name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from heapq import heapify

from msgspec import Struct

from depalma.gpuparts import WHOLE
from depalma.model import AttemptRef, Load
from depalma.policies.busy import allowed, least
from depalma.policies.reserve import Reservation
from depalma.state.cluster_state import ClusterState
from depalma.state.commands import AssignTasks
from depalma.state.constraints import holds, rule_of
from depalma.state.gpus import without
from depalma.state.hosts import Host
from depalma.state.jobs import Job
from depalma.state.shapes import GPUS, Shape, held


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
        "cpu",
        "free_refs",
        "gang_refs",
        "gpus",
        "holds",
        "host",
        "incarnation",
        "limit",
        "number",
        "reserved",
        "shares_gpus",
        "short_slots",
        "slots",
        "taken",
        "used",
        "was",
        "ways",
        "wished_refs",
    )

    def __init__(self, host: Host, room: HostRoom, least_busy: float, number: int = 0) -> None:
        self.host = host
        self.number = number  #: its bit
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
            given = range(host.gpu_count)  # the machine may have more than it was said to have
            self.avoid = tuple(gpu for gpu in room.busy_gpus if gpu in given and not host.taken.get(gpu))
            self.taken = without(host.taken, self.avoid)
            self.taken[GPUS] = host.taken.get(GPUS, 0) + WHOLE * len(self.avoid)
        self.reserved: Reservation | None = None  #: for a task that needs much
        self.short_slots: float = -1  #: slots that short tasks hold; -1 = not counted yet
        self.gpus: dict[AttemptRef, tuple[int, ...]] = {}  #: what of them goes to what is placed here
        self.shares_gpus = False  #: some of that gets a part of one
        self.free_refs: list[AttemptRef] = []
        self.gang_refs: list[AttemptRef] = []  #: in free slots, with the rest of their gangs
        self.ahead_refs: list[AttemptRef] = []
        #: in free slots, with the reason that was special, and as which alternative
        self.wished_refs: dict[tuple[str, int], list[AttemptRef]] = {}
        self.ways: dict[AttemptRef, int] | None = None  #: as which alternative, where it is one

    def takes(self, shape: Shape) -> bool:
        """Returns whether tasks of a shape that fits the host may go here at all: by its slots, and who is there."""
        return self.slots >= shape.weight and self.host.incarnation == self.incarnation

    def take(self, shape: Shape, ref: AttemptRef) -> None:
        """Notes what a task for which there is room takes besides slots."""
        gpus = self.host.choose_gpus(shape, self.taken)
        if gpus:
            self.gpus[ref] = gpus
            self.shares_gpus = self.shares_gpus or dict(shape.needs)[GPUS] < WHOLE
        taken = dict(self.taken)
        for name, number in held(shape.needs, gpus or ()):
            taken[name] = taken.get(name, 0) + number
        self.taken = taken

    def named_gpus(self, refs: Iterable[AttemptRef]) -> tuple[tuple[int, ...], ...]:
        """Returns the GPUs of each of these that were placed here; nothing if they would be the same in any order."""
        # Parts may fit in the order of the plan alone, which is not that of its commands.
        return tuple(self.gpus.get(ref, ()) for ref in refs) if self.shares_gpus else ()

    def held(self, ref: AttemptRef, shape: Shape) -> Iterable[tuple[str | int, int]]:
        """Returns what an attempt that runs or was placed here has besides slots."""
        attempt = self.host.attempts.get(ref)
        return held(shape.needs, attempt.gpus if attempt is not None else self.gpus.get(ref, ()))

    def shape_of(self, ref: AttemptRef, job: Job) -> Shape:
        """Returns what an attempt that runs or was placed here takes."""
        if not job.shape.others:
            return job.shape
        attempt = self.host.attempts.get(ref)
        return job.shape.ways[attempt.alternative if attempt is not None else (self.ways or {}).get(ref, 0)]

    def note_way(self, ref: AttemptRef, way: int) -> None:
        """Notes that what was placed here runs as an alternative."""
        if self.ways is None:
            self.ways = {}
        self.ways[ref] = way

    def refs(self, shape: Shape, *, near: bool = False, way: int = 0) -> list[AttemptRef]:
        """Returns the list to which a task of the shape is to be added. `near`: it was chosen for its data; `way`: as
        which alternative it runs."""
        alternative = [f"as alternative {way}"] * bool(way)
        if near:
            return self.wished_refs.setdefault(("; ".join(["its data is there already", *alternative]), way), [])
        if not shape.prefer and not shape.pack:
            return self.wished_refs.setdefault((alternative[0], way), []) if way else self.free_refs
        wishes = [text for text in shape.prefer if holds(rule_of(text), self.host.labels)]
        parts = [f"as preferred: {', '.join(wishes)}"] * bool(wishes) + ["packed: fullest"] * shape.pack
        parts = [*(parts or ["nothing of what was preferred"]), *alternative]
        return self.wished_refs.setdefault(("; ".join(parts), way), [])

    def commands(self, hosts: int, now: float, term: int) -> Iterator[AssignTasks]:
        """Yields what was placed here, with the reason."""
        name, level = self.host.name, self.host.priority
        full = f"least full of {hosts} host{'s' * (hosts > 1)} with room, priority level {level}"
        free = max(0, self.limit - self.was)
        if self.limit < self.slots:
            full += f"; {self.slots - self.limit} slots left to what else runs there"

        def command(refs: list[AttemptRef], reason: str, way: int = 0) -> AssignTasks:
            gpus = self.named_gpus(refs) if self.shares_gpus else ()
            return AssignTasks(term, name, self.incarnation, tuple(refs), now, reason, self.avoid, gpus, way)

        if self.free_refs:
            yield command(self.free_refs, f"{free:g} of {self.slots} slots were free; {full}")
        for (why, way), refs in self.wished_refs.items():
            yield command(refs, f"{free:g} of {self.slots} slots were free; {why}; priority level {level}", way)
        if self.ahead_refs:
            yield command(self.ahead_refs, f"queued ahead: short tasks, all {self.slots} slots taken; {full}")

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


def places_of(state: ClusterState, rooms: Mapping[str, HostRoom]) -> list[Place]:
    """Returns all connected hosts, for whoever looks at each: a round of the dispatcher makes only what it needs."""
    least_busy = least(room.foreign for room in rooms.values())
    return [Place(state.hosts[name], room, least_busy) for name, room in rooms.items() if name in state.hosts]


class Pool:
    """The hosts of a round, as bits (`state/fits.py`); what was not chosen from is not looked at one by one.

    In the phase of free slots, `members` are those that had one when the round began, `open` those that still have; in
    that of queueing ahead both are those on which something may still wait.
    """

    def __init__(self, state: ClusterState, hosts: Mapping[str, HostRoom], *, ahead: bool) -> None:
        self.state = state
        self.rooms = hosts
        self.made: dict[int, Place] = {}  #: by bit
        self.members = 0
        self.reserved = 0
        self.closed = 0  #: nothing more is queued ahead there
        self.gangs: list[tuple[list[AttemptRef], list[Place]]] = []  #: that were placed, one place a member
        self._wanted = 0  #: what a job waits for that did not find a free slot
        self._wanted_wide: list[tuple[Shape, int]] = []  #: the same of wide tasks, hosts with too few slots among them
        self._connected = -1  #: hosts with slots, full ones among them; -1 = not looked at
        self.parts = 0  #: where only a part of a slot is taken
        self.least_busy = least([room.foreign for room in hosts.values()])
        self._ahead = 0
        state.fits.begin(state.hosts)
        self._look(ahead)
        works = state.fits.anything(state.hosts)
        self.members &= works
        self._ahead &= works
        self.open = self.members

    def _look(self, ahead: bool) -> None:
        """Finds the hosts with room."""
        known, numbers, least_busy = self.state.hosts, self.state.fits.numbers, self.least_busy
        free, waiting, parts = [], [], []
        for name, room in self.rooms.items():
            host = known.get(name)
            if host is None or room.slots <= 0:
                continue
            used, limit = host.used, room.slots
            if room.foreign > least_busy:
                limit = allowed(limit, room.foreign, least_busy)
            if used < limit:
                free.append(numbers[name])
                if used % 1:
                    parts.append(numbers[name])
            if ahead and used < room.slots + room.ahead:
                waiting.append(numbers[name])
        self.members, self._ahead, self.parts = _bits_of(free), _bits_of(waiting), _bits_of(parts)

    def __bool__(self) -> bool:
        """Returns whether there is room anywhere at all."""
        return bool(self.members or self._ahead)

    @property
    def hosts(self) -> int:
        """Returns how many hosts had room of any kind."""
        return (self.members | self._ahead).bit_count()

    def go_ahead(self) -> None:
        """Begins the phase of queueing ahead."""
        self.members = self.open = self._ahead

    def place(self, number: int) -> Place:
        """Returns the host of a bit."""
        place = self.made.get(number)
        if place is None:
            host = self.state.fits.host(number, self.state.hosts)
            place = self.made[number] = Place(host, self.rooms[host.name], self.least_busy, number)
        return place

    def choices(self, shape: Shape, bits: int) -> list[Choice]:
        """Returns a heap of the open places of these bits that tasks of the shape may use."""
        places = [self.place(number) for number in numbers_of(bits & self.open)]
        choices = [choice(place, shape) for place in places if place.takes(shape)]
        heapify(choices)
        return choices

    def all_for(self, shape: Shape, bits: int) -> Iterator[Place]:
        """Yields the places of these bits that tasks of the shape may use, the full ones among them: only gangs have to
        know."""
        if self._connected < 0:
            known = self.state.fits.numbers
            found = [known[name] for name, room in self.rooms.items() if room.slots > 0 and name in known]
            self._connected = _bits_of(found)
        return (place for place in map(self.place, numbers_of(bits & self._connected)) if place.takes(shape))

    def keep(self, places: Iterable[Place]) -> None:
        """Notes that these are kept for what waits."""
        for place in places:
            self.reserved |= 1 << place.number

    def want(self, shape: Shape, bits: int) -> None:
        """Notes that a job waits which could use the hosts of these bits."""
        if shape.weight > 1:
            self._wanted_wide.append((shape, bits))
        else:
            self._wanted |= bits

    def unwanted(self, shape: Shape, bits: int) -> list[Place]:
        """Returns of the places for a gang those that nothing wants which was noted, and that are kept for nothing."""
        wide, self._wanted_wide = self._wanted_wide, []
        for other, others in wide:
            self._wanted |= _bits_of([place.number for place in self.all_for(other, others & ~self._wanted)])
        return list(self.all_for(shape, bits & ~self._wanted & ~self.reserved))

    def give(self, place: Place, shape: Shape, ref: AttemptRef) -> None:
        """Takes what a task of the shape needs in a free slot there."""
        place.used += shape.weight
        if shape.needs:
            place.take(shape, ref)
        self.changed(place)

    def changed(self, place: Place) -> None:
        """Notes that something was placed in free slots there."""
        bit = 1 << place.number
        if place.used >= place.limit:
            self.open &= ~bit
        if place.used % 1:
            self.parts |= bit
        else:
            self.parts &= ~bit

    def keeps_for(self, wanted: list[tuple[Shape, int]]) -> list[tuple[Shape, Place]]:
        """Returns where a host may be kept for one of the shapes, none of which found one: nowhere, if the next slot
        that gets free is its own anyway. `wanted`: each with the bits of the hosts that it fits."""
        found: list[tuple[Shape, Place]] = []
        for shape, bits in wanted:
            if shape.weight <= 1 and not shape.needs and not bits & self.members & self.parts:
                if bits:
                    return []
                continue
            places = (self.place(number) for number in numbers_of(bits & self.members & ~self.reserved))
            found += [(shape, place) for place in places if place.takes(shape)]
        return found

    def close(self, shape: Shape, bits: int) -> None:
        """Closes the places that tasks of the shape may use to queueing ahead."""
        if shape.weight > 1:
            places = (self.place(number) for number in numbers_of(bits & self.members))
            bits = _bits_of([place.number for place in places if place.takes(shape)])
        self.closed |= bits
        self.members &= ~bits
        self.open = self.members

    def commands(self, now: float, term: int) -> list[AssignTasks]:
        """Returns what was placed, gangs left out, by name of the host."""
        places = sorted(self.made.values(), key=lambda place: place.host.name)
        return [command for place in places for command in place.commands(self.hosts, now, term)]


def _bits_of(numbers: list[int]) -> int:
    """Returns an int of these bits."""
    if not numbers:
        return 0
    buffer = bytearray((max(numbers) >> 3) + 1)
    for number in numbers:
        buffer[number >> 3] |= 1 << (number & 7)
    return int.from_bytes(buffer, "little")


def numbers_of(bits: int) -> Iterator[int]:
    """Yields the numbers of the bits that are set."""
    for place, byte in enumerate(bits.to_bytes((bits.bit_length() + 7) >> 3, "little")):
        if byte:
            first = place << 3
            for number in range(8):
                if byte >> number & 1:
                    yield first + number


#: Order of choice: wishes, priority level, how full, measured load, name.
Choice = tuple[int, int, float, float, str, Place]


def choice(place: Place, shape: Shape) -> Choice:
    """Returns the place with what it is chosen by; the smallest is the best."""
    host = place.host
    wishes = sum(holds(rule_of(text), host.labels) for text in shape.prefer) if shape.prefer else 0
    full = place.used / place.limit
    return -wishes, -host.priority, -full if shape.pack else full, place.cpu, host.name, place
