"""The state as bytes, and back: in pieces, so that neither side ever holds a second copy of all of it. [pure]

The first piece begins with a format number. Pieces are arrays whose fields are only ever added at the end with a
default: a newer version reads what an older one wrote. What can be derived (ready index, host attempts, tallies) is
not stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

import msgspec
from msgspec import Struct

from depalma.codetree import CodeEntry
from depalma.errors import DepalmaError
from depalma.model import MasterAddress, Payload
from depalma.state import image_1
from depalma.state.cluster_state import ClusterState
from depalma.state.completions import CompletionsImage
from depalma.state.event_log import EventRecord
from depalma.state.images import HostImage, JobImage, host_image, host_of, job_image, job_of
from depalma.state.invitations import Invitation
from depalma.state.jobs import NOTHING_DONE, Chunk, Job
from depalma.state.order_image import OrderImage, order_image, recount, restore_order
from depalma.state.outbox import Outgoing, Webhook
from depalma.state.requests import Answer
from depalma.state.schedule import Schedule
from depalma.state.stories import Story
from depalma.state.task_states import FINAL_CODES
from depalma.state.ways import shape_of_attempt

#: Raised when an older version could not read what this one writes.
FORMAT = 2
#: Rows, stories or chunks of one job that stand together; a piece is closed once it has so many bytes.
ROWS = 1_000
PIECE_BYTES = 256 * 1024


class BadSnapshot(DepalmaError):
    """The bytes are no snapshot that this version can read."""


class _Head(Struct, array_like=True):
    """What the first piece begins with, in every format."""

    format: int


class _Piece(Struct, array_like=True, gc=False):
    pass


class StatePiece(Struct, array_like=True, gc=False):
    """The first piece."""

    format: int
    version: int
    state_hash: str
    term: int
    next_job: int
    answers_since: float
    next_event: int
    removed_hosts: list[str] = []
    order: OrderImage | None = None
    answers_complete_from: int = 0
    answers_younger_from: int = 0


class CodePiece(_Piece, tag="code"):
    entries: list[CodeEntry]


class HostsPiece(_Piece, tag="hosts"):
    hosts: list[HostImage]


class JobsPiece(_Piece, tag="jobs"):
    """What goes beyond ROWS of a job follows in pieces of its own."""

    jobs: list[JobImage]


class DonePiece(_Piece, tag="done"):
    job: int
    done: CompletionsImage


class StoriesPiece(_Piece, tag="stories"):
    job: int
    stories: list[tuple[int, Story]]


class ChunksPiece(_Piece, tag="chunks"):
    job: int
    chunks: list[Chunk]


class YoungerPiece(_Piece, tag="younger"):
    answers: list[tuple[str, Answer]]


class OlderPiece(_Piece, tag="older"):
    answers: list[tuple[str, Answer]]


class EventsPiece(_Piece, tag="events"):
    events: list[EventRecord]


class MastersPiece(_Piece, tag="masters"):
    masters: list[MasterAddress]


class SchedulesPiece(_Piece, tag="schedules"):
    """Only there if there are some: older versions do not know it."""

    schedules: list[Schedule]


class WebhooksPiece(_Piece, tag="webhooks"):
    webhooks: list[Webhook]


class OutboxPiece(_Piece, tag="outbox"):
    """Entries, each with the name of its webhook."""

    entries: list[tuple[str, Outgoing]]


class InvitationsPiece(_Piece, tag="invitations"):
    invitations: list[Invitation]


class EndPiece(_Piece, tag="end"):
    """The last one: without it something is missing."""

    pieces: int


AnyPiece = (
    CodePiece
    | HostsPiece
    | JobsPiece
    | DonePiece
    | StoriesPiece
    | ChunksPiece
    | YoungerPiece
    | OlderPiece
    | EventsPiece
    | MastersPiece
    | SchedulesPiece
    | WebhooksPiece
    | OutboxPiece
    | InvitationsPiece
    | EndPiece
)

_encode = msgspec.msgpack.Encoder().encode
_head = msgspec.msgpack.Decoder(_Head)
_first = msgspec.msgpack.Decoder(StatePiece)
_piece: msgspec.msgpack.Decoder[AnyPiece] = msgspec.msgpack.Decoder(AnyPiece)


def encode(state: ClusterState, state_hash: str, *, version: bool = True) -> Iterator[bytes]:
    """Yields the pieces of a snapshot; equal states give equal ones. `version=False` leaves its number out."""
    yield _encode(
        StatePiece(
            FORMAT,
            state.version if version else 0,
            state_hash,
            state.term,
            state.next_job,
            state.answers.since,
            state.events.next_index,
            sorted(state.removed),
            order_image(state),
            state.answers.complete_from if version else 0,
            state.answers.younger_from if version else 0,
        )
    )
    pieces = 1
    for data in chain(
        _batches("code", state.code),
        _batches("hosts", map(host_image, state.hosts.values())),
        _jobs(state.jobs.values()),
        _batches("younger", state.answers.younger.items()),
        _batches("older", state.answers.older.items()),
        _batches("events", state.events.records),
        _batches("masters", state.masters.values()),
        _batches("schedules", state.schedules.values()),
        _batches("webhooks", state.webhooks.by_name.values()),
        _batches("outbox", state.webhooks.all_entries()),
        _batches("invitations", state.invitations.values()),
    ):
        yield data
        pieces += 1
    yield _encode(EndPiece(pieces))


def _jobs(jobs: Iterable[Job]) -> Iterator[bytes]:
    """Small jobs share a piece; a large one ends it, and goes on in pieces of its own."""
    batch: list[bytes] = []
    size = 0
    for job in jobs:
        done = None if job.done is NOTHING_DONE else job.done.images(ROWS)
        stories = list(job.stories.items())
        data = _encode(job_image(job, next(done) if done else None, stories[:ROWS], job.chunks[:ROWS]))
        batch.append(data)
        size += len(data)
        further = _further(job, done, stories)
        second = next(further, None)
        if size >= PIECE_BYTES or second is not None:
            yield _array("jobs", batch)
            batch, size = [], 0
        if second is not None:
            yield second
            yield from further
    if batch:
        yield _array("jobs", batch)


def _further(job: Job, done: Iterator[CompletionsImage] | None, stories: list[tuple[int, Story]]) -> Iterator[bytes]:
    for image in done or ():
        yield _encode(DonePiece(job.id, image))
    for start in range(ROWS, len(stories), ROWS):
        yield _encode(StoriesPiece(job.id, stories[start : start + ROWS]))
    for start in range(ROWS, len(job.chunks), ROWS):
        yield _encode(ChunksPiece(job.id, job.chunks[start : start + ROWS]))


def _batches(tag: str, items: Iterable[object]) -> Iterator[bytes]:
    batch: list[bytes] = []
    size = 0
    for item in items:
        data = _encode(item)
        batch.append(data)
        size += len(data)
        if size >= PIECE_BYTES:
            yield _array(tag, batch)
            batch, size = [], 0
    if batch:
        yield _array(tag, batch)


def _array(tag: str, items: list[bytes]) -> bytes:
    """Returns `[tag, [items…]]`, put together from items that are encoded already."""
    return b"".join((b"\x92", _encode(tag), b"\xdd", len(items).to_bytes(4, "big"), *items))


def decode(pieces: Iterable[bytes]) -> tuple[ClusterState, str]:
    """Returns the state and the state hash of a snapshot. Errors: BadSnapshot, and what `pieces` raises."""
    rest = iter(pieces)
    try:
        head = next(rest, b"")
        number = _head.decode(head).format
        if number == 1:
            state, state_hash = image_1.decode(head)
        elif number == FORMAT:
            state, state_hash = _Reader(_first.decode(head)).read(rest)
        else:
            raise BadSnapshot(f"its state has format {number}; this release reads formats 1 to {FORMAT}: upgrade it")
        for job in state.jobs.values():
            _settle(state, job)
        return state, state_hash
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, ValueError, OverflowError) as error:
        raise BadSnapshot(f"the snapshot is damaged: {type(error).__name__}: {error}") from error


class _Reader:
    """Builds a state from its pieces."""

    def __init__(self, first: StatePiece) -> None:
        self._state = state = ClusterState.empty()
        state.version, state.term, state.next_job = first.version, first.term, first.next_job
        state.answers.since = first.answers_since
        state.answers.complete_from = first.answers_complete_from
        state.answers.younger_from = first.answers_younger_from
        state.events.next_index = first.next_event
        state.removed = set(first.removed_hosts)
        if first.order is not None:
            restore_order(state, first.order)
        self._state_hash = first.state_hash
        self._pieces = 1
        self._seen: dict[Payload, Payload] = {}

    def read(self, pieces: Iterable[bytes]) -> tuple[ClusterState, str]:
        ended = False
        for data in pieces:
            piece = _piece.decode(data)
            if ended or (isinstance(piece, EndPiece) and piece.pieces != self._pieces):
                raise ValueError("the number of pieces is wrong")
            ended = isinstance(piece, EndPiece)
            self._take(piece)
            self._pieces += 1
        if not ended:
            raise ValueError("the end is missing")
        return self._state, self._state_hash

    def _take(self, piece: AnyPiece) -> None:
        state = self._state
        match piece:
            case CodePiece():
                state.code += piece.entries
            case HostsPiece():
                state.hosts.update((each.name, host_of(each)) for each in piece.hosts)
            case JobsPiece():
                self._seen = {}
                state.jobs.update((each.id, job_of(each, self._seen)) for each in piece.jobs)
            case DonePiece():
                state.jobs[piece.job].done.extend(piece.done, self._seen)
            case StoriesPiece():
                state.jobs[piece.job].stories.update(piece.stories)
            case ChunksPiece():
                state.jobs[piece.job].chunks += piece.chunks
            case YoungerPiece():
                state.answers.younger.update(piece.answers)
            case OlderPiece():
                state.answers.older.update(piece.answers)
            case EventsPiece():
                state.events.records.extend(piece.events)
            case MastersPiece():
                state.masters.update((each.id, each) for each in piece.masters)
            case SchedulesPiece():
                state.schedules.update((each.name, each) for each in piece.schedules)
            case WebhooksPiece():
                state.events.fresh = []
                for webhook in piece.webhooks:
                    state.webhooks.add(webhook)
            case OutboxPiece():
                for name, entry in piece.entries:
                    state.webhooks.outboxes[name].put(entry, state.webhooks.by_name[name].keep)
            case InvitationsPiece():
                state.invitations.update((each.secret_hash, each) for each in piece.invitations)


def _settle(state: ClusterState, job: Job) -> None:
    """Derives what is not stored of a job that is complete."""
    if len(job.done) != sum(job.tally):
        job.done.recount(lambda index: job.states[index - job.first] in FINAL_CODES)
    if job.is_final:
        job.done.seal()
    recount(state, job)
    state.ready.refresh(job, 0.0)
    state.due.add_job(job)
    if job.unmet:
        state.waiting.add(job, {each.job: len(state.jobs[each.job].finished_order) for each in job.unmet})
    for index, attempt in job.running.items():
        state.hosts[attempt.host].put((job.id, index, attempt.number), attempt, shape_of_attempt(job, attempt))
