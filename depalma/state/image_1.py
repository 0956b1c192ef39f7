"""Reads the state as the first release wrote it, in one piece. [pure]"""

from __future__ import annotations

from collections import deque

import msgspec
from msgspec import Struct

from depalma.codetree import CodeEntry
from depalma.model import Payload
from depalma.state.cluster_state import ClusterState
from depalma.state.event_log import EventRecord
from depalma.state.images import HostImage, JobImage, host_of, job_of
from depalma.state.requests import Answer


class Image(Struct, array_like=True, gc=False):
    """A whole state of format 1."""

    format: int
    version: int
    state_hash: str
    term: int
    next_job: int
    code: list[CodeEntry]
    hosts: list[HostImage]
    jobs: list[JobImage]
    younger: dict[str, Answer]
    older: dict[str, Answer]
    since: float
    next_event: int
    events: list[EventRecord]


_decoder = msgspec.msgpack.Decoder(Image)


def decode(data: bytes) -> tuple[ClusterState, str]:
    """Returns the state, without what is derived, and the state hash. Errors: msgspec.MsgspecError."""
    image = _decoder.decode(data)
    state = ClusterState.empty()
    state.version, state.term, state.next_job, state.code = image.version, image.term, image.next_job, image.code
    state.answers.younger, state.answers.older, state.answers.since = image.younger, image.older, image.since
    state.events.next_index, state.events.records = image.next_event, deque(image.events)
    state.hosts = {each.name: host_of(each) for each in image.hosts}
    seen: dict[Payload, Payload] = {}
    state.jobs = {each.id: job_of(each, seen) for each in image.jobs}
    return state, image.state_hash
