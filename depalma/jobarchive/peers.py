"""What masters say to each other about their archives."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar

import msgspec
from msgspec import Struct

from depalma.jobarchive.ranges import Range
from depalma.jobarchive.record import Record

T = TypeVar("T")
log = logging.getLogger(__name__)

KEEP_PATH = "/internal/archive/keep"
RECORDS_PATH = "/internal/archive/records"
#: Most records, ranges and bytes of one answer or request.
RECORDS_AT_ONCE = 500
RANGES_AT_ONCE = 1_000
BYTES_AT_ONCE = 4 * 1024 * 1024


class KeepRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Finished jobs to be archived: they are about to be forgotten."""

    jobs: tuple[int, ...]


class KeepAnswer(Struct, frozen=True):
    """Those of them that are on disk now."""

    kept: tuple[int, ...]


class RecordsRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Ids that the one who asks misses."""

    ranges: tuple[tuple[int, int], ...]


class Peers(Protocol):
    """The other masters."""

    def peers(self) -> Collection[str]:
        """Returns their ids."""

    async def ask_peer(self, peer: str, path: str, body: bytes) -> bytes | None:
        """Returns the answer to a POST, None if there is none or it is a refusal."""


async def kept_by_peers(peers: Peers, jobs: Sequence[int]) -> Counter[int]:
    """Returns on how many other masters each of the jobs is archived."""
    body = msgspec.msgpack.encode(KeepRequest(tuple(jobs)))
    answers = await asyncio.gather(*(_ask(peers, peer, KEEP_PATH, body, KeepAnswer) for peer in peers.peers()))
    return Counter(job for answer in answers if answer for job in set(answer.kept))


async def records_of(peers: Peers, peer: str, ranges: Sequence[Range]) -> list[Record] | None:
    """Returns some of the records that a peer has of the ranges, none if it has none; None if it does not answer."""
    body = msgspec.msgpack.encode(RecordsRequest(tuple(ranges)))
    return await _ask(peers, peer, RECORDS_PATH, body, list[Record])


async def _ask(peers: Peers, peer: str, path: str, body: bytes, kind: type[T]) -> T | None:
    answer = await peers.ask_peer(peer, path, body)
    try:
        return None if answer is None else msgspec.msgpack.decode(answer, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:  # of another release, perhaps
        log.warning("master %s: its answer to %s is not understood: %s", peer, path, error)
        return None
