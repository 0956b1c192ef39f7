"""The packed form of a map's arguments: one byte string a task, any of them readable without the others. [pure]

Layout: magic `DPI1`, count (u32), count + 1 offsets (u64, little endian, from the start of the data), the data.
A map of 100,000 short arguments is so one value of modest size, and a master hands out the argument of task i
without decoding (let alone unpickling) anything.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

MAGIC = b"DPI1"
_HEAD = struct.Struct("<4sI")
_OFFSET = struct.Struct("<Q")
_AT_ONCE = 10_000


class BadItems(ValueError):
    """The packed arguments are damaged or were not made by `pack`."""


def pack(items: Sequence[bytes]) -> bytes:
    """Returns the packed form of `items`; `read(pack(items), i) == items[i]`."""
    offsets = [0]
    for item in items:
        offsets.append(offsets[-1] + len(item))
    head = _HEAD.pack(MAGIC, len(items)) + struct.pack(f"<{len(offsets)}Q", *offsets)
    return head + b"".join(items)


def count(packed: bytes | memoryview) -> int:
    """Returns how many items there are, after checking that the whole is well formed in length."""
    if len(packed) < _HEAD.size:
        raise BadItems("packed arguments are shorter than their header")
    magic, number = _HEAD.unpack_from(packed)
    if magic != MAGIC:
        raise BadItems("packed arguments do not start with DPI1")
    data_start = _HEAD.size + _OFFSET.size * (number + 1)
    if len(packed) < data_start:
        raise BadItems(f"packed arguments are cut short: {len(packed)} bytes for {number} offsets")
    (end,) = _OFFSET.unpack_from(packed, data_start - _OFFSET.size)
    if data_start + end != len(packed):
        raise BadItems(f"packed arguments have {len(packed) - data_start} data bytes, the last offset says {end}")
    return int(number)


def check(packed: bytes | memoryview) -> None:
    """Returns if each item can be read. Errors: BadItems."""
    number = count(packed)
    room = len(packed) - _HEAD.size - _OFFSET.size * (number + 1)
    for first in range(0, number, _AT_ONCE):
        some = min(_AT_ONCE, number - first) + 1
        offsets = struct.unpack_from(f"<{some}Q", packed, _HEAD.size + _OFFSET.size * first)
        for position, (begin, end) in enumerate(pairwise(offsets), first):
            if not begin <= end <= room:
                raise BadItems(f"offsets of item {position} are damaged: {begin}..{end}")


def read(packed: bytes | memoryview, position: int) -> bytes:
    """Returns item `position`. Errors: IndexError outside the range, BadItems for damaged offsets."""
    if len(packed) < _HEAD.size:
        raise BadItems("packed arguments are shorter than their header")
    _, number = _HEAD.unpack_from(packed)
    if not 0 <= position < number:
        raise IndexError(f"item {position} of {number}")
    start = _HEAD.size + _OFFSET.size * (number + 1)
    if len(packed) < start:
        raise BadItems(f"packed arguments are cut short: {len(packed)} bytes for {number} offsets")
    begin, end = struct.unpack_from("<2Q", packed, _HEAD.size + _OFFSET.size * position)
    if not begin <= end <= len(packed) - start:
        raise BadItems(f"offsets of item {position} are damaged: {begin}..{end}")
    return bytes(packed[start + begin : start + end])
