"""Packed arguments: any item readable without the others, and damage noticed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depalma import items
from depalma.items import BadItems


@given(st.lists(st.binary(max_size=50), max_size=30))
def test_what_is_packed_can_be_read(values):
    """Each by its place, from bytes and from a view of them."""
    packed = items.pack(values)

    assert items.count(packed) == len(values)
    assert [items.read(packed, place) for place in range(len(values))] == values
    assert [items.read(memoryview(packed), place) for place in range(len(values))] == values
    for place in (-1, len(values)):
        with pytest.raises(IndexError):
            items.read(packed, place)


def test_the_layout_is_fixed():
    """Other programs may write it."""
    assert items.pack([b"ab", b""]) == b"DPI1" + struct.pack("<I3Q", 2, 0, 2, 2) + b"ab"
    assert items.pack([]) == b"DPI1" + struct.pack("<IQ", 0, 0)


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (b"", "shorter than their header"),
        (b"DPI1\0\0", "shorter than their header"),
        (b"XXXX" + bytes(12), "do not start with DPI1"),
        (b"DPI1" + struct.pack("<I", 3) + bytes(8), "cut short"),
        (items.pack([b"abc"])[:-1], "the last offset says 3"),
        (items.pack([b"abc"]) + b"x", "4 data bytes"),
        (b"DPI1" + struct.pack("<I", 0xFFFFFFFF) + bytes(100), "cut short"),
    ],
)
def test_damage_is_noticed(packed, message):
    """Before any item is read."""
    with pytest.raises(BadItems, match=message):
        items.count(packed)


@pytest.mark.parametrize("packed", [b"", b"DPI1", b"DPI1" + struct.pack("<I", 3) + bytes(20)])
def test_reading_what_was_cut_short(packed):
    """Also when nobody counted before."""
    with pytest.raises(BadItems):
        items.read(packed, 0)


def test_damaged_offsets_are_noticed():
    """Those in the middle only when their item is read."""
    good = items.pack([b"ab", b"cd"])
    for offset in (5, 1 << 63):
        bad = good[:16] + struct.pack("<Q", offset) + good[24:]
        assert items.count(bad) == 2
        with pytest.raises(BadItems, match="offsets of item"):
            items.read(bad, 0)
        with pytest.raises(BadItems, match="offsets of item"):
            items.read(bad, 1)
        with pytest.raises(BadItems, match="offsets of item 0 are damaged"):
            items.check(bad)


@given(st.binary(max_size=80))
def test_noise_never_does_more_than_that(noise):
    """Whatever comes in, it is items or it is BadItems."""
    data = b"DPI1" + noise
    try:
        number = items.count(data)
    except BadItems:
        return
    for place in range(number):
        try:
            items.read(data, place)
        except BadItems:
            continue


@given(st.lists(st.binary(max_size=3), max_size=30), st.integers(1, 5), st.data())
def test_what_is_checked_can_be_read(values, at_once, data):
    """All of it or none, however it was damaged."""
    packed = bytearray(items.pack(values))
    items.check(packed)
    for _ in range(data.draw(st.integers(0, 2))):
        place = 8 + 8 * data.draw(st.integers(0, len(values)))
        packed[place : place + 8] = struct.pack("<Q", data.draw(st.sampled_from([0, 1, 2, 5, 1 << 63])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(items, "_AT_ONCE", at_once)
        assert _is_bad(lambda: items.check(packed)) == _is_bad(lambda: _read_all(packed))


def _is_bad(look):
    try:
        look()
    except BadItems:
        return True
    return False


def _read_all(packed):
    for place in range(items.count(packed)):
        items.read(packed, place)
