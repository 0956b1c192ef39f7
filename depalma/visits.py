"""What the two ends of a visit say to each other: a user, and a process of his in a running task. [pure]

A visit is a command, or a shell, that runs inside a task that runs now (`depalmactl exec`). Masters carry the messages
and never read them. In each direction at most `WINDOW_BYTES` are on the way: who receives says what it has consumed,
and only then more may come. So a side that does not read holds up the other one, and nobody's memory grows.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from depalma.errors import DepalmaError

#: Bytes of a stream that may be on the way in one direction of a visit.
WINDOW_BYTES = 256 * 1024
#: Most bytes in one message: frames of others wait for no more than that.
CHUNK_BYTES = 32 * 1024
#: Longest message of either end.
MAX_MESSAGE_BYTES = CHUNK_BYTES + 1024
#: Visits at once on one host, and through one leader.
PER_HOST, PER_LEADER = 8, 64
#: What a visit may be asked to run: bytes of all words together.
MAX_COMMAND_BYTES = 64 * 1024
#: Rows and columns of a terminal.
MAX_SIDE = 10_000
STDIN, STDOUT, STDERR = 0, 1, 2
#: Signals that are passed on. A terminal sends its own, as bytes.
SIGNALS = {"HUP": 1, "INT": 2, "QUIT": 3, "USR1": 10, "USR2": 12, "TERM": 15}


class Breach(DepalmaError):
    """The other end does not keep to what is agreed here; the visit ends."""


class Message(Struct, frozen=True, array_like=True, gc=False):
    """Base of all messages."""


class Data(Message, frozen=True, tag="data"):
    """Bytes of a stream: STDIN to the process, the others from it."""

    stream: int
    data: bytes


class Credit(Message, frozen=True, tag="credit"):
    """So many bytes of data have been consumed."""

    size_bytes: int


class End(Message, frozen=True, tag="end"):
    """Nothing more comes on STDIN."""


class Signal(Message, frozen=True, tag="signal"):
    """Send this signal to the process and its group."""

    name: str


class Size(Message, frozen=True, tag="size"):
    """The user's window has this size now."""

    rows: int
    columns: int


class Over(Message, frozen=True, tag="over"):
    """Nothing of it is left. `exit_code` is its own (128 + n for signal n); without one, `error` says what ended it."""

    exit_code: int | None = None
    error: str = ""


FromUser = Data | Credit | End | Signal | Size
FromTask = Data | Credit | Over

_encoder = msgspec.msgpack.Encoder()
_from_user: msgspec.msgpack.Decoder[FromUser] = msgspec.msgpack.Decoder(FromUser)
_from_task: msgspec.msgpack.Decoder[FromTask] = msgspec.msgpack.Decoder(FromTask)


def encode(message: FromUser | FromTask) -> bytes:
    """Returns the message's bytes."""
    return _encoder.encode(message)


def from_user(data: bytes) -> FromUser:
    """Returns what a user says. Errors: Breach, whatever the bytes are."""
    message: FromUser = _decoded(_from_user, data)
    match message:
        case Data(stream=stream) if stream != STDIN:
            raise Breach(f"data for stream {stream}; allowed: {STDIN}")
        case Signal(name=name) if name not in SIGNALS:
            raise Breach(f"signal {name[:20]!r}; allowed: {', '.join(SIGNALS)}")
        case Size(rows=rows, columns=columns) if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE):
            raise Breach(f"a window of {rows} rows and {columns} columns; allowed: 1 to {MAX_SIDE}")
    return message


def from_task(data: bytes) -> FromTask:
    """Returns what comes from the task. Errors: Breach, whatever the bytes are."""
    message: FromTask = _decoded(_from_task, data)
    if isinstance(message, Data) and message.stream not in (STDOUT, STDERR):
        raise Breach(f"data of stream {message.stream}; allowed: {STDOUT}, {STDERR}")
    return message


def _decoded(decoder: msgspec.msgpack.Decoder[Any], data: bytes) -> Any:
    if len(data) > MAX_MESSAGE_BYTES:
        raise Breach(f"a message of {len(data)} bytes; allowed: up to {MAX_MESSAGE_BYTES}")
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Breach(f"a message that is none: {error}") from None


class Flight:
    """The bytes of one direction that are on the way; each end counts them for itself."""

    def __init__(self) -> None:
        self.size_bytes = 0

    @property
    def room_bytes(self) -> int:
        """Returns how much more may be sent now."""
        return WINDOW_BYTES - self.size_bytes

    def add(self, size_bytes: int) -> None:
        """Counts what is sent, or has come. Errors: Breach, if that is more than was agreed."""
        if size_bytes > self.room_bytes:
            raise Breach(f"{self.size_bytes + size_bytes} bytes on the way; allowed: {WINDOW_BYTES}")
        self.size_bytes += size_bytes

    def consumed(self, size_bytes: int) -> None:
        """Counts what has been consumed. Errors: Breach, if it was never on the way."""
        if not 0 <= size_bytes <= self.size_bytes:
            raise Breach(f"{size_bytes} bytes are called consumed, and {self.size_bytes} are on the way")
        self.size_bytes -= size_bytes
