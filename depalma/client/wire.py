"""The frames of a result stream (`POST /v1/results`), for both ends. [pure]

A frame is its length (u32, little endian) and that many bytes of msgpack: one `ResultBatch`. A frame of length zero
says only that the master lives. A batch repeats nothing: a reader that keeps the last `cursor` of each job can go on
at another master after a broken stream and misses none, gets none twice.
"""

from __future__ import annotations

import struct

import msgspec
from msgspec import Struct

from depalma.model import Payload

_LENGTH = struct.Struct("<I")
#: What a batch is meant to stay below, and the number of results it may carry.
BATCH_BYTES = 1024 * 1024
BATCH_RESULTS = 2000
#: A reader refuses longer frames: the stream is damaged (a single result is far smaller, as payloads go as blobs).
MAX_FRAME_BYTES = 64 * 1024 * 1024
KEEP_ALIVE = _LENGTH.pack(0)
#: A master sends a keep-alive after so long without results, …
KEEP_ALIVE_S = 0.4
#: … so a stream that is silent for so long is opened elsewhere: its master is frozen, cut off or very late. A needless
#: change costs a request; a late one is time that the user waits for a result (design: a frozen leader, 1.5 s).
SILENCE_S = 1.0


class ResultsRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/results`. `cursors`: job id (as text) to how many of its results are known already."""

    session: str = ""
    cursors: dict[str, int] = {}
    follow: bool = True


class TaskResult(Struct, frozen=True, array_like=True, gc=False):
    """How one task ended."""

    task: int
    state: str
    exit_code: int | None = None
    signal: int | None = None
    error: str = ""
    result: Payload | None = None
    host: str = ""
    attempt: int = 0
    error_code: str = ""


#: `state` of a result that counts no more, as its task was retried; the one that counts follows.
RETRIED = "retried"


class ResultBatch(Struct, frozen=True, array_like=True):
    """Results of one job in the order in which its tasks ended. `cursor` counts those given so far, this batch's
    included; `final` means that the job is over and nothing follows. An unknown job has state `unknown`."""

    job: int
    cursor: int
    results: tuple[TaskResult, ...]
    state: str
    final: bool


class BadFrame(ValueError):
    """The stream is damaged."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ResultBatch)


def frame(batch: ResultBatch) -> bytes:
    """Returns the batch as a frame."""
    buffer = bytearray(_LENGTH.size)
    _encoder.encode_into(batch, buffer, _LENGTH.size)
    _LENGTH.pack_into(buffer, 0, len(buffer) - _LENGTH.size)
    return bytes(buffer)


class FrameReader:
    """Cuts a stream of bytes into batches, however the bytes come."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[ResultBatch]:
        """Returns the batches that `data` completes (keep-alives give none). Errors: BadFrame."""
        buffer = self._buffer
        buffer += data
        batches: list[ResultBatch] = []
        position = 0
        while len(buffer) - position >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, position)
            if length > MAX_FRAME_BYTES:
                raise BadFrame(f"a frame of {length} bytes; at most {MAX_FRAME_BYTES} are allowed")
            end = position + _LENGTH.size + length
            if len(buffer) < end:
                break
            if length:
                batches.append(_decode(bytes(buffer[position + _LENGTH.size : end])))
            position = end
        del buffer[:position]
        return batches


def _decode(data: bytes) -> ResultBatch:
    try:
        return _decoder.decode(data)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise BadFrame(str(error)) from error
