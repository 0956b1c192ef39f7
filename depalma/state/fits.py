"""Which hosts fit which jobs, as bits: so that a round does not look at hosts one by one, lane by lane. [pure]

Each host has a bit. A shape is split into what it asks for one by one (a group, one rule of labels, the code index,
…), and for each of these it is known which hosts have it; jobs of a thousand different shapes share most of that. When
a host changes, only its own bit is looked at again, and only of what is asked for. `misfit` decides everything.

Derived, and made when it is first asked for. Soft: replicas may have looked at different times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

from depalma.state.hosts import Host
from depalma.state.placement import misfit
from depalma.state.shapes import Shape

#: Changes that are remembered; whoever has not looked for longer looks at all hosts.
_KEEP = 4_096
#: Parts that are remembered.
_MOST_PARTS = 20_000
_ANYTHING = Shape("", "", 0, 0)


class Part:
    """One thing that shapes ask for, and the hosts that have it and take work."""

    __slots__ = ("bits", "seen", "shape")

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.bits = 0
        self.seen = -1  #: how many changes it has taken in; -1 = it has not looked at all


class Fits:
    """The bits of the hosts, and the parts that were asked for."""

    def __init__(self) -> None:
        self.version = 0  #: changes of hosts that were noted
        self.numbers: dict[str, int] = {}  #: the bit of each host
        self._names: list[str] = []  #: by bit; empty = nobody has it
        self._free: list[int] = []
        self._log: list[int] = []  #: bits that may be others now
        self._first = 0  #: the number of the first change in the log
        self._parts: dict[Shape, Part] = {}
        self._begun = False

    def begin(self, hosts: Mapping[str, Host]) -> None:
        """To be called before anything is asked: takes in the hosts that were there before anybody looked."""
        if not self._begun:
            self._begun = True
            self.note(hosts, hosts)

    def note(self, names: Iterable[str], hosts: Mapping[str, Host]) -> None:
        """Takes note that these hosts may be others than they were, or have come or gone."""
        if not self._begun:
            return
        for name in names:
            number = self.numbers.get(name)
            if number is None:
                if name not in hosts:
                    continue
                number = self._number(name)
            elif name not in hosts:
                del self.numbers[name]
                self._names[number] = ""
                self._free.append(number)
            self._log.append(number)
            self.version += 1
        if len(self._log) > 2 * _KEEP:
            del self._log[:-_KEEP]
            self._first = self.version - _KEEP

    def _number(self, name: str) -> int:
        if self._free:
            number = self._free.pop()
            self._names[number] = name
        else:
            number = len(self._names)
            self._names.append(name)
        self.numbers[name] = number
        return number

    def host(self, number: int, hosts: Mapping[str, Host]) -> Host:
        """Returns the host of a bit. Errors: KeyError when nobody has it."""
        return hosts[self._names[number]]

    def parts(self, shape: Shape) -> tuple[Part, ...]:
        """Returns what a shape asks for. Slots are left out: how many a host has is the leader's to say."""
        asked = [_ANYTHING]
        if shape.on_host:
            asked.append(_ANYTHING._replace(on_host=shape.on_host))
        if shape.group:
            asked.append(_ANYTHING._replace(group=shape.group))
        if shape.code_index:
            asked.append(_ANYTHING._replace(code_index=shape.code_index))
        if shape.needs:
            asked.append(_ANYTHING._replace(needs=shape.needs))
        asked += [_ANYTHING._replace(labels=(text,)) for text in shape.labels]
        if len(self._parts) > _MOST_PARTS:
            self._parts.clear()
        return tuple(self._parts.get(each) or self._parts.setdefault(each, Part(each)) for each in asked)

    def anything(self, hosts: Mapping[str, Host]) -> int:
        """Returns the bits of the hosts that take work."""
        return self._bits(self._parts.get(_ANYTHING) or self._parts.setdefault(_ANYTHING, Part(_ANYTHING)), hosts)

    def of(self, lane: Any, hosts: Mapping[str, Host]) -> int:
        """Returns the bits of the hosts that fit a lane in any way, or one of its ways, if their slots do."""
        if lane.fits_seen != self.version:
            if lane.ways:
                lane.fits = 0
                for way in lane.ways:
                    lane.fits |= self.of(way, hosts)
                lane.fits_seen = self.version
                return int(lane.fits)
            parts = lane.parts
            if parts is None:
                parts = lane.parts = self.parts(lane.shape)
            bits = -1
            for part in parts:
                bits &= self._bits(part, hosts)
                if not bits:
                    break
            lane.fits = bits
            lane.fits_seen = self.version
        return int(lane.fits)

    def _bits(self, part: Part, hosts: Mapping[str, Host]) -> int:
        if part.seen == self.version:
            return part.bits
        if part.seen < self._first:
            part.bits, numbers = 0, list(self.numbers.values())
        else:
            numbers = list(dict.fromkeys(self._log[part.seen - self._first :]))
        part.seen = self.version
        shape, names, bits = part.shape, self._names, part.bits
        for number in numbers:
            host = hosts.get(names[number])
            bit = 1 << number
            if host is not None and not misfit(shape, host, inf):
                bits |= bit
            elif bits & bit:
                bits ^= bit
        part.bits = bits
        return bits
