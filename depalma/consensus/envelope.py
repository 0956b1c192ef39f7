"""What stands in a log entry: our own versioned batch of commands, never a pickle.

An entry is one kind byte that the engine prescribes, one version byte of ours, then a msgpack list of commands.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from depalma.consensus.errors import InvariantBroken

#: the engine's kind bytes for an entry with content and for one without
COMMANDS = 0
NO_OP = 1
VERSION = 1

_PREFIX = bytes([COMMANDS, VERSION])
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[bytes])


def pack(commands: Sequence[bytes]) -> bytes:
    """One entry that holds these commands in this order."""
    return _PREFIX + _encoder.encode(list(commands))


def unpack(entry: bytes) -> list[bytes]:
    """The commands of an entry; none for a no-op.

    Raises InvariantBroken for anything else: a replica that cannot read an entry must stop, not skip it.
    """
    if entry[:1] == bytes([NO_OP]):
        return []
    if entry[:2] != _PREFIX:
        raise InvariantBroken(f"log entry of unknown kind or version {entry[:2]!r}: this release is too old for it")
    try:
        return _decoder.decode(entry[2:])
    except msgspec.MsgspecError as error:
        raise InvariantBroken(f"log entry cannot be decoded: {error}") from error
