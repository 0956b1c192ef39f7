"""The end of what an attempt wrote, which the masters keep, so that it outlives its host. [pure]

An attempt that wrote nothing has none. A short one travels in the report; of a longer one the report names where it is:
several are packed into one blob (items.py), as a file for each would cost the masters' disks more than running it.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

#: So much of the end of each stream is kept.
TAIL_BYTES = 64 * 1024
#: Both streams of an attempt together, up to which they stand in the log and in the state.
INLINE_TAIL_BYTES = 256
#: Longest reason why there is none.
_MAX_REASON = 300


class OutputTail(Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """Where the end of an attempt's output is: here (`inline`), or item `item` of the blob `digest`; or why it is not
    kept. All empty, in a report that no master has seen: it is still to be handed over."""

    inline: bytes = b""
    digest: str = ""
    item: int = 0
    lost: str = ""

    @property
    def is_due(self) -> bool:
        """Returns whether it is still to be handed over."""
        return not (self.inline or self.digest or self.lost)


class Tail(Struct, frozen=True, array_like=True, gc=False):
    """The end of both streams, and how many bytes each had in all."""

    stdout: bytes
    stdout_bytes: int
    stderr: bytes
    stderr_bytes: int

    def of(self, stream: str) -> tuple[bytes, int]:
        """Returns the end of `stdout` or `stderr`, and the offset in the whole at which it begins."""
        data, size_bytes = (self.stderr, self.stderr_bytes) if stream == "stderr" else (self.stdout, self.stdout_bytes)
        return data, size_bytes - len(data)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Tail).decode


def pack(tail: Tail) -> bytes:
    """Returns the bytes of a tail."""
    return _encode(tail)


def unpack(data: bytes) -> Tail:
    """Returns the tail. Errors: ValueError if that is none."""
    try:
        tail = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"the kept output is damaged: {error}") from error
    if tail.stdout_bytes < len(tail.stdout) or tail.stderr_bytes < len(tail.stderr):
        raise ValueError("the kept output is damaged: it is longer than the whole")
    return tail


def not_kept(reason: str) -> OutputTail:
    """Returns what stands in the place of a tail that could not be kept."""
    return OutputTail(lost=reason[:_MAX_REASON] or "for no known reason")
