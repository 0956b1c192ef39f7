"""What stands in a log entry."""

from __future__ import annotations

import pickle

import pytest

from depalma.consensus.envelope import pack, unpack
from depalma.consensus.errors import InvariantBroken


@pytest.mark.parametrize("commands", [[b""], [b"a", b"b"], [bytes(1000)] * 50])
def test_commands_come_back_in_order(commands: list[bytes]) -> None:
    assert unpack(pack(commands)) == commands


def test_a_no_op_holds_nothing() -> None:
    assert unpack(b"\x01") == []


@pytest.mark.parametrize(
    "entry",
    [b"", b"\x00", b"\x00\x02\x90", b"\x02x", b"\x03x", b"\x00\x01\x91\xa1x", b"\x00" + pickle.dumps((0, (1,)))],
)
def test_anything_else_stops_the_replica(entry: bytes) -> None:
    with pytest.raises(InvariantBroken):
        unpack(entry)
