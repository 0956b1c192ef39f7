"""A network in memory between named nodes: connections that deliver in order, and everything that goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from depalma.testing.clock import Timeline


@dataclass(slots=True, kw_only=True)
class Weather:
    """How bad the network is. Times in seconds, chances from 0 to 1; all may be changed at any moment."""

    #: one way
    delay_s: tuple[float, float] = (0.0002, 0.002)
    #: chance that a frame is lost though its connection stands
    loss: float = 0.0
    #: chance that a frame which was on its way when its connection closed arrives all the same, up to a second later
    late: float = 0.5
    #: until two nodes that can reach each other are connected (again)
    connect_s: tuple[float, float] = (0.005, 0.06)
    #: until silence closes a connection
    timeout_s: float = 3.0


@dataclass(slots=True)
class _Node:
    on_frame: Callable[[str, bytes], None]
    on_connected: Callable[[str], None]
    on_disconnected: Callable[[str], None]


@dataclass(slots=True)
class _Link:
    """What is between two nodes. `number` counts its connections; those of the past are closed."""

    number: int = 0
    up: bool = False
    dialling: bool = False
    #: for each direction, when the last frame arrives: none may overtake it
    arrives: dict[str, float] = field(default_factory=dict)


class SimNetwork:
    """Connects every two nodes that are up and not cut off from each other, and carries frames between them.

    Within one connection frames arrive in order; between connections there is no order. A closed connection is told
    to both ends, except to one that is down. Cuts are one-way: `block("a", "b")` loses what a sends to b.
    """

    def __init__(self, timeline: Timeline, random: Random, weather: Weather | None = None) -> None:
        self.weather = weather or Weather()
        self._timeline = timeline
        self._random = random
        self._nodes: dict[str, _Node] = {}
        self._links: dict[tuple[str, str], _Link] = {}
        self._blocked: set[tuple[str, str]] = set()
        #: whom a node lets in; everybody for one that has not said
        self._let_in: dict[str, frozenset[str]] = {}
        self._stalled: set[str] = set()
        #: frames delivered so far
        self.delivered = 0
        #: called with (time, sender, receiver, frame) on each delivery
        self.on_delivery: Callable[[float, str, str, bytes], None] = lambda at, sender, receiver, frame: None

    def start(
        self,
        name: str,
        *,
        on_frame: Callable[[str, bytes], None],
        on_connected: Callable[[str], None],
        on_disconnected: Callable[[str], None],
    ) -> None:
        """A node comes up; connections with the others follow by themselves."""
        self._nodes[name] = _Node(on_frame, on_connected, on_disconnected)
        for other in sorted(self._nodes):
            link = self._link(name, other)
            if other != name and link.up:
                # What is left of an earlier life: the other learns now that nobody is there any more.
                link.up = False
                self._nodes[other].on_disconnected(name)
            if other != name:
                self._dial(name, other)

    def stop(self, name: str, *, silently: bool = False) -> None:
        """A node goes down. Its peers see the connections close at once, or `silently` only by the timeout."""
        del self._nodes[name]
        self._let_in.pop(name, None)
        self._stalled.discard(name)
        for other in sorted(self._nodes):
            link = self._link(name, other)
            if link.up and silently:
                number = link.number
                self._timeline.after(self.weather.timeout_s, partial(self._expire, name, other, number))
            else:
                self.close(name, other)

    def let_in(self, name: str, peers: Iterable[str]) -> None:
        """From now on the node is connected with these only; two connect if each lets the other in."""
        self._let_in[name] = frozenset(peers)
        for other in sorted(self._nodes):
            if other != name and not self._acquainted(name, other):
                self.close(name, other)
            elif other != name and name in self._nodes:
                self._dial(name, other)

    def stall(self, name: str) -> None:
        """A node stands still: its system takes frames for it, but no connection is made, and those it has time out."""
        self._stalled.add(name)
        for other in sorted(self._nodes):
            if other != name:
                number = self._link(name, other).number
                self._timeline.after(self.weather.timeout_s, partial(self._expire, name, other, number))

    def resume(self, name: str) -> None:
        """It goes on."""
        self._stalled.discard(name)
        for other in sorted(self._nodes):
            if other != name:
                self._dial(name, other)

    def has(self, name: str) -> bool:
        """Whether the node is up."""
        return name in self._nodes

    def send(self, sender: str, receiver: str, frame: bytes) -> None:
        """Send a frame on the connection of the two; lost if there is none."""
        link = self._link(sender, receiver)
        if not link.up or (sender, receiver) in self._blocked or self._random.random() < self.weather.loss:
            return
        now = self._timeline.clock.monotonic()
        at = max(now + self._random.uniform(*self.weather.delay_s), link.arrives.get(sender, 0.0))
        link.arrives[sender] = at
        number = link.number
        self._timeline.after(at - now, lambda: self._arrive(sender, receiver, number, frame))

    def close(self, one: str, other: str) -> None:
        """Close the connection of two nodes; they connect again if they can."""
        link = self._link(one, other)
        if not link.up:
            return
        link.up = False
        for name, peer in ((one, other), (other, one)):
            if name in self._nodes:
                self._nodes[name].on_disconnected(peer)
        self._dial(one, other)

    def block(self, sender: str, receiver: str) -> None:
        """Lose everything from `sender` to `receiver` from now on; the connection closes by its timeout."""
        if (sender, receiver) in self._blocked:
            return
        self._blocked.add((sender, receiver))
        number = self._link(sender, receiver).number
        self._timeline.after(self.weather.timeout_s, partial(self._expire, sender, receiver, number))

    def partition(self, *sides: Iterable[str]) -> None:
        """Cut each side off from every other; nodes of one side reach each other."""
        groups = [set(side) for side in sides]
        for group in groups:
            for other in groups:
                if other is not group:
                    for sender in sorted(group):
                        for receiver in sorted(other):
                            self.block(sender, receiver)

    def heal(self) -> None:
        """End all cuts."""
        self._blocked.clear()
        names = sorted(self._nodes)
        for i, one in enumerate(names):
            for other in names[i + 1 :]:
                self._dial(one, other)

    def _link(self, one: str, other: str) -> _Link:
        return self._links.setdefault((min(one, other), max(one, other)), _Link())

    def _reachable(self, one: str, other: str) -> bool:
        both_up = one in self._nodes and other in self._nodes
        if not both_up or one in self._stalled or other in self._stalled or not self._acquainted(one, other):
            return False
        return (one, other) not in self._blocked and (other, one) not in self._blocked

    def _acquainted(self, one: str, other: str) -> bool:
        return all(there in self._let_in.get(here, (there,)) for here, there in ((one, other), (other, one)))

    def _dial(self, one: str, other: str) -> None:
        link = self._link(one, other)
        if link.up or link.dialling or not self._reachable(one, other):
            return
        link.dialling = True
        self._timeline.after(self._random.uniform(*self.weather.connect_s), lambda: self._connect(one, other))

    def _connect(self, one: str, other: str) -> None:
        link = self._link(one, other)
        link.dialling = False
        if link.up or not self._reachable(one, other):
            return
        link.number += 1
        link.up = True
        link.arrives.clear()
        self._nodes[one].on_connected(other)
        if link.up and other in self._nodes:
            self._nodes[other].on_connected(one)

    def _expire(self, one: str, other: str, number: int) -> None:
        link = self._link(one, other)
        if link.up and link.number == number and not self._reachable(one, other):
            self.close(one, other)

    def _arrive(self, sender: str, receiver: str, number: int, frame: bytes) -> None:
        link = self._link(sender, receiver)
        if not link.up or link.number != number:
            if self._random.random() >= self.weather.late:
                return
            self._timeline.after(self._random.random(), lambda: self._deliver(sender, receiver, frame))
            return
        if (sender, receiver) not in self._blocked:
            self._deliver(sender, receiver, frame)

    def _deliver(self, sender: str, receiver: str, frame: bytes) -> None:
        node = self._nodes.get(receiver)
        if node is None:
            return
        self.delivered += 1
        self.on_delivery(self._timeline.clock.monotonic(), sender, receiver, frame)
        node.on_frame(sender, frame)
