"""What replicas say to each other, and its form on the wire: typed msgpack, checked when it comes in."""

from __future__ import annotations

from typing import Annotated

import msgspec

from depalma.consensus.settings import MIB, Roster

#: spoken version; part of the handshake
PROTOCOL = 1
#: no frame is longer; a longer one closes the connection
MAX_FRAME_BYTES = 16 * MIB

Natural = Annotated[int, msgspec.Meta(ge=0)]


class _Message(msgspec.Struct, array_like=True, gc=False):
    #: the sender's term
    term: Natural


class PreVote(_Message, tag=1):
    """Would you vote for me? Changes nothing at the one who is asked."""

    ballot: Natural
    last_index: Natural
    last_term: Natural
    joined: bool


class PreVoteReply(_Message, tag=2):
    """The answer to the PreVote of the same ballot."""

    ballot: Natural
    granted: bool


class Vote(_Message, tag=3):
    """A candidate of `term` asks for the vote."""

    last_index: Natural
    last_term: Natural
    joined: bool
    #: the leader has asked for this election, so that it still leads is no reason to refuse
    transfer: bool = False


class VoteReply(_Message, tag=4):
    """The vote is given. There is no answer that refuses."""


class Append(_Message, tag=5):
    """The leader's entries after `prev_index`, each (term, command); none: a heartbeat."""

    round: Natural
    commit_index: Natural
    prev_index: Natural
    prev_term: Natural
    entries: list[tuple[Natural, bytes]]
    #: whoever holds the log up to here holds what it may have forgotten, and more; 0: that is not known yet
    vouched: Natural = 0


class AppendReply(_Message, tag=6):
    """Accepted: everything up to `match` is on my disk and equal to yours. Else: go back to `hint`."""

    round: Natural
    accepted: bool
    match: Natural = 0
    #: the `prev_index` that did not fit
    refused: Natural = 0
    hint: Natural = 0
    #: the sender has once held everything that was committed
    joined: bool = False


class Install(_Message, tag=7):
    """A piece of the snapshot that reaches to entry `index`; empty data asks how much is there."""

    round: Natural
    index: Natural
    offset: Natural
    size: Natural
    data: bytes


class InstallReply(_Message, tag=8):
    """`offset` is wanted next; `match` > 0: not needed (any more), everything up to it is on my disk."""

    round: Natural
    index: Natural
    offset: Natural
    match: Natural = 0
    #: as in AppendReply
    joined: bool = False


class StandNow(_Message, tag=9):
    """The leader hands over: you have my whole log, stand at once (TimeoutNow in Raft's thesis, 3.10)."""


class Introduce(_Message, tag=10):
    """The newest list of members that is committed, as the sender knows it: let them in."""

    roster: Roster


Message = (
    PreVote | PreVoteReply | Vote | VoteReply | Append | AppendReply | Install | InstallReply | StandNow | Introduce
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class BadMessage(Exception):
    """A frame that is no message of this protocol."""


def encode(message: Message) -> bytes:
    """The frame of a message."""
    return _encoder.encode(message)


def decode(frame: bytes) -> Message:
    """The message of a frame. Raises BadMessage."""
    try:
        return _decoder.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(str(error)) from error
