"""Frames that are no messages: refused as such, whatever is wrong with them."""

from __future__ import annotations

import msgspec
import pytest

from depalma.consensus.messages import BadMessage, PreVote, decode, encode

_HEAD = [1, 4, 1, 10, 4, True]


def test_a_message_comes_back_also_with_fields_of_a_later_release() -> None:
    message = PreVote(4, 1, 10, 4, True)

    assert decode(encode(message)) == message
    assert decode(msgspec.msgpack.encode([*_HEAD, "later"])) == message


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode([99]),
        msgspec.msgpack.encode([1, -1, 1, 10, 4, True]),
        b"\x92\x01\xa1\xff",
        b"\x97" + b"".join(map(msgspec.msgpack.encode, _HEAD)) + b"\x91" * 100_000,
    ],
    ids=["empty", "never-used", "unknown", "negative", "no-text", "deep"],
)
def test_everything_else_is_a_bad_message(frame: bytes) -> None:
    with pytest.raises(BadMessage):
        decode(frame)
