"""Bytes that nobody who means well would send: real ones, damaged; and what must become of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import msgspec

from depalma.consensus.envelope import unpack
from depalma.consensus.journal import EntryRecord, read_group
from depalma.state import commands
from depalma.state.commands import Rejected
from depalma.state.machine import Machine, UnknownCommand, digest_of
from depalma.testing.chaos.damage import segments

#: what a decoder meets seldom: nothing, ends of ranges, depth, length without content
_SPLINTERS = (
    b"",
    b"\xc1",
    b"\xff" * 9,
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\x91" * 2000,
    b"\xcb\x7f\xf8" + bytes(6),
)


def damaged(data: bytes, random: Random) -> bytes:
    """Returns these bytes with a few changed, some cut off, something put in, or something else altogether."""
    if random.random() < 0.05:
        return random.randbytes(random.randrange(200))
    found = bytearray(data)
    for _ in range(random.randint(0, 3)):
        if found:
            found[random.randrange(len(found))] = random.randrange(256)
    if random.random() < 0.3:
        at = random.randrange(len(found) + 1)
        found[at:at] = random.choice(_SPLINTERS)
    if random.random() < 0.3:
        del found[random.randrange(len(found) + 1) :]
    return bytes(found)


def is_refused(data: bytes) -> bool:
    """Returns whether every release that knows these kinds must refuse the bytes: no command, of no unknown kind."""
    try:
        commands.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        try:
            return isinstance(Machine().apply(data, 1), Rejected)
        except UnknownCommand:
            return False
    return False


def poison(command: bytes, random: Random) -> bytes:
    """Returns damaged bytes of a command that every replica must refuse."""
    while True:
        data = damaged(command, random)
        if is_refused(data):
            return data


def logged_commands(folder: Path) -> list[bytes]:
    """Returns the commands in the journal of a stopped replica."""
    found: list[bytes] = []
    for segment in segments(folder):
        data, offset = segment.read_bytes(), 0
        while (group := read_group(data, offset)) is not None:
            offset = group[-1]
            found += [one for record in group[0] if isinstance(record, EntryRecord) for one in unpack(record.command)]
    return found


@dataclass(slots=True)
class Fuzzed:
    """What became of bytes that two state machines were given."""

    applied: int = 0
    refused: int = 0
    unknown: int = 0
    #: a promise that was broken, in words
    broken: list[str] = field(default_factory=list)


def fuzz(real: Sequence[bytes], count: int, random: Random, make: Callable[[], Machine] = Machine) -> Fuzzed:
    """Gives two machines `count` times the same damaged bytes.

    They must answer alike, raise nothing but UnknownCommand (which stops a replica before anything is changed), and
    be the same in the end.
    """
    one, two = make(), make()
    found = Fuzzed()
    for index in range(1, count + 1):
        data = damaged(random.choice(real), random)
        answer, other = _give(one, data, index), _give(two, data, index)
        if repr(answer) != repr(other):
            found.broken.append(f"{data[:80]!r}: {answer!r} and {other!r}")
        if isinstance(answer, UnknownCommand):
            found.unknown += 1
        elif isinstance(answer, Exception):
            found.broken.append(f"{data[:80]!r}: {answer!r}")
        elif isinstance(answer, Rejected):
            found.refused += 1
        else:
            found.applied += 1
    if one.state_hash != two.state_hash or digest_of(one.state) != digest_of(two.state):
        found.broken.append("two machines that were given the same bytes differ")
    one.state.check_invariants()
    return found


def _give(machine: Machine, data: bytes, index: int) -> object:
    """Returns the answer; an exception, which is what is looked for, is one too."""
    try:
        return machine.apply(data, index)
    except Exception as error:
        return error
