"""The state as bytes, and back. [pure]

A format number, then arrays whose fields are only ever added at the end with a default: a newer version reads what an
older one wrote. What can be derived (ready index, host attempts, tallies) is not stored.
"""

from __future__ import annotations

from collections import deque

import msgspec
from msgspec import Struct

from depalma.codetree import CodeEntry
from depalma.errors import DepalmaError
from depalma.model import HostFacts, HostState, JobSpec
from depalma.state.cluster_state import ClusterState
from depalma.state.completions import Completions, CompletionsImage
from depalma.state.event_log import EventRecord
from depalma.state.hosts import Host
from depalma.state.jobs import NOTHING_DONE, Attempt, Chunk, Job, Story
from depalma.state.requests import Answer
from depalma.state.task_states import FIRST_FINAL, WORDS

#: Raised when an older version could not read what this one writes.
FORMAT = 1


class BadSnapshot(DepalmaError):
    """The bytes are no snapshot that this version can read."""


class _Head(Struct, array_like=True):
    format: int


class _JobImage(Struct, array_like=True, gc=False):
    id: int
    spec: JobSpec
    code_index: int
    submitted_at: float
    started_at: float | None
    finished_at: float | None
    open: bool
    held: bool
    cancelled: bool
    cancelled_by: str
    states: bytes
    cursor: int
    requeued: list[int]
    running: list[tuple[int, Attempt]]
    stories: list[tuple[int, Story]]
    done: CompletionsImage | None
    exit_code_seen: int
    first_bad: int
    chunks: list[Chunk]


class _HostImage(Struct, array_like=True, gc=False):
    name: str
    groups: tuple[str, ...]
    labels: dict[str, str]
    priority: int
    slots: int
    gpus: int
    added_at: float
    state: HostState
    reason: str
    since: float
    incarnation: str
    over: list[str]
    facts: HostFacts | None
    code_index: int
    acknowledgements: dict[int, str]


class Image(Struct, array_like=True, gc=False):
    """A whole state."""

    format: int
    version: int
    state_hash: str
    term: int
    next_job: int
    code: list[CodeEntry]
    hosts: list[_HostImage]
    jobs: list[_JobImage]
    younger: dict[str, Answer]
    older: dict[str, Answer]
    since: float
    next_event: int
    events: list[EventRecord]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Image)
_head = msgspec.msgpack.Decoder(_Head)


def encode(state: ClusterState, state_hash: str, *, version: bool = True) -> bytes:
    """Returns the bytes of a snapshot; equal states give equal bytes. `version=False` leaves its number out."""
    return _encoder.encode(
        Image(
            FORMAT,
            state.version if version else 0,
            state_hash,
            state.term,
            state.next_job,
            state.code,
            [_host_image(host) for host in state.hosts.values()],
            [_job_image(job) for job in state.jobs.values()],
            state.answers.younger,
            state.answers.older,
            state.answers.since,
            state.events.next_index,
            list(state.events.records),
        )
    )


def decode(data: bytes) -> tuple[ClusterState, str]:
    """Returns the state and the state hash of a snapshot. Errors: BadSnapshot."""
    try:
        number = _head.decode(data).format
        if number != FORMAT:
            raise BadSnapshot(f"the snapshot has format {number}; this version reads format {FORMAT}")
        image = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise BadSnapshot(f"the snapshot is damaged: {error}") from error
    state = ClusterState.empty()
    state.version, state.term, state.next_job, state.code = image.version, image.term, image.next_job, image.code
    state.answers.younger, state.answers.older, state.answers.since = image.younger, image.older, image.since
    state.events.next_index, state.events.records = image.next_event, deque(image.events)
    state.hosts = {each.name: _host(each) for each in image.hosts}
    for each in image.jobs:
        job = state.jobs[each.id] = _job(each)
        state.ready.refresh(job)
        for index, attempt in job.running.items():
            state.hosts[attempt.host].put((job.id, index, attempt.number), attempt, job.shape.weight)
    return state, image.state_hash


def _job_image(job: Job) -> _JobImage:
    return _JobImage(
        job.id,
        job.spec,
        job.code_index,
        job.submitted_at,
        job.started_at,
        job.finished_at,
        job.open,
        job.held,
        job.cancelled,
        job.cancelled_by,
        bytes(job.states),
        job.cursor,
        job.requeued,
        list(job.running.items()),
        list(job.stories.items()),
        None if job.done is NOTHING_DONE else job.done.image(),
        job.exit_code_seen,
        job.first_bad,
        job.chunks,
    )


def _job(image: _JobImage) -> Job:
    job = Job(image.id, image.spec, image.code_index, image.submitted_at)
    job.started_at, job.finished_at = image.started_at, image.finished_at
    job.open, job.held = image.open, image.held
    job.cancelled, job.cancelled_by = image.cancelled, image.cancelled_by
    job.states = bytearray(image.states)
    job.cursor, job.requeued = image.cursor, image.requeued
    job.running, job.stories = dict(image.running), dict(image.stories)
    if image.done is not None:
        job.done = Completions.from_image(image.done, job.first)
    for code in range(FIRST_FINAL, len(WORDS)):
        job.tally[code] = job.states.count(code)
    job.exit_code_seen, job.first_bad, job.chunks = image.exit_code_seen, image.first_bad, image.chunks
    return job


def _host_image(host: Host) -> _HostImage:
    return _HostImage(
        host.name,
        host.groups,
        host.labels,
        host.priority,
        host.configured_slots,
        host.gpus,
        host.added_at,
        host.state,
        host.reason,
        host.since,
        host.incarnation,
        host.over,
        host.facts,
        host.code_index,
        host.acknowledgements,
    )


def _host(image: _HostImage) -> Host:
    host = Host(image.name, image.groups, image.labels, image.priority, image.slots, image.gpus, image.added_at)
    host.turn(image.state, image.reason, image.since)
    host.incarnation, host.over = image.incarnation, image.over
    host.facts, host.code_index, host.acknowledgements = image.facts, image.code_index, image.acknowledgements
    return host
