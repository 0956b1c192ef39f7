"""What stands in a log entry: our own versioned batch of commands, never a pickle.

An entry is one kind byte that the engine prescribes, one version byte of ours, then msgpack: a list of commands, or
for an entry that says who the members are that list after them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from depalma.consensus.errors import InvariantBroken

#: the engine's kind bytes for an entry with content and for one without
COMMANDS = 0
NO_OP = 1
#: an entry that changes the members; its commands are applied with it
MEMBERSHIP = 2
VERSION = 1

_PREFIX = bytes([COMMANDS, VERSION])
_MEMBERSHIP_PREFIX = bytes([MEMBERSHIP, VERSION])
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[bytes])
_membership_decoder = msgspec.msgpack.Decoder(tuple[bytes, list[bytes]])


def pack(commands: Sequence[bytes]) -> bytes:
    """One entry that holds these commands in this order."""
    return _PREFIX + _encoder.encode(list(commands))


def pack_membership(members: bytes, commands: Sequence[bytes]) -> bytes:
    """One entry that says who the members are, and holds these commands."""
    return _MEMBERSHIP_PREFIX + _encoder.encode((members, list(commands)))


def membership(entry: bytes) -> bytes | None:
    """What an entry says about the members; None if it is about something else. Raises InvariantBroken."""
    return _read_membership(entry)[0] if entry[:1] == bytes([MEMBERSHIP]) else None


def unpack(entry: bytes) -> list[bytes]:
    """The commands of an entry; none for a no-op.

    Raises InvariantBroken for anything else: a replica that cannot read an entry must stop, not skip it.
    """
    if entry[:1] == bytes([NO_OP]):
        return []
    if entry[:1] == bytes([MEMBERSHIP]):
        return _read_membership(entry)[1]
    if entry[:2] != _PREFIX:
        raise _unknown(entry)
    try:
        return _decoder.decode(entry[2:])
    except msgspec.MsgspecError as error:
        raise InvariantBroken(f"log entry cannot be decoded: {error}") from error


def _read_membership(entry: bytes) -> tuple[bytes, list[bytes]]:
    if entry[:2] != _MEMBERSHIP_PREFIX:
        raise _unknown(entry)
    try:
        return _membership_decoder.decode(entry[2:])
    except msgspec.MsgspecError as error:
        raise InvariantBroken(f"membership entry cannot be decoded: {error}") from error


def _unknown(entry: bytes) -> InvariantBroken:
    return InvariantBroken(f"log entry of unknown kind or version {entry[:2]!r}: this release is too old for it")
